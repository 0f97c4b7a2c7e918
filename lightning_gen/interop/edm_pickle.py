"""Networks in NVIDIA's EDM pickles, read without executing anything of them; see `inert_pickle`.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models
    https://arxiv.org/abs/2206.00364
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_gen.interop.inert_pickle import (
    InertUnpickler,
    Refused,
    StoredArray,
    StoredContainer,
    StoredObject,
    StoredTensor,
    dict_of_names,
)

_DEEPEST = 50


@dataclass(frozen=True)
class EDMNetwork:
    """A network of an EDM pickle.

    Attributes:
        class_name: "EDMPrecond", "VPPrecond", "SongUNet" ...
        arguments: what its constructor was given, by name; plain Python values.
        state: all its weights and buffers by their names, on the CPU.
        model: the network inside of a preconditioned one.
    """

    class_name: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    model: "EDMNetwork | None" = None


def read_edm_pickle(path: str | Path, key: str = "ema") -> EDMNetwork:
    """Read a network of an EDM pickle.

    Args:
        path: the file, `network-snapshot-*.pkl` or one of the published ones.
        key: which of its entries.

    Raises:
        ValueError: where the file asks for a name that is not on the list, or is no EDM pickle; names it.
    """
    with open(path, "rb") as file:
        try:
            content = InertUnpickler(file).load()
        except Refused as error:
            raise ValueError(f"{path} is not read: {error}") from error
        except Exception as error:  # a broken pickle fails in any way
            raise ValueError(f"{path} is no EDM pickle, or broken: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get(key), StoredObject):
        networks = [name for name, value in content.items() if _is_module(value)] if isinstance(content, dict) else []
        listed = ", ".join(map(str, networks)) or "none"
        raise ValueError(f"{path} holds no network '{key}'; its networks are: {listed}.")
    try:
        return _network(content[key])
    except Refused as error:
        raise ValueError(f"{path} is not read: {error}") from error


def _is_module(value: object) -> bool:
    return isinstance(value, StoredObject) and "_modules" in value.attributes


def _network(given: StoredObject) -> EDMNetwork:
    state = dict(_tensors(given, "", set()))
    inner = dict_of_names(given.attributes.get("_modules"), "a list of modules").get("model")
    model = None
    if isinstance(inner, StoredObject):
        inside = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        model = EDMNetwork(inner.class_name, _arguments(inner), inside)
    return EDMNetwork(given.class_name, _arguments(given), state, model)


def _arguments(given: StoredObject) -> dict[str, Any]:
    if given.attributes.get("_init_args"):
        raise Refused(f"its {given.class_name} was given arguments without names.")
    return dict_of_names(_plain(given.attributes.get("_init_kwargs")), f"what {given.class_name} was given")


def _tensors(module: object, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Go through the weights of a module as `state_dict` names them."""
    if module is None:
        return
    if not isinstance(module, StoredObject | StoredContainer):
        raise Refused(f"'{prefix.rstrip('.')}' is no module.")
    if id(module) in seen:
        raise Refused(f"'{prefix.rstrip('.')}' is a module that is somewhere else, too.")
    seen.add(id(module))
    attributes = module.attributes
    passing = attributes.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, value in dict_of_names(attributes.get(kind), f"the {kind.strip('_')} of '{prefix}'").items():
            if value is None or (kind == "_buffers" and name in passing):
                continue
            if not isinstance(value, StoredTensor):
                raise Refused(f"'{prefix}{name}' is no tensor.")
            yield prefix + name, value.tensor()
    for name, part in dict_of_names(attributes.get("_modules"), f"the modules of '{prefix}'").items():
        yield from _tensors(part, f"{prefix}{name}.", seen)


def _plain(value: Any, depth: int = 0) -> Any:
    """Return lists and dicts of numbers and strings."""
    if depth > _DEEPEST:
        raise Refused("an argument is nested too deeply.")
    if isinstance(value, Mapping):
        return {name: _plain(entry, depth + 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, depth + 1) for entry in value]
    if isinstance(value, StoredArray):
        return value.value.tolist()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise Refused(f"an argument of a network is a {type(value).__name__.strip('_')}.")
