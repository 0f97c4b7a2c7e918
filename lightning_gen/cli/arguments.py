"""Arguments as they were typed, before they are parsed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def each_option(args: list[str], *names: str) -> Iterator[tuple[int, str]]:
    """Yield the place and the value of an option wherever it is given."""
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in names:
            if equals:
                yield place, value
            elif place + 1 < len(args):
                yield place + 1, args[place + 1]


def nested_nulls(args: list[str]) -> list[str]:
    """Write `--model.a.b null` as `--model.a={"init_args": {"b": null}}`.

    jsonargparse hands a null to the argument of an argument as the text 'None'.
    """
    args = list(args)
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        value = value if equals else args[place + 1] if place + 1 < len(args) else ""
        section, *keys = [key for key in name.split(".") if key != "init_args"]
        if section not in ("--model", "--data") or len(keys) < 2 or value not in ("null", "~"):
            continue
        inner: Any = None
        for key in reversed(keys[1:]):
            inner = {"init_args": {key: inner}}
        args[place : place + (1 if equals else 2)] = [f"{section}.{keys[0]}={json.dumps(inner)}"]
    return args


def chosen_classes(args: list[str], *sections: str) -> dict[str, str]:
    """Return the bare name of the class of each section that flags or configurations choose, the last one.

    Configurations that cannot be read choose nothing: to say so is another place's affair.
    """
    flags = {name: section for section in sections for name in (f"--{section}", f"--{section}.class_path")}
    chosen: dict[int, dict[str, str]] = {}
    for name, section in flags.items():
        chosen |= {place: {section: value} for place, value in each_option(args, name)}
    for place, path in each_option(args, "-c", "--config"):
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        parts = {section: content.get(section) for section in sections} if isinstance(content, dict) else {}
        chosen[place] = {
            key: str(part["class_path"])
            for key, part in parts.items()
            if isinstance(part, dict) and "class_path" in part
        }
    paths = {section: path for place in sorted(chosen) for section, path in chosen[place].items()}
    return {section: path.rpartition(".")[2] for section, path in paths.items()}
