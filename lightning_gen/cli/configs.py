"""The packaged configurations: found by their short names, listed with what they are recorded to reach.

A configuration opens with comments: a first line that is its title, then lines `# key: value`. A value may
go on in further comment lines, up to the next key.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gen.cli.failures import UsageError
from lightning_gen.errors import did_you_mean

if TYPE_CHECKING:
    from importlib.abc import Traversable

KEYS = ("paper", "hardware", "time", "result", "command")
NOT_RUN = "not yet run"


@dataclass
class Header:
    """What the comments at the head of a configuration say."""

    title: str = ""
    values: dict[str, str] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """The recorded result, or that there is none."""
        return self.values.get("result") or NOT_RUN


def read_header(text: str) -> Header:
    """Read the comments that a configuration opens with."""
    header, key = Header(), ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        line = line[1:].strip()
        match = re.match(rf"({'|'.join(KEYS)})\s*:\s*(.*)", line, re.IGNORECASE)
        if match:
            key = match[1].lower()
            header.values[key] = match[2]
        elif key and line:
            header.values[key] += " " + line
        elif not header.title:
            header.title = line
    return header


def packaged() -> dict[str, "Traversable"]:
    """Return the packaged configurations by their short names, such as `gan/mnist_dcgan`."""
    root = resources.files("lightning_gen") / "configs"
    return dict(sorted(_walk(root, "")))


def _walk(folder: "Traversable", prefix: str) -> Iterator[tuple[str, "Traversable"]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield f"{prefix}{entry.name.removesuffix('.yaml')}", entry


def find(name: str) -> tuple[Path, str]:
    """Find a configuration by path or, where no such file exists, by short name.

    Returns:
        Its path, and the name that its run folder takes.

    Raises:
        UsageError: where there is none; names the nearest ones.
    """
    path = Path(name)
    if path.is_file():
        return path, path.stem
    known = packaged()
    short = name.removesuffix(".yaml")
    if short in known:
        return Path(str(known[short])), short
    if path.is_dir():
        raise UsageError(f"The configuration '{name}' is a folder; a YAML file or a packaged name is needed.")
    # `mnist_dcgan` means gan/mnist_dcgan for the search, though not for the run
    ends = {full.rsplit("/", 1)[-1]: full for full in known}
    guess = f" Did you mean '{ends[short]}'?" if short in ends else did_you_mean(short, known)
    raise UsageError(
        f"There is no configuration '{name}': neither a file of this name nor a packaged one.{guess}"
        " `lightning-gen list` shows the packaged ones."
    )


def table(contains: str = "") -> str:
    """Lay out the packaged configurations whose name contains the given text.

    Raises:
        UsageError: where none does.
    """
    known = packaged()
    rows = []
    for name, entry in known.items():
        if contains.lower() in name.lower():
            header = read_header(entry.read_text(encoding="utf-8"))
            rows.append((name, header.title, header.result))
    if contains and not rows:
        words = {word for name in known for word in re.split("[/_]", name)}
        raise UsageError(
            f"No packaged configuration has '{contains}' in its name.{did_you_mean(contains, [*words, *known])}"
            " `lightning-gen list` shows all of them."
        )
    rows.insert(0, ("NAME", "WHAT", "RESULT"))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows)
