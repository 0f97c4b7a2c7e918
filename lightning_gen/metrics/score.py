"""A score with its protocol: the one form in which numbers leave this package."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lightning_gen.metrics.protocol import Protocol


@dataclass(frozen=True)
class Score:
    """One score with its protocol.

    Attributes:
        metric: as requested, such as "fid".
        value: the score.
        std: spread over subsets (KID) or splits (IS), where there is one.
        protocol: what it was measured on and with.
        settings: what the metric adds to the protocol: subsets, subset_size, splits.
    """

    metric: str
    value: float
    std: float | None
    protocol: Protocol
    settings: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Key for logs, such as `fid_10k_train`."""
        return self.protocol.name(self.metric)

    def describe(self) -> str:
        """One line: name, value, spread, protocol."""
        spread = "" if self.std is None else f" ± {self.std:.3g}"
        settings = "".join(f", {key} {value}" for key, value in self.settings.items())
        return f"{self.name} = {self.value:.6g}{spread}  [{self.protocol.describe()}{settings}]"

    def as_dict(self) -> dict[str, Any]:
        """For a JSON report."""
        spread = {} if self.std is None else {"std": self.std}
        return {"value": self.value, **spread, **self.settings, "protocol": self.protocol.as_dict()}


def report(scores: Iterable[Score]) -> dict[str, dict[str, Any]]:
    """Scores by their full names, for a JSON file."""
    return {score.name: score.as_dict() for score in scores}
