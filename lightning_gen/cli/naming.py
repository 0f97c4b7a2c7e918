"""What jsonargparse found wrong, in one paragraph with the nearest names.

Its messages are trees: the key, then every type that the value was tried for, then the keys inside. What a
person has to know is a leaf: which key, what was given, what is accepted.
"""

import argparse
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any, get_args

from lightning_gen.errors import did_you_mean, nearest

_KEY = re.compile(r'(?:^\s*(?:- )?|callable class: )(?:Parser key|Problem with parser key) "([\w.]+)"', re.IGNORECASE)
# an optimizer or a schedule is made later, by a function: its class stands behind what is wrong
_CLASS = re.compile(r"(?:Problem with given class_path |Got value: Namespace\(class_path=)'([\w.]+)'")
_OPTION = re.compile(r"(?:Option '([\w.]+)' is not accepted|does not accept option '([\w.]+)')")
_IMPORT = re.compile(r"Expected a dot import path string: (\S+)")
_GIVEN = re.compile(r"^\s*Given value: (.*)", re.MULTILINE)
_PATHS = re.compile(r"Unrecognized arguments: (.+)|unrecognized arguments: (.+)")


def explain_parsing(error: BaseException, keys: Iterable[str] = ()) -> str:
    """Say what is wrong in one paragraph.

    Args:
        error: jsonargparse's ArgumentError; its attribute `chosen` names the classes of the sections, where known.
        keys: the keys that the command accepts; an attribute `keys` of the error is used where none are given.
    """
    message = error.message if isinstance(error, argparse.ArgumentError) else str(error)
    keys = list(keys) or list(getattr(error, "keys", ()))
    if match := re.match(r"--([\w.]+)\.help: ", message):
        message = f'Parser key "{match[1]}":\n{message}'
    if text := _unrecognized(message, keys, getattr(error, "chosen", {})):
        return text
    for explanation in (_wrong_option, _wrong_class, _required, _file, _wrong_value):
        text = explanation(message, keys)
        if text:
            return text
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip())


def _path(lines: list[str]) -> tuple[str, str]:
    """Follow the tree to its last line: the full key, and the innermost class on the way."""
    keys, cls = [], ""
    for line in lines:
        keys += _KEY.findall(line)
        if match := _CLASS.search(line):
            cls = match[1]
    return ".".join(keys), cls


def _unrecognized(message: str, keys: list[str], chosen: Mapping[str, str]) -> str:
    match = _PATHS.search(message)
    if not match:
        return ""
    given = (match[1] or match[2]).split()
    where, cls = _path(message[: match.start()].splitlines())
    flag = given[0].lstrip("-").split("=")[0]
    full = f"{where}.{flag}" if where else flag
    first, dot, rest = flag.partition(".")
    allowed = accepted(cls) if cls else sorted({key.partition(".")[0] for key in keys} - {"help"})
    if dot and first in allowed and cls:
        return f"There is no option --{full}: '{where}.{first}' takes a value, and no keys below it."
    if dot and first not in allowed:
        names = [f"--{where}.{name}.{rest}".replace("--.", "--") for name in nearest(first, allowed)]
        advice = f" Did you mean {' or '.join(names)}?" if names else ""
    else:
        advice = _flags_like(full, keys) or _elsewhere(full, chosen)
    return f"There is no option --{full}.{advice} `--help_all` lists all options."


def _elsewhere(flag: str, chosen: Mapping[str, str]) -> str:
    """Say where an argument is that was named without its section: in the class chosen, if one is."""
    for section in ("model", "data"):
        known = (cls for base in _bases(section, "") for cls in _subclasses(base))
        classes = (cls for cls in known if chosen.get(section, cls.__name__) == cls.__name__)
        if any(flag in accepted(f"{cls.__module__}.{cls.__qualname__}") for cls in classes):
            return f" Did you mean --{section}.{flag}?"
    return ""


def _flags_like(flag: str, keys: list[str]) -> str:
    section = flag.rpartition(".")[0]
    here = [key for key in keys if key.rpartition(".")[0] == section] if section else []
    names = nearest(flag, here or keys)
    return f" Did you mean {' or '.join(f'--{name}' for name in names)}?" if names else ""


def _wrong_option(message: str, keys: list[str]) -> str:
    lines = message.splitlines()
    for number, line in enumerate(lines):
        if match := _OPTION.search(line):
            option = match[1] or match[2]
            where, cls = _path(lines[: number + 1])
            if not cls:
                full = f"{where}.{option}" if where else option
                return f"There is no key '{full}'.{_flags_like(full, keys)}"
            allowed = accepted(cls)
            wrong = option.split(".")[0]
            advice = did_you_mean(wrong, allowed) or (f" It accepts: {', '.join(allowed)}." if allowed else "")
            if wrong == "init_arg":
                advice = " Did you mean 'init_args'?"
            return f"{cls.rpartition('.')[2]} ({where}) has no argument '{wrong}'.{advice}"
    return ""


def _wrong_class(message: str, keys: list[str]) -> str:
    lines = message.splitlines()
    for number, line in enumerate(lines):
        imported = _IMPORT.search(line)
        missing = re.search(r"No module named '([\w.]+)'|has no attribute '(\w+)'", line)
        if not imported and not missing:
            continue
        where, cls = _path(lines[:number])
        if missing:
            return f"The class '{cls}' ({where}) cannot be imported: {line.strip(' -')}. Is its path right?"
        name = imported[1] if imported else ""
        owner = _owner(lines[:number])
        known = list(class_names(where, owner))
        names = list(_names_in(_annotation(where, owner)))
        advice = did_you_mean(name, [*names, *known]) or did_you_mean(f"{name}DataModule", known)
        if names:
            advice += f" By name there are: {', '.join(names)}."
        elif known and not advice:
            advice = f" Known are: {', '.join(sorted(known)[:20])}."
        return f"There is no class '{name}' for '{where}'.{advice} Classes of your own are given by import path."
    return ""


def _owner(lines: list[str]) -> str:
    """The class whose argument the last key is."""
    return _path(lines)[1]


def _required(message: str, keys: list[str]) -> str:
    match = re.search(r"following arguments are required: (.+)", message)
    if not match:
        return ""
    where, cls = _path(message[: match.start()].splitlines())
    missing = match[1].strip()
    if cls:
        return f"{cls.rpartition('.')[2]} ({where}) needs a value for: {missing}."
    names = sorted((name.split(".", 1)[-1] for name in re.split(r",\s*", missing)), reverse=True)
    return (
        f"Nothing says which {' and '.join(names)} to use. Give a configuration (-c NAME_OR_FILE; `lightning-gen"
        f" list` shows the packaged ones) or {' '.join(f'--{name} CLASS' for name in names)}."
    )


def _file(message: str, keys: list[str]) -> str:
    match = re.search(r"File does not exist: '?([^'\n]+)'?", message)
    return f"There is no file {match[1]}." if match else ""


def _wrong_value(message: str, keys: list[str]) -> str:
    """Name the key, what it was given, and what it takes."""
    lines = message.splitlines()
    where, _ = _path(lines)
    if not where:
        return ""
    depth = max((number for number, line in enumerate(lines) if _KEY.search(line)), default=0)
    owner = _path(lines[:depth])[1]
    # what is wrong with the key is indented below it; what follows is of the keys around it
    about = list(takewhile(lambda line: _indent(line) > _indent(lines[depth]), filter(str.strip, lines[depth + 1 :])))
    given = _given([lines[depth], *about])
    wanted: list[str] = []
    advice = ""
    for line in about:
        if "is abstract" in line:
            names = " | ".join(sorted(class_names(where, owner))) or "CLASS"
            return f"'{where}' is null and has no keys yet: name its class first, --{where} {names}."
        if "Expected a path" in line:
            continue
        if match := re.search(r"Expected (?:an? )?(.+?)(?:\. Got value: .*)?$", line):
            wanted.append(_readable(match[1]))
            advice += did_you_mean(given, _literals(match[1]))
        elif "expected" in line.lower() or "invalid" in line.lower():
            wanted.append(line.strip(" -"))
    if not wanted:
        return ""
    if "a list" in wanted and given in class_names(where, owner):
        advice += f" Did you mean '[{given}]'?"
    return f"'{where}' takes {' or '.join(dict.fromkeys(wanted))}; given was '{given}'.{advice}"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _given(lines: list[str]) -> str:
    """Return the value that was refused."""
    text = "\n".join(lines)
    match = re.search(r"Got value: (.*?)(?:\. Got value: .*)?$", text, re.MULTILINE) or _GIVEN.search(text)
    return re.sub(r"^NestedArg\(key='[^']*', val=(.*)\)$", r"\1", match[1]).strip("'") if match else ""


def _literals(kind: str) -> list[str]:
    """Return the values that a Literal allows."""
    match = re.search(r"Literal\[(.*)\]", kind)
    return [value.strip(" '\"") for value in match[1].split(",")] if match else []


def _readable(kind: str) -> str:
    kind = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", kind.strip())
    names = {"NoneType": "null", "int": "an integer", "float": "a number", "bool": "true or false", "str": "a text"}
    names["list"] = "a list"
    if match := re.fullmatch(r"tuple with (\d+) elements", kind):
        return f"a list of {match[1]}"
    if values := _literals(kind):
        return f"{'one of ' if len(values) > 1 else ''}{', '.join(values)}"
    return names.get(kind, re.sub(r"typing\.|collections\.abc\.", "", kind))


# ---------------------------------------------------------------------- what there is


def accepted(class_path: str) -> list[str]:
    """Return the arguments that a class takes."""
    cls = _load(class_path)
    if cls is None:
        return []
    try:
        from jsonargparse._parameter_resolvers import get_signature_parameters

        return [parameter.name for parameter in get_signature_parameters(cls, None)]
    except Exception:
        # the private function may move: the plain signature says nearly as much
        return [name for name in inspect.signature(cls).parameters if name not in ("args", "kwargs")]


def class_names(key: str, owner: str = "") -> Iterator[str]:
    """Yield the bare names of the classes that a key may name."""
    for base in _bases(key, owner):
        concrete = (cls.__name__ for cls in _subclasses(base) if not inspect.isabstract(cls))
        yield from dict.fromkeys(name for name in concrete if not name.startswith("_"))


def _bases(key: str, owner: str) -> list[type]:
    from lightning.pytorch import Callback, LightningDataModule
    from lightning.pytorch.loggers import Logger

    from lightning_gen.module import GenerativeModule

    known: dict[str, type] = {"model": GenerativeModule, "data": LightningDataModule}
    known |= {"trainer.callbacks": Callback, "trainer.logger": Logger}
    if not owner:
        return [known[key]] if key in known else []
    return list(_classes_in(_annotation(key, owner)))


def _annotation(key: str, owner: str) -> Any:
    """Return the type of the argument of a class that a key names."""
    cls: Any = _load(owner) if owner else None
    parameter = inspect.signature(cls).parameters.get(key.rpartition(".")[2]) if cls is not None else None
    return parameter.annotation if parameter is not None else None


def _names_in(annotation: Any) -> Iterator[str]:
    """Yield the literal texts that a type allows."""
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        elif not isinstance(argument, list):
            yield from _names_in(argument)


def _classes_in(annotation: Any) -> Iterator[type]:
    arguments: tuple[Any, ...] = get_args(annotation)
    if isinstance(annotation, type) and annotation.__module__ != "builtins" and not arguments:
        yield annotation
    for argument in arguments:
        if not isinstance(argument, list):  # the arguments of a Callable
            yield from _classes_in(argument)


def _subclasses(cls: type) -> Iterator[type]:
    yield cls
    children: list[type] = cls.__subclasses__()
    for inner in children:
        yield from _subclasses(inner)


def _load(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None
