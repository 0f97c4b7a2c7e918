"""Hyperparameters of a model that was built from another library's files, as those of one from a configuration."""

import inspect
from typing import Any

from lightning_gen.checkpoints import INSTANTIATOR
from lightning_gen.module import GenerativeModule


def is_plain(value: Any) -> bool:
    """Tell whether a value is written into a configuration as it is."""
    return value is None or isinstance(value, (bool, int, float, str, list))


def path_of(kind: type) -> str:
    """Return the import path of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def described(part: object) -> dict[str, Any]:
    """Return class path and arguments of a part, which keeps them by their names; those it does not are defaults."""
    values = {name: getattr(part, name) for name in inspect.signature(type(part)).parameters}
    return {
        "class_path": path_of(type(part)),
        "init_args": {name: value for name, value in values.items() if is_plain(value)},
    }


def describe(module: GenerativeModule, arguments: dict[str, Any]) -> None:
    """Let a module's checkpoints rebuild it from these arguments, which are plain data."""
    module.save_hyperparameters({**arguments, "_class_path": path_of(type(module)), "_instantiator": INSTANTIATOR})
