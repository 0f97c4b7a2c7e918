"""A grid that knows its path."""

from collections.abc import Iterable

import torch

from lightning_gen.diffusion.paths import Path
from lightning_gen.diffusion.solvers.base import Point


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
        """Return the point of a noise level, at most that of the last step of a table, without its derivatives."""
        time = self.path.time(torch.tensor(noise_level, dtype=torch.float64))
        if self.path.steps is not None:
            time = time.clamp(max=1)
        alpha, sigma = self.path.coefficients(time)
        return Point(time.item(), alpha.item(), sigma.item())
