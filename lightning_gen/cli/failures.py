"""What a person is told when something goes wrong: one paragraph for what could be foreseen.

Torch, Lightning and jsonargparse are looked up only where they have been imported: an exception of theirs
cannot have been raised before.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from lightning_gen.errors import MissingData, MissingExtra, RunError

USAGE, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143

EXTRAS = {"wandb": "wandb", "scipy": "bench"}


class UsageError(Exception):
    """The command cannot be run as it was typed; the message says what to type instead."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the paragraph and the exit code for an error that is expected, None for one that is not."""
    if isinstance(error, UsageError):
        return str(error), USAGE
    if isinstance(error, argparse.ArgumentError):
        from lightning_gen.cli.naming import explain_parsing

        return explain_parsing(error), USAGE
    for explanation in (_peer, _worker, _killed_worker, _ours, _memory, _files, _extra):
        text = explanation(error)
        if text is not None:
            return text, FAILED
    return None


def _ours(error: BaseException) -> str | None:
    expected: tuple[type[BaseException], ...] = (RunError, MissingData, MissingExtra)
    checkpoints = sys.modules.get("lightning_gen.checkpoints")
    if checkpoints is not None:
        expected = (*expected, checkpoints.CheckpointError, checkpoints.CheckpointNotWritten)
    if isinstance(error, expected) or _is("lightning.fabric.utilities.exceptions", "Misconfiguration", error):
        return _paragraph(error)
    if isinstance(error, (ValueError, TypeError)) and raised_here(error):
        return _paragraph(error)
    return None


def _worker(error: BaseException) -> str | None:
    """Explain what this package's code raised in a process that loads data; torch hands on its traceback as a text."""
    text = str(error)
    if not re.match(r"Caught \w+ in DataLoader worker process \d+\.\n", text):
        return None
    raised = re.split(r"^lightning_gen\.[\w.]+: ", text, flags=re.MULTILINE)
    return raised[-1].strip() if len(raised) > 1 else None


def _memory(error: BaseException) -> str | None:
    cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if _is("torch", "OutOfMemoryError", error) or (cpu and isinstance(error, (MemoryError, RuntimeError))):
        first = (str(error).strip() or "Out of memory.").splitlines()[0]
        return (
            f"The {'machine' if cpu else 'device'} has run out of memory ({first[:200]}). Use a smaller batch"
            " (--data.batch_size, with --model.accumulate to keep the batch of a step; --batch_size for sample"
            " and evaluate), a lower precision (--trainer.precision=bf16-mixed) or a smaller network."
        )
    return None


def _peer(error: BaseException) -> str | None:
    told = getattr(error, "other_process", None)
    if told is not None:
        return f"{told}. The other processes have been stopped; checkpoints are as they were before."
    if isinstance(error, RuntimeError) and re.search(r"(closed|reset) by peer", str(error)):
        return "another process of this run has ended, and this one cannot go on without it; that one says why."
    return None


def _killed_worker(error: BaseException) -> str | None:
    killed = re.search(r"DataLoader worker.* (is killed by signal|exited unexpectedly)", str(error))
    # what is seen first may also be that nothing comes through the pipe any more
    loading = any(name.startswith("torch.utils.data") for name in _modules(error))
    cut_off = loading and isinstance(error, (ConnectionError, EOFError))
    if not cut_off and (not isinstance(error, RuntimeError) or killed is None):
        return None
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return (
        f"A process that loads data is gone ({first}): most often the machine has"
        " run out of memory, and the system has ended it. Use fewer of them (--data.num_workers) or smaller batches;"
        " the same command continues from the newest checkpoint."
    )


def _files(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        return None
    name = _name(error.filename)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full{f', writing {name}' if name else ''}. Free some space, or write elsewhere; files"
            " written before are whole, and the same command continues where it was."
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"No permission to write or read {name or 'a file'} ({error.strerror}). Choose another folder"
            " (--trainer.default_root_dir for a run, --out for samples and scores) or change its permissions."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        name = _name(_in_the_way(error.filename)) or "A path"
        return f"{name} is in the way: {error.strerror}. Move it, or choose another path."
    if isinstance(error, FileNotFoundError):
        return f"There is no file or folder {name}." if name else _paragraph(error)
    return None


def _extra(error: BaseException) -> str | None:
    if not isinstance(error, ImportError):
        return None
    name = (error.name or "").split(".")[0]
    # Lightning's loggers name the package in the message alone
    name = name or next((extra for extra in EXTRAS if f"'{extra}" in str(error) or extra in str(error).lower()), "")
    if name in EXTRAS:
        return f"The package '{name}' is not installed: pip install \"lightning_gen[{EXTRAS[name]}]\""
    if raised_here(error):
        return _paragraph(error)
    return None


def is_first_process() -> bool:
    """Of several processes of one run, one speaks, and holds the run's folder."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") in ("0", "") for name in ranks)


@contextmanager
def usage() -> Iterator[None]:
    """Take a value that this package's own code refuses in the block for wrong usage."""
    try:
        yield
    except ValueError as error:
        if raised_here(error):
            raise UsageError(str(error)) from error
        raise


def causes(error: BaseException) -> list[BaseException]:
    """Return the error and those that it was raised for, the first one first."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    return chain[::-1]


def _modules(error: BaseException) -> list[str]:
    """Name the modules that the exception came through, the one that raised it last."""
    names: list[str] = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        names.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return names


def raised_here(error: BaseException) -> bool:
    """Whether the exception was raised by this package's own code, which raises for what it can explain."""
    return raised_in(error, "lightning_gen")


def raised_in(error: BaseException, package: str) -> bool:
    """Whether the exception was raised by the code of a package."""
    return [name.split(".")[0] for name in _modules(error)[-1:]] == [package]


def _is(module: str, name: str, error: BaseException) -> bool:
    if module not in sys.modules:
        return False
    return any(cls.__name__.startswith(name) for cls in type(error).__mro__)


def _in_the_way(filename: object) -> object:
    """Return the file that stands where a folder of this path should be, else the path."""
    if not isinstance(filename, (str, Path)):
        return filename
    return next((above for above in Path(filename).parents if above.is_file()), filename)


def _name(filename: object) -> str:
    if isinstance(filename, bytes):
        return f"'{filename.decode(errors='replace')}'"
    if isinstance(filename, (str, Path)) and str(filename):
        # the name of a file being written is of no use to anybody
        path = Path(filename)
        if path.name.startswith(".") and path.name.endswith(".partial"):
            path = path.with_name(path.name[1:].rsplit(".", 2)[0])
        return f"'{path}'"
    return ""


def _paragraph(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # without the number that str() opens with
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
