"""Models and data rebuilt from a checkpoint alone.

What a checkpoint says about classes is checked before a class is looked up: lightning_gen's own modules are
imported, other modules must have been imported by the person who loads it, and Python's own library is
refused. The files themselves are read by `checkpoint_files`, whose names are here too.
"""

import importlib
import importlib.util
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule

from lightning_gen import __version__
from lightning_gen.checkpoint_files import (
    AtomicCheckpointIO,
    CheckpointNotWritten,
    Found,
    checked,
    checkpoints_in,
    find_checkpoint,
    load_checkpoint,
    peek,
)
from lightning_gen.errors import CheckpointError
from lightning_gen.module import GenerativeModule

__all__ = [
    "INSTANTIATOR",
    "AtomicCheckpointIO",
    "CheckpointError",
    "CheckpointNotWritten",
    "Found",
    "checked",
    "checkpoints_in",
    "find_checkpoint",
    "load_checkpoint",
    "load_module",
    "peek",
    "rebuild_data",
    "rebuild_module",
    "without_training",
]

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"

Part = TypeVar("Part", GenerativeModule, LightningDataModule)


def load_module(path: str | Path, map_location: Any = "cpu") -> GenerativeModule:
    """Rebuild a model from its checkpoint alone, in evaluation mode.

    Args:
        path: a checkpoint of a run that came from a configuration, or its run folder.
        map_location: the device to put it on.

    Raises:
        CheckpointError: where the file cannot be used; see also `load_checkpoint`.
    """
    path = find_checkpoint(path)
    return rebuild_module(load_checkpoint(path), path).to(map_location)


def rebuild_module(checkpoint: dict[str, Any], path: str | Path) -> GenerativeModule:
    """Build the model that a checkpoint describes and give it its weights; see `load_module`."""
    hyperparameters = dict(checkpoint.get("hyper_parameters") or {})
    if "_class_path" not in hyperparameters:
        raise CheckpointError(
            f"The checkpoint {path} does not say which networks it was made of: its model was built in Python, not"
            " from a configuration. Load it with the networks given:"
            f" GAN.load_from_checkpoint('{path}', generator=..., discriminator=...)."
        )
    module = _build(GenerativeModule, dict(hyperparameters), path)  # type: ignore[type-abstract]
    module.save_hyperparameters(hyperparameters)  # it was given the parts, and is to say what describes them
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {path} do not fit the model that it describes{_versions(checkpoint)}: {error}"
        ) from error
    return module.eval()


def without_training(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of the model and its data, without a trainer's state."""
    training = ("optimizer_states", "lr_schedulers", "callbacks", "loops")
    return {key: value for key, value in checkpoint.items() if key not in training}


def rebuild_data(checkpoint: dict[str, Any], path: str | Path) -> LightningDataModule | None:
    """Build the data module that a checkpoint names, or return None where it names none."""
    hyperparameters = dict(checkpoint.get("datamodule_hyper_parameters") or {})
    if "_class_path" not in hyperparameters:
        return None
    return _build(LightningDataModule, hyperparameters, path)


def _build(base: type[Part], hyperparameters: dict[str, Any], path: str | Path) -> Part:
    from lightning.pytorch.cli import instantiate_module

    instantiator = hyperparameters.pop("_instantiator", INSTANTIATOR)
    if instantiator != INSTANTIATOR:
        raise CheckpointError(f"The checkpoint {path} asks to be built by '{instantiator}', which is refused.")
    check_names(hyperparameters, path)
    try:
        # the initial weights, replaced at once, shall not move the caller's random numbers
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Lightning's own calls of names that jsonargparse is going to change
            warnings.simplefilter("ignore", DeprecationWarning)
            built = instantiate_module(base, hyperparameters)
    except (SystemExit, Exception) as error:
        raise CheckpointError(
            f"The {base.__name__} '{hyperparameters['_class_path']}' cannot be built from what {path} says"
            f" (lightning_gen {__version__}): {_reason(error)}"
        ) from error
    if not isinstance(built, base):
        raise CheckpointError(f"The checkpoint {path} names no {base.__name__} but a {type(built).__name__}.")
    return built


def check_names(hyperparameters: Any, path: str | Path) -> None:
    """Import lightning_gen's own classes that hyperparameters name, and refuse all that is not imported yet.

    Raises:
        CheckpointError: for a module that the caller has not imported, or one of Python's own library.
    """
    for name, is_class in _dotted_names(hyperparameters):
        root = name.split(".")[0]
        module = name.rpartition(".")[0]
        if root in sys.stdlib_module_names and (is_class or module in sys.modules):
            raise CheckpointError(f"The checkpoint {path} names '{name}', no part of a model: it is refused.")
        if root == "lightning_gen":
            _import_own(module)
        elif module not in sys.modules and (is_class or _exists(root)):
            raise CheckpointError(
                f"The checkpoint {path} was made with '{name}', and the module '{module}' is not imported. If you"
                f" trust it, import it first: `import {module}` in Python, --import {module} on the command line."
            )


def _dotted_names(value: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Yield every text that has the form of an import path, and whether it names a class for sure."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _dotted_names(inner, str(inner_key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _dotted_names(inner)
    elif isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        yield value, key in ("class_path", "_class_path")


def _exists(root: str) -> bool:
    """Whether a string with dots in it could be imported at all: file names are strings with dots too."""
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return False


def _import_own(module: str) -> None:
    while module and module not in sys.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            module = module.rpartition(".")[0]


def _versions(checkpoint: dict[str, Any]) -> str:
    made = (checkpoint.get("lightning_gen") or {}).get("version")
    return f" (made by lightning_gen {made}, this is {__version__})" if made and made != __version__ else ""


def _reason(error: BaseException) -> str:
    """Return what one of our classes says of why it cannot be built, else what the parser says."""
    at: BaseException | None = error
    while at is not None:
        frames = traceback.extract_tb(at.__traceback__)
        if frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parent):
            return str(at)
        at = at.__cause__ or at.__context__
    return _leaf(error)


def _leaf(error: BaseException) -> str:
    """Return the line of a parser's message that tells what is wrong."""
    lines = [line for line in str(error).splitlines() if re.search(r"not accepted|Expected|required|No module", line)]
    deepest = max(lines, key=lambda line: len(line) - len(line.lstrip()), default=str(error))
    return deepest.strip(" -")
