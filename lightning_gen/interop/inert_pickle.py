"""Unpickling without executing: EDM's objects become records, and every name not on a short list is refused.

A pickle may call any function that it names. Here no name of a file is ever looked up: the names on the list stand
for functions of this module, which check their arguments and only store them. The source code of classes, which
EDM's files carry and which is executed when they are unpickled the usual way, is dropped. Weights come out of
storages that torch reads with `weights_only=True`.

What a file can still do is to take time and memory.

References:
    The dangers of unpickling, and finding no class as a remedy
    https://docs.python.org/3/library/pickle.html#restricting-globals
"""

import io
import math
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_PLAIN_DTYPE = re.compile(r"[|<>=]?[biufc][0-9]{1,2}|\\?")


class Refused(ValueError):
    """Something of the file that is not taken."""


class _Inert:
    """What stands in for an object of the file: a pickle can set nothing of it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Refused(f"it sets the state of a {type(self).__name__.strip('_')}.")


class _Function(_Inert):
    """A name on the list: called by the file, it runs a function of this module."""

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[..., object]) -> None:
        self._name, self._function = name, function

    def __call__(self, *args: object) -> object:
        try:
            return self._function(*args)
        except Refused as error:
            raise Refused(f"it calls {self._name}, and {error}") from error
        except Exception as error:
            raise Refused(f"it calls {self._name} in an unusual way ({error}).") from error


@dataclass
class StoredObject(_Inert):
    """An object of a class whose source code is in the file."""

    class_name: str
    attributes: dict[str, Any]


class StoredContainer(_Inert):
    """One of torch's containers of modules."""

    __slots__ = ("attributes",)

    attributes: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        self.attributes = dict_of_names(state, "the state of a container")


class _EasyDict(dict[Any, Any]):
    """A dict whose entries are attributes, too."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise Refused("it sets the state of an EasyDict.")


@dataclass(frozen=True)
class _Storage(_Inert):
    numbers: Tensor


@dataclass(frozen=True)
class StoredTensor(_Inert):
    """A part of a storage, seen as a tensor."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Return a tensor with memory of its own."""
        return self.storage.numbers.as_strided(self.size, self.stride, self.offset).clone()


class _DType(_Inert):
    """A numpy type; the byte order comes as its state."""

    __slots__ = ("name",)

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or not _PLAIN_DTYPE.fullmatch(name):
            raise Refused(f"{name!r} is no type of plain numbers.")
        self.name = name

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or state[2:5] != (None, None, None) or state[1] not in ("<", ">", "|", "="):
            raise Refused("it makes a numpy type of something else than plain numbers.")
        self.name = state[1] + self.name.lstrip("<>|=")


class StoredArray(_Inert):
    """A numpy array; everything comes as its state."""

    __slots__ = ("value",)

    value: "np.ndarray[Any, Any]"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("it makes a numpy array in an unusual way.")
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(_bytes(raw), _dtype(dtype))
        self.value = flat.reshape(_integers(shape), order="F" if fortran else "C").copy()


def _reconstruct_persistent_obj(meta: object) -> StoredObject:
    given = dict_of_names(meta, "what describes an object")
    if given.get("type") != "class" or not isinstance(given.get("class_name"), str):
        raise Refused("describes no object of a class.")
    # the entry `module_src` is the source code
    return StoredObject(given["class_name"], dict_of_names(given.get("state"), "the state of an object"))


def _load_from_bytes(raw: object) -> _Storage:
    file = io.BytesIO(_bytes(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that typed storages are on their way out
        try:
            storage = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # without torch's own words, which advise to read the file by weights_only=False
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            asks = f", which asks for {name[1]}" if name else ""
            raise Refused(f"torch refuses to read the storage within{asks}.") from None
        if not isinstance(storage, torch.storage.TypedStorage):
            raise Refused(f"gives it a {type(storage).__name__} where a storage of numbers should be.")
        numbers: Tensor = torch.empty(0, dtype=storage.dtype)
        return _Storage(numbers.set_(storage))  # type: ignore[call-overload]


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> StoredTensor:
    if not isinstance(storage, _Storage):
        raise Refused("gives it something else than a storage.")
    (start,), sides, steps = _integers((offset,)), _integers(size), _integers(stride)
    if len(sides) != len(steps):
        raise Refused("gives it a size and a stride of different lengths.")
    last = start + sum((n - 1) * step for n, step in zip(sides, steps, strict=True))
    if 0 not in sides and last >= storage.numbers.numel():
        raise Refused("gives it a tensor that reaches beyond its storage.")
    if math.prod(sides) > storage.numbers.numel():
        raise Refused("gives it a tensor of more numbers than its storage holds.")
    return StoredTensor(storage, start, sides, steps)


def _rebuild_parameter(data: object, *_: object) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise Refused("gives it something else than a tensor.")
    return data


def _scalar(dtype: object, raw: object) -> object:
    return np.frombuffer(_bytes(raw), _dtype(dtype)).item()


def _encode(text: object, codec: object) -> bytes:
    if not isinstance(text, str) or codec != "latin1":
        raise Refused(f"encodes by {codec!r}.")
    return text.encode("latin1")


def _not_to_call(*_: object) -> NoReturn:
    raise Refused("it is only named in such a file, never called.")


def _bytes(raw: object) -> bytes:
    if not isinstance(raw, bytes):
        raise Refused(f"gives it a {type(raw).__name__} for bytes.")
    return raw


def _dtype(dtype: object) -> "np.dtype[Any]":
    if not isinstance(dtype, _DType):
        raise Refused("gives it something else than a numpy type.")
    return np.dtype(dtype.name)


def dict_of_names(value: object, what: str) -> dict[str, Any]:
    """Return a dict whose keys are names.

    Raises:
        Refused: for something else.
    """
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Refused(f"{what} is no dict of names.")
    return value


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(type(n) is int and n >= 0 for n in values):
        raise Refused(f"{values!r} are no sizes.")
    return tuple(values)


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent_obj,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.device": lambda *args: ":".join(str(arg) for arg in args),
    "torch.Size": _integers,
    "collections.OrderedDict": lambda items=(): dict(items),
    "builtins.set": lambda items=(): set(items),
    "__builtin__.set": lambda items=(): set(items),
    "_codecs.encode": _encode,
    "numpy.dtype": lambda name, *_: _DType(name),
    "numpy.ndarray": _not_to_call,
    **{
        f"numpy.{core}.multiarray.{name}": function
        for core in ("core", "_core")
        for name, function in (("scalar", _scalar), ("_reconstruct", lambda *_: StoredArray()))
    },
}
# made by `__new__`, for which pickle asks for a class
_TYPES: dict[str, type] = {
    "torch.nn.modules.container.ModuleDict": StoredContainer,
    "torch.nn.modules.container.ModuleList": StoredContainer,
    "torch.nn.modules.container.Sequential": StoredContainer,
    "dnnlib.util.EasyDict": _EasyDict,
}
_DTYPES = {f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")}


class InertUnpickler(pickle.Unpickler):
    """Unpickler of an EDM file that looks up no name of it."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the list.

        Raises:
            Refused: for every other name.
        """
        full = f"{module}.{name}"
        if full in _FUNCTIONS:
            return _Function(full, _FUNCTIONS[full])
        if full in _TYPES:
            return _TYPES[full]
        if full in _DTYPES:
            return full
        raise Refused(
            f"it asks for {full}, which no pickle of EDM's networks needs. Nothing of the file was executed; do not"
            " open it by other means unless you know where it comes from."
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse what is not in the file."""
        raise Refused("it refers to something outside of the file.")
