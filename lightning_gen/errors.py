"""Errors that say what was given, what is allowed and what to do, and the search for the nearest name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class MissingData(FileNotFoundError):
    """A data set or weights file is not there; the message says where to get it and where to put it."""


class MissingExtra(ImportError):
    """An optional package is not installed; the message names the pip command."""


class CheckpointError(ValueError):
    """A file is no checkpoint, a damaged one, or one that cannot be used as asked; the message says which."""


class RunError(Exception):
    """The run cannot go on for a reason that the message explains."""


class StoppedBySignal(SystemExit):
    """The run was told to stop by a signal, has saved, and is to be continued.

    Args:
        number: of the signal; the process ends with 128 more, as a shell would report it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + int(number))
        self.number = int(number)


def nearest(name: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` of the allowed names that a person who typed `name` may have meant, best first."""
    allowed = list(dict.fromkeys(allowed))
    folded: dict[str, str] = {}
    for candidate in allowed:
        folded.setdefault(candidate.lower(), candidate)
    close = get_close_matches(name.lower(), folded, n=n, cutoff=0.6)
    # a letter or two are inside of nearly everything
    inside = [low for low in folded if len(name) > 2 and name.lower() in low and low not in close]
    return [folded[low] for low in (close + sorted(inside, key=len))[:n]]


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?", or nothing where no name is near."""
    names = [f"'{candidate}'" for candidate in nearest(name, allowed)]
    return f" Did you mean {' or '.join(names)}?" if names else ""


def choose(what: str, name: str, allowed: Mapping[str, T]) -> T:
    """Look `name` up among the allowed ones.

    Args:
        what: what the name stands for, as the message shall call it ("loss", "data set").
        name: the name given.
        allowed: what each allowed name stands for.

    Raises:
        ValueError: where the name is not allowed; lists the allowed names and the nearest ones.
    """
    if name in allowed:
        return allowed[name]
    raise ValueError(f"There is no {what} '{name}'; allowed are: {', '.join(allowed)}.{did_you_mean(name, allowed)}")
