"""Measuring lanes against each other: in turn, in one process, several times."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch

Clock = Literal["wall", "cpu"]
Kind = Literal["slowdown", "speedup", "extra"]


class Unavailable(Exception):
    """What a row needs is not here; the message says what."""


@dataclass(frozen=True)
class Options:
    """What every row is given.

    Args:
        repeats: rounds through all lanes.
        device: "cpu" or "cuda".
        clock: which of the two clocks comparisons are read from.
        tiny: sizes that show no more than that the rows run.
        batch: images of a batch where a row leaves the choice; None for the row's own.
    """

    repeats: int = 5
    device: str = "cpu"
    clock: Clock = "wall"
    tiny: bool = False
    batch: int | None = None

    def size(self, full: int, tiny: int) -> int:
        """Choose between a size worth timing and a tiny one."""
        return tiny if self.tiny else full


class Seconds(NamedTuple):
    """Time of one unit of work: of the clock on the wall, and of the processor, all threads together."""

    wall: float
    cpu: float


class Stopwatch:
    """Times a stretch of work, waiting for the device at both ends."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def start(self) -> None:
        """Begin."""
        self._wait()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, units: int = 1) -> Seconds:
        """End; return the time of one of so many units."""
        self._wait()
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Seconds(wall / units, cpu / units)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass
class Comparison:
    """One lane against another, repeat by repeat.

    Args:
        what: the two lanes in words.
        kind: "slowdown" (ours / theirs), "speedup" (theirs / ours) or "extra" (ours - theirs).
        values: one a repeat; milliseconds where the kind is "extra".
        goal: at most, or for a speedup at least, this.
    """

    what: str
    kind: Kind
    values: list[float]
    goal: float | None = None

    @property
    def median(self) -> float:
        """The value reported."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.kind == "speedup" else self.median <= self.goal


@dataclass
class Row:
    """One measured row.

    Args:
        name: as `--rows` has it, or that and a case after a slash.
        what: what one unit of work is.
        lanes: name to the times of each repeat.
        clock: what comparisons are read from.
        comparisons: see `compare`.
        facts: other values worth keeping, ready to print.
    """

    name: str
    what: str
    lanes: dict[str, list[Seconds]]
    clock: Clock = "wall"
    comparisons: list[Comparison] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def compare(self, ours: str, theirs: str, kind: Kind, goal: float | None = None) -> None:
        """Add the comparison of two lanes."""
        pairs = [
            (getattr(a, self.clock), getattr(b, self.clock))
            for a, b in zip(self.lanes[ours], self.lanes[theirs], strict=True)
        ]
        values = {
            "slowdown": lambda: [a / b for a, b in pairs],
            "speedup": lambda: [b / a for a, b in pairs],
            "extra": lambda: [(a - b) * 1e3 for a, b in pairs],
        }[kind]()
        self.comparisons.append(Comparison(f"{ours} against {theirs}", kind, values, goal))

    def report(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "name": self.name,
            "what": self.what,
            "clock": self.clock,
            "lanes_ms": {
                name: {clock: summary([getattr(s, clock) * 1e3 for s in times]) for clock in ("wall", "cpu")}
                for name, times in self.lanes.items()
            },
            "comparisons": [
                asdict(c) | summary(c.values) | {"values": [round(v, 4) for v in c.values], "met": c.met}
                for c in self.comparisons
            ],
            "facts": self.facts,
        }


def summary(values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest, to five digits."""
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.5g}") for name, value in spread.items()}


def alternate(lanes: Mapping[str, Callable[[], Seconds]], repeats: int) -> dict[str, list[Seconds]]:
    """Measure every lane once a round, in rounds: what disturbs the machine disturbs all of them.

    Each lane warms itself up inside of its call, before its clock starts.
    """
    # what the row before left behind is not collected at the cost of this one
    gc.collect()
    times: dict[str, list[Seconds]] = {name: [] for name in lanes}
    for _ in range(repeats):
        for name, measure in lanes.items():
            times[name].append(measure())
    return times


def timed(work: Callable[[], Any], units: int, warmup: int, device: str = "cpu") -> Callable[[], Seconds]:
    """Make a lane of `units` calls, after `warmup` calls that do not count."""

    def measure() -> Seconds:
        for _ in range(warmup):
            work()
        watch = Stopwatch(device)
        watch.start()
        for _ in range(units):
            work()
        return watch.stop(units)

    return measure
