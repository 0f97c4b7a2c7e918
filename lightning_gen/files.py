"""Files that are whole or not there: written beside their target, flushed, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, and rename it to `path` once the block ends well.

    A process killed in the block, a full disk or an error leaves what stood at `path` as it was.

    Args:
        path: the target; its folder is made where it is missing.

    Yields:
        The temporary name, in the same folder, so that the rename is atomic.

    Raises:
        OSError: where the folder cannot be written; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
