"""Checkpoints in folders: each process of a sharded run writes its parts, and any number of processes reads them.

`torch.distributed.checkpoint` reads its folders by unpickling, which may execute what a file says. Here names that
are not on a short list are refused, and values are read with `weights_only=True`.
"""

import io
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.optim import Optimizer

from lightning_gen.errors import CheckpointError

# Lightning's name for what is in no part
REST, INDEX = "meta.pt", ".metadata"
_RECORDS = (
    "ChunkStorageMetadata|TensorStorageMetadata|BytesStorageMetadata|Metadata|MetadataIndex|TensorProperties|StorageMeta"
    "|_MEM_FORMAT_ENCODING"
)
_NAMES = re.compile(
    rf"torch\.distributed\.checkpoint\.(metadata\.({_RECORDS})|filesystem\._Storage(Info|Prefix))"
    r"|torch\.(Size|bool|bfloat16|u?int\d+|float\d+\w*|complex\d+)|torch\.serialization\._get_layout"
)


def is_checkpoint_folder(path: str | Path) -> bool:
    """Tell whether a folder is a checkpoint, whole or not, and no run folder."""
    path = Path(path)
    return path.is_dir() and ((path / REST).is_file() or (path / INDEX).is_file() or path.suffix == ".ckpt")


# ---------------------------------------------------------------------- writing


@contextmanager
def written_together(path: Path, first: bool, barrier: Callable[[], Any]) -> Iterator[Path]:
    """Give a folder's name beside `path` that all processes write to, and rename it to `path` once it is whole.

    Args:
        path: the target.
        first: whether this is the first process, which makes and renames.
        barrier: waits for all processes.
    """
    partial = path.with_name(f".{path.name}.partial")
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
    barrier()
    yield partial
    if first:
        with (partial / REST).open("rb") as file:
            os.fsync(file.fileno())
        discard(path, partial)
    barrier()


def discard(path: Path, instead: Path | None = None) -> None:
    """Remove a checkpoint, file or folder, at one stroke; put another one in its place where one is given."""
    old = path.with_name(f".{path.name}.discarded")
    _remove(old)
    if path.exists():
        os.replace(path, old)
    if instead is not None:
        os.replace(instead, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------- reading


class _Index(pickle.Unpickler):
    """Reads the index: names of torch's own records and of plain types, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name.endswith("Path"):
            return PurePath  # where it was written
        if not _NAMES.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        check_parts(Path(self.path))
        index: Metadata = _Index(io.BytesIO((Path(self.path) / INDEX).read_bytes())).load()
        from torch.distributed.checkpoint.metadata import StorageMeta

        if getattr(index, "storage_meta", None) is None:
            index.storage_meta = StorageMeta()
        index.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return index


class _PlainValues:
    """Values that are no tensors are plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # else an error
        value.seek(0)
        super().load_bytes(read_item, value)  # type: ignore[misc]


class _Planner(_PlainValues, DefaultLoadPlanner):
    pass


class _WholePlanner(_PlainValues, _EmptyStateDictLoadPlanner):
    pass


def check_parts(path: Path) -> None:
    """Refuse a folder that lacks what is written last.

    Raises:
        CheckpointError: says what is missing.
    """
    missing = [name for name in (INDEX, REST) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"The checkpoint {path} has no {' and no '.join(missing)}: its writing or its copying was stopped."
        )


def read_rest(path: Path) -> dict[str, Any]:
    """Read what a checkpoint holds besides weights and the states of optimizers.

    Raises:
        CheckpointError: where it is not whole, or holds more than tensors and plain data.
    """
    check_parts(path)
    with _told(path):
        rest: dict[str, Any] = torch.load(path / REST, map_location="cpu", weights_only=True)
    return rest


def read_whole(path: Path) -> dict[str, Any]:
    """Read a folder in one process, as the checkpoint that one process would have written.

    Raises:
        CheckpointError: where it is damaged, or holds more than tensors and plain data.
    """
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    checkpoint, state = read_rest(path), dict[str, Any]()
    with _told(path):
        _load_state_dict(state, storage_reader=_Reader(path), planner=_WholePlanner(), no_dist=True)  # type: ignore[no-untyped-call]
    checkpoint["state_dict"] = state.pop("state_dict", {})
    numbers = sorted(int(key.removeprefix("optimizer_")) for key in state if key.startswith("optimizer_"))
    if numbers:
        checkpoint["optimizer_states"] = [_by_number(state[f"optimizer_{number}"]) for number in numbers]
    return checkpoint


def _by_number(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Call the parameters of an optimizer by their numbers, as an optimizer itself does, and not by name."""
    groups = saved["param_groups"]
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    return {
        "state": {numbers[name]: entry for name, entry in saved.get("state", {}).items()},
        "param_groups": [group | {"params": [numbers[name] for name in group["params"]]} for group in groups],
    }


def load_parts(path: Path, model: nn.Module, optimizers: Sequence[Optimizer], strict: bool = True) -> dict[str, Any]:
    """Let each process of a sharded model read its parts, however many processes wrote them.

    Returns:
        What the checkpoint holds besides.

    Raises:
        CheckpointError: where it is damaged, or holds more than tensors and plain data.
    """
    from torch.distributed.checkpoint import state_dict as states
    from torch.distributed.checkpoint.state_dict_loader import load

    rest = read_rest(path)
    with _told(path):
        weights: dict[str, Any] = {"state_dict": states.get_model_state_dict(model)}
        load(weights, storage_reader=_Reader(path), planner=_Planner())
        model.load_state_dict(weights["state_dict"], strict=strict)
        for number, optimizer in enumerate(optimizers):
            key = f"optimizer_{number}"
            moved: dict[str, Any] = {key: states.get_optimizer_state_dict(model, optimizer)}
            load(moved, storage_reader=_Reader(path), planner=_Planner())
            states.set_optimizer_state_dict(model, optimizer, optim_state_dict=moved[key])
    return rest


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what is wrong with a folder; torch's own exception is none of `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        if isinstance(first, CheckpointError):
            raise first from error
        raise CheckpointError(f"The checkpoint {path} cannot be read: {type(first).__name__}: {first}") from error
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}") from error
