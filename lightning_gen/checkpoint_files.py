"""Checkpoint files: written whole, read without executing anything, found in a run folder.

Files are read by torch with `weights_only=True`, which builds tensors and plain data and nothing else. A folder that
the processes of a sharded run wrote together is read as if it were the file of one; see `checkpoint_folders`.
"""

import errno
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_gen.checkpoint_folders import is_checkpoint_folder, read_rest, read_whole
from lightning_gen.errors import CheckpointError
from lightning_gen.files import written_whole


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; the message names the folder and what to do."""


# ---------------------------------------------------------------------- writing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or not there.

    Lightning's own writing leaves an empty file where the temporary folder is on another disk, and none,
    without an error, in a folder that cannot be written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write beside the target, flush, rename.

        Raises:
            CheckpointNotWritten: where it cannot be written; an earlier checkpoint of this name is intact.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with written_whole(path) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise_not_written(error, Path(path))
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; see `load_checkpoint`."""
        if weights_only is False or "://" in str(path):
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return loaded
        return load_checkpoint(path, map_location)


def raise_not_written(error: BaseException, path: Path) -> None:
    """Say what the disk refused; does nothing where an error is none of the disk's.

    Raises:
        CheckpointNotWritten: names the folder, and what to do.
    """
    cause = _disk_error(error)
    if cause is not None:
        raise CheckpointNotWritten(cause.errno or errno.EIO, _not_written(path, cause)) from error


def _disk_error(error: BaseException) -> OSError | None:
    """Find the error of the disk; torch's writer, stopped by one, raises a RuntimeError of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    if re.search(r"PytorchStreamWriter|unexpected pos|file write failed", str(error)):
        return OSError(errno.EIO, "writing stopped short")
    return None


def _not_written(path: Path, error: OSError) -> str:
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        why, do = "the disk is full", "Free some space"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        why, do = "the folder cannot be written", "Change its permissions"
    else:
        why, do = error.strerror or str(error), "See to the folder"
    return (
        f"The checkpoint '{path.name}' could not be written to {folder}: {why}. {do}, or choose another folder"
        " (--trainer.default_root_dir); checkpoints written before are intact, and the run continues from them."
    )


# ---------------------------------------------------------------------- reading


def load_checkpoint(path: str | Path, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain data; nothing in the file is executed.

    Args:
        path: the file, or the folder of a sharded run.
        map_location: the device to put its tensors on; those of a folder stay on the CPU.
        mmap: leave the tensors of a file on the disk until they are used.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: where it is cut short, damaged, no checkpoint, or holds anything but tensors and
            plain data.
    """
    path = Path(path)
    if is_checkpoint_folder(path):
        return read_whole(path)
    _check_archive(path)
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(
            f"The checkpoint {path} is damaged: its part '{damaged}' does not match its checksum. {_instead(path)}"
        )
    return _unpickle(path, map_location, mmap)


def checked(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of which its weights are not wanted: a file as a whole, a folder without its weights.

    A folder may be larger than a process's memory; it has its name only once it is whole.

    Raises:
        FileNotFoundError: where there is no such file.
        CheckpointError: see `load_checkpoint`.
    """
    return peek(path) if is_checkpoint_folder(path) else load_checkpoint(path)


def peek(path: str | Path) -> dict[str, Any]:
    """Read what a checkpoint says, leaving its tensors on the disk; damage to these is not noticed."""
    path = Path(path)
    if is_checkpoint_folder(path):
        return read_rest(path)
    _check_archive(path)
    return _unpickle(path, "cpu", mmap=True)


def _check_archive(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a checkpoint is a file, such as {path}/checkpoints/last.ckpt.")
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.{_neighbours(path)}")
    if zipfile.is_zipfile(path):
        return
    with path.open("rb") as file:
        begins = file.read(2)
    if begins == b"PK" or path.stat().st_size == 0:
        size = path.stat().st_size
        raise CheckpointError(
            f"The checkpoint {path} is cut short ({size} bytes): its copy or download stopped, or the disk was"
            f" full. {_instead(path)}"
        )
    raise CheckpointError(f"{path} is not a checkpoint: torch.save writes a zip archive, and this is none.")


def _unpickle(path: Path, map_location: Any, mmap: bool) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported (?:class|operand)|global:?)\s+([\w.]+)", str(error))
        raise CheckpointError(
            f"{path} holds more than tensors and plain data{f' ({found[1]})' if found else ''}. Reading it would"
            " execute code that is in the file, so it is refused. If it is a checkpoint of your own, save it anew"
            " with plain hyperparameters."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {_first_line(error)}. {_instead(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        what = f"a dict of {', '.join(map(repr, list(checkpoint)[:4]))}" if isinstance(checkpoint, dict) else "no dict"
        raise CheckpointError(f"{path} is no checkpoint of a trainer: it holds {what}, and no 'state_dict'.")
    return checkpoint


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _neighbours(path: Path) -> str:
    here = sorted(other.name for other in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
    return f" The folder holds: {', '.join(here[:8])}." if here else ""


def _instead(path: Path) -> str:
    others = sorted(other.name for other in path.parent.glob("*.ckpt") if other != path)
    return f"Use another one of the folder: {', '.join(others[:8])}." if others else "Use another one."


# ---------------------------------------------------------------------- run folders


@dataclass(frozen=True)
class Found:
    """A checkpoint of a run folder, or why one cannot be read."""

    path: Path
    step: int
    modified: float
    error: str | None = None


def checkpoints_in(folder: str | Path, *more: str | Path) -> list[Found]:
    """List the checkpoints of a run folder, newest first: by iterations, then by time; unreadable ones last."""
    folder = Path(folder)
    paths: dict[Path, None] = {}
    for place in (folder / "checkpoints", folder, *map(Path, more)):
        paths.update(dict.fromkeys(path for path in sorted(place.glob("*.ckpt"))))
    return sorted(map(_look, paths), key=lambda found: (found.error is None, found.step, found.modified), reverse=True)


def _look(path: Path) -> Found:
    modified = path.stat().st_mtime
    try:
        return Found(path, int(peek(path).get("global_step", 0)), modified)
    except (CheckpointError, OSError) as error:
        return Found(path, -1, modified, str(error))


def find_checkpoint(path: str | Path) -> Path:
    """Return a checkpoint as it is given, and the newest readable one of a run folder.

    Raises:
        FileNotFoundError: where there is none.
        CheckpointError: where a folder holds none that can be read.
    """
    path = Path(path)
    if not path.is_dir() or is_checkpoint_folder(path):
        if not path.exists():
            raise FileNotFoundError(f"There is no checkpoint or run folder {path}.{_neighbours(path)}")
        return path
    found = checkpoints_in(path)
    if not found:
        raise FileNotFoundError(f"The folder {path} holds no checkpoint, neither in checkpoints/ nor directly.")
    if found[0].error is not None:
        raise CheckpointError(f"No checkpoint of {path} can be read. {found[0].error}")
    return found[0].path
