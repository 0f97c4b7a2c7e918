r"""Heun's method, order two with two evaluations a step, and EDM's stochastic sampler.

A step of Euler, the slope where it leads to, and the same step again with the mean of both slopes. What comes out
depends on the coordinate that the steps are straight in:

.. math::
    \frac{dy}{ds} = \frac{y - \hat x_0}{s}, \quad y = \frac{x}{\alpha},\ s = \frac{\sigma}{\alpha},
    \qquad\text{or}\qquad
    \frac{dx}{dt} = \alpha'\,\hat x_0 + \sigma'\,\frac{x - \alpha \hat x_0}{\sigma}.

The first is the same on every path, the second that of flow matching. A step is of order one, with one evaluation,
where the second slope does not exist: to the clean image in both, and from an infinite noise level in the first.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (algorithms 1 and 2)
    https://arxiv.org/abs/2206.00364
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from lightning_gen.diffusion.solvers.base import Denoise, Normal, Point, Solver, to_clean
from lightning_gen.diffusion.solvers.linear import weighted
from lightning_gen.diffusion.solvers.points import Points
from lightning_gen.errors import choose

Coordinate = Literal["noise_level", "time"]


class Heun(Solver):
    """Heun's method.

    Args:
        coordinate: what the steps are straight in: "noise_level" is EDM's; "time" is that of flow matching, for paths
            that are smooth in the time. (The table of a discrete path is not: it adds an error of about 1 / T.)
    """

    def __init__(self, coordinate: Coordinate = "noise_level") -> None:
        choose("coordinate of Heun", coordinate, dict.fromkeys(("noise_level", "time")))
        self.coordinate = coordinate

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Take one step of Euler, and the half of another one with the slope found there."""
        return self._advance(denoise, x, points[i], points[i + 1])

    def evaluations(self, steps: int, points: Sequence[Point] | None = None) -> int:
        """Return how often the network is asked.

        Args:
            steps: number of steps.
            points: the grid; without it, one that ends in the clean image and begins at a finite noise level, or at
                any in the coordinate "time": 2 steps - 1.
        """
        if points is None:
            return 2 * steps - 1
        return sum(1 + self._bends(*ends) for ends in pairwise(points))

    def _bends(self, here: Point, there: Point) -> bool:
        """Tell whether a step is of order two."""
        if there.sigma == 0:
            return False
        if self.coordinate == "noise_level":
            return here.alpha != 0
        return all(math.isfinite(slope) for slope in (here.dalpha, here.dsigma, there.dalpha, there.dsigma))

    def _advance(self, denoise: Denoise, x: Tensor, here: Point, there: Point) -> Tensor:
        x0 = denoise(x, here, here).x0
        if not self._bends(here, there):
            return to_clean(x, x0, here, there)
        if self.coordinate == "noise_level":
            return _in_noise_level(denoise, x, x0, here, there)
        return _in_time(denoise, x, x0, here, there)


def _in_noise_level(denoise: Denoise, x: Tensor, x0: Tensor, here: Point, there: Point) -> Tensor:
    reached = to_clean(x, x0, here, there)
    again = denoise(reached, there, there).x0
    # half of Euler's step, half of y + (s' - s) (y' - x0') / s', both times alpha'
    back = 1 - here.noise_level / there.noise_level
    return weighted(
        (0.5 * there.alpha / here.alpha, x), (0.5 * (1 + back), reached), (-0.5 * there.alpha * back, again)
    )


def _in_time(denoise: Denoise, x: Tensor, x0: Tensor, here: Point, there: Point) -> Tensor:
    dt = there.t - here.t
    slope = _slope(x, x0, here)
    reached = weighted((1.0, x), (dt, slope))
    again = _slope(reached, denoise(reached, there, there).x0, there)
    return weighted((1.0, x), (0.5 * dt, slope), (0.5 * dt, again))


def _slope(x: Tensor, x0: Tensor, point: Point) -> Tensor:
    growth = point.dsigma / point.sigma
    return weighted((growth, x), (point.dalpha - growth * point.alpha, x0))


class EDMStochastic(Heun):
    """EDM's stochastic sampler: before each step, noise up to a somewhat higher level; then a step of Heun.

    Without churn it is Heun in the noise level. The times of the higher levels are those of the path, which a grid
    tells (`Points`); on a table none lies above the last step. At an infinite noise level nothing is added.

    Args:
        s_churn: how much noise is added in all, 0 for none; at most a factor of sqrt(2) a step.
        s_min: noise level below which none is added.
        s_max: noise level above which none is added; None for no such bound.
        s_noise: standard deviation of the noise, somewhat above 1 against images that come out too smooth.
    """

    def __init__(
        self, s_churn: float = 0.0, s_min: float = 0.0, s_max: float | None = None, s_noise: float = 1.0
    ) -> None:
        super().__init__("noise_level")
        if s_churn < 0 or s_noise < 0:
            raise ValueError(f"EDMStochastic takes s_churn and s_noise of 0 or more; given were {s_churn}, {s_noise}.")
        if not 0 <= s_min <= (math.inf if s_max is None else s_max):
            raise ValueError(f"EDMStochastic takes noise levels 0 <= s_min <= s_max; given were {s_min} and {s_max}.")
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Raise the noise (lines 5 and 6 of algorithm 2) and step down from there."""
        here, there = points[i], points[i + 1]
        higher = self._raised(points, i)
        if higher is not here:
            scale = higher.alpha / here.alpha
            added = math.sqrt(max(higher.sigma**2 - (scale * here.sigma) ** 2, 0.0))
            x, here = weighted((scale, x), (added * self.s_noise, normal())), higher
        return self._advance(denoise, x, here, there)

    def _raised(self, points: Sequence[Point], i: int) -> Point:
        """Return the point of the higher noise level, or the same one where no noise is due."""
        point, level = points[i], points[i].noise_level
        gamma = min(self.s_churn / (len(points) - 1), math.sqrt(2) - 1)
        due = self.s_min <= level <= (math.inf if self.s_max is None else self.s_max)
        if not (gamma and due and math.isfinite(level)):
            return point
        if not isinstance(points, Points):
            raise ValueError(
                "EDMStochastic with s_churn above 0 goes to noise levels between those of the grid, and needs its path"
                " for their times: give the points as Grid.points returns them, or Points(points, path)."
            )
        higher = points.at_level(level * (1 + gamma))
        return higher if higher.noise_level > level else point
