"""A grid that knows its path."""

from collections.abc import Iterable

import torch

from lightning_gen.diffusion.paths import Path
from lightning_gen.diffusion.solvers.base import Point, points_of


class Points(list[Point]):
    """The points of a grid, and the path they lie on, for solvers that go to levels between them.

    Args:
        points: from pure noise to the image.
        path: their path.
    """

    def __init__(self, points: Iterable[Point], path: Path) -> None:
        super().__init__(points)
        self.path = path

    def at_level(self, noise_level: float) -> Point:
        """Return the point of a noise level sigma / alpha, at most that of the last step of a table."""
        time = float(self.path.time(torch.tensor(noise_level, dtype=torch.float64)))
        (point,) = points_of(self.path, [time if self.path.steps is None else min(time, 1.0)])
        return point
