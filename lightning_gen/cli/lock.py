"""One run at a time in a folder: two would write the same checkpoints and rows.

The lock is the operating system's on a file, so it is gone with the process that holds it, however that ends.
"""

import contextlib
import datetime
import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lightning_gen.cli.failures import UsageError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder; where the file system has no locks, do without.

    Raises:
        UsageError: where a run holds it; says which.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _take(path)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()
        if made:
            with contextlib.suppress(OSError):  # a run that came to nothing leaves nothing
                folder.rmdir()


def _take(path: Path) -> TextIO | None:
    while fcntl is not None:
        file = path.open("a+", encoding="utf-8")
        try:
            # not flock, which processes that load data would inherit, and hold a while after a kill
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise UsageError(
                f"A run is under way in {path.parent}{f' ({holder})' if holder else ''}: two would spoil each other's"
                " checkpoints. Wait for it or stop it, or give another folder (--trainer.default_root_dir)."
            ) from error
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # whoever held it has just taken the file away
    else:
        return None
    file.truncate(0)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {platform.node()} since {now}\n")
    file.flush()
    return file
