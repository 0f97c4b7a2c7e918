r"""Grids: the noise levels that a solver goes through, from pure noise to the image.

A grid of N steps has N + 1 points. The first is always t = 1, where sampling starts from noise alone, and the last
the clean image, :math:`\alpha = 1, \sigma = 0`; the N points before it are where the network is asked. With
:math:`i = 0, \dots, N - 1`:

| name       | class      | times or noise levels                                                           |
|------------|------------|---------------------------------------------------------------------------------|
| `trailing` | `Trailing` | :math:`t_i = 1 - i/N`                                                           |
| `linspace` | `Linspace` | N times at equal distances from 1 to the least                                  |
| `shifted`  | `Shifted`  | :math:`t_i' = k t_i / (1 + (k - 1) t_i)`                                        |
| `karras`   | `Karras`   | roots :math:`s_i^{1/\rho}` at equal distances from the largest s to the least   |
| `log_snr`  | `LogSNR`   | logarithms of s at equal distances: the limit of large :math:`\rho`             |
| `leading`  | `Leading`  | as diffusers' "leading": does not start at t = 1                                |

The first three keep to the steps of a discrete path, each at most once; `Karras` and `LogSNR` lie between them. The
noise falls strictly from point to point: there is no step of length zero. Where a path still has noise at t = 0 (VE,
EDM), the clean image is one point more, at the same t = 0 if the grid goes there.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (eq. 5)
    https://arxiv.org/abs/2206.00364
    Common Diffusion Noise Schedules and Sample Steps are Flawed (trailing, linspace, leading)
    https://arxiv.org/abs/2305.08891
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (the shift)
    https://arxiv.org/abs/2403.03206
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from lightning_gen.diffusion.paths import Path
from lightning_gen.diffusion.solvers.base import Point, points_of
from lightning_gen.diffusion.solvers.points import Points
from lightning_gen.errors import choose

CLEAN = Point(t=0.0, alpha=1.0, sigma=0.0)
"""The image itself."""

LEAST_LEVEL = 0.002
"""The last noise level before the image where neither the user nor the path names one; EDM's."""

Final = Literal["clean", "first"]


class Grid(ABC):
    """Base class of the grids: a grid of your own needs `times`."""

    @abstractmethod
    def times(self, steps: int, path: Path) -> list[float]:
        """Return the `steps` times at which the network is asked, falling from 1; `steps` was checked."""

    def points(self, steps: int, path: Path) -> Points:
        """Return the points.

        Args:
            steps: N, 1 or more; at most the number of steps of a discrete path.
            path: the path.

        Returns:
            N + 1 points of strictly falling noise, a list that knows the path.

        Raises:
            ValueError: where the steps do not fit the path, or two points would coincide.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: sampling takes 1 step or more.")
        if path.steps is not None and steps > path.steps:
            raise ValueError(
                f"steps={steps}: the network was trained at the {path.steps} steps of {type(path).__name__}, so"
                f" sampling takes at most as many. Use steps={path.steps} or fewer."
            )
        points = Points([*points_of(path, self.times(steps, path)), self.last(path)], path)
        for here, there in pairwise(points):
            if not here.noise_level > there.noise_level:
                raise ValueError(
                    f"{type(self).__name__} of {steps} steps goes from t = {here.t:.6g} to t = {there.t:.6g} without"
                    " less noise there: such a step is a wasted one. Use fewer steps or another grid."
                )
        return points

    def last(self, path: Path) -> Point:
        """Return the last point."""
        return CLEAN


class Trailing(Grid):
    """Equal steps in time from t = 1; on a table the steps round(T (1 - i/N)).

    Args:
        final: the last point: "clean", the image, or "first", the first step of a table, which still has noise; this is
            diffusers' `set_alpha_to_one=False` and needs fewer steps than the table has.
    """

    def __init__(self, final: Final = "clean") -> None:
        self.final = _checked(final)

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times."""
        if path.steps is None:
            return [(steps - i) / steps for i in range(steps)]
        # numpy's rounding, so that the steps are those of diffusers for every N
        even = np.arange(path.steps, 0, -path.steps / steps)[:steps].round()
        return [step / path.steps for step in even.tolist()]

    def last(self, path: Path) -> Point:
        """Return the image, or the first step."""
        return _last(self, self.final, path)


class Linspace(Grid):
    """N times at equal distances from 1 to the least one, then the image.

    Args:
        t_min: the least time where the network is asked; on a table it is always the first step.
    """

    def __init__(self, t_min: float = 1e-3) -> None:
        if not 0 < t_min < 1:
            raise ValueError(f"Linspace takes t_min between 0 and 1; given was {t_min}.")
        self.t_min = t_min

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times; one step has t = 1 alone."""
        if path.steps is None:
            return [1 - share * (1 - self.t_min) for share in _shares(steps)]
        if steps == 1:
            return [1.0]
        # numpy's rounding of steps counted from 0, so that they are those of diffusers for every N
        even = np.linspace(0, path.steps - 1, steps).round()[::-1] + 1
        return [step / path.steps for step in even.tolist()]


class Shifted(Grid):
    """Equal steps in time, shifted toward the noise; for rectified flow the noise levels are those of k = 1 times k.

    Args:
        shift: k; 1 is Trailing, 3 what Stable Diffusion 3 takes for large images.
    """

    def __init__(self, shift: float = 3.0) -> None:
        if not 0 < shift < math.inf:
            raise ValueError(f"Shifted takes a shift above 0; given was {shift}.")
        self.shift = shift

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times; on a table the nearest steps that are all different."""
        even = [(steps - i) / steps for i in range(steps)]
        # exactly 1 at t = 1
        times = [self.shift * t / (self.shift * t + (1 - t)) for t in even]
        return times if path.steps is None else _apart(times, path.steps)


class Leading(Grid):
    """For imported diffusers models only: every (T // N)-th step of a table from its first one on.

    It does not start at t = 1, though sampling starts from pure noise; Trailing is the better grid.

    Args:
        offset: added to all steps, diffusers' `steps_offset`.
        final: the last point: "clean", the image, or "first", the first step of the table (`set_alpha_to_one=False`),
            which needs an offset of 1 or more.
    """

    def __init__(self, offset: int = 0, final: Final = "clean") -> None:
        if offset < 0:
            raise ValueError(f"Leading takes an offset of 0 or more; given was {offset}.")
        self.offset, self.final = offset, _checked(final)

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times."""
        table = _table_of(self, path)
        stride = table // steps
        first = 1 + (steps - 1) * stride + self.offset
        if first > table:
            raise ValueError(
                f"Leading of {steps} steps with offset={self.offset} starts at step {first} of a table of {table}: use"
                f" an offset of {self.offset - first + table} or less, or the grid Trailing."
            )
        return [(first - i * stride) / table for i in range(steps)]

    def last(self, path: Path) -> Point:
        """Return the image, or the first step."""
        return _last(self, self.final, path)


class _Levels(Grid, ABC):
    def __init__(self, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        low, high = LEAST_LEVEL if sigma_min is None else sigma_min, math.inf if sigma_max is None else sigma_max
        if not 0 < low < high or sigma_max == math.inf:
            raise ValueError(
                f"{type(self).__name__} takes noise levels 0 < sigma_min < sigma_max; given were {sigma_min} and"
                f" {sigma_max}."
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    @abstractmethod
    def levels(self, low: float, high: float, shares: Iterable[float]) -> list[float]:
        """Return the noise levels at these shares of the way from high to low."""

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times of the noise levels; the first is t = 1 in place of sigma_max."""
        floor = 0.0 if path.steps is None else 1 / path.steps
        least, most = (point.noise_level for point in points_of(path, [floor, 1.0]))
        low, high = self._ends(path, least, most)
        levels = torch.tensor(self.levels(low, high, _shares(steps)[1:]), dtype=torch.float64)
        # rounding must not lead out of the path
        times = [1.0, *path.time(levels).clamp(floor, 1).tolist()]
        if steps > 1 and low == least:
            times[-1] = floor
        return times

    def _ends(self, path: Path, least: float, most: float) -> tuple[float, float]:
        """Return the ends of the grid, which lie within the noise levels of the path."""
        if self.sigma_max is None and math.isinf(most):
            raise ValueError(
                f"{type(path).__name__} starts at an infinite noise level, from which {type(self).__name__} has no"
                " distances: give sigma_max, the noise level that they begin with (80 in EDM), or use the grid Trailing"
                " or Shifted."
            )
        low = (least or min(LEAST_LEVEL, most / 2)) if self.sigma_min is None else self.sigma_min
        high = most if self.sigma_max is None else self.sigma_max
        # up to rounding
        if not least * (1 - 1e-9) <= low < high <= most * (1 + 1e-9):
            raise ValueError(
                f"{type(self).__name__} has noise levels from {low:.6g} to {high:.6g}, but {type(path).__name__} goes"
                f" from {least:.6g} to {most:.6g}: choose sigma_min and sigma_max within, or leave them out."
            )
        return max(low, least), high


class Karras(_Levels):
    """EDM's noise levels: equal distances between their roots.

    The first point is t = 1 whatever sigma_max: this only says where the distances begin.

    Args:
        rho: which root; the larger, the more of the steps go to small noise.
        sigma_min: the last noise level sigma / alpha before the image; None for the least of the path, at t = 0 or the
            first step of a table, and 0.002 where this is 0.
        sigma_max: the first noise level; None for that at t = 1. Needed where that is infinite.
    """

    def __init__(self, rho: float = 7.0, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        super().__init__(sigma_min, sigma_max)
        if not rho > 0:
            raise ValueError(f"Karras takes rho above 0; given was {rho}.")
        self.rho = rho

    def levels(self, low: float, high: float, shares: Iterable[float]) -> list[float]:
        """Return the noise levels."""
        first, last = high ** (1 / self.rho), low ** (1 / self.rho)
        return [(first + share * (last - first)) ** self.rho for share in shares]


class LogSNR(_Levels):
    """Equal distances in the logarithm of the noise level, and so of the signal-to-noise ratio.

    The first point is t = 1 whatever sigma_max: this only says where the distances begin.

    Args:
        sigma_min: the last noise level sigma / alpha before the image; None for the least of the path, at t = 0 or the
            first step of a table, and 0.002 where this is 0.
        sigma_max: the first noise level; None for that at t = 1. Needed where that is infinite.
    """

    def __init__(self, sigma_min: float | None = None, sigma_max: float | None = None) -> None:
        super().__init__(sigma_min, sigma_max)

    def levels(self, low: float, high: float, shares: Iterable[float]) -> list[float]:
        """Return the noise levels."""
        return [high * (low / high) ** share for share in shares]


GRIDS: dict[str, type[Grid]] = {
    "karras": Karras,
    "trailing": Trailing,
    "linspace": Linspace,
    "shifted": Shifted,
    "leading": Leading,
    "log_snr": LogSNR,
}


def _shares(steps: int) -> list[float]:
    """Return numbers at equal distances from 0 to 1; 0 alone for one step."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def _apart(times: list[float], table: int) -> list[float]:
    """Return the steps of a table nearest to falling times, the first being the last step and no two the same."""
    steps, above = [], table + 1
    for left, t in zip(range(len(times), 0, -1), times, strict=True):
        # one lower than the last at least, and room for those that follow
        above = max(min(round(t * table), above - 1), left)
        steps.append(above / table)
    return steps


def _table_of(grid: Grid, path: Path) -> int:
    if path.steps is None:
        raise ValueError(
            f"{type(path).__name__} has no table of steps, which {type(grid).__name__} asks for here: use the path"
            " DiscreteVP, or the grid Trailing that ends in the clean image."
        )
    return path.steps


def _checked(final: Final) -> Final:
    choose("last point", final, dict.fromkeys(("clean", "first")))
    return final


def _last(grid: Grid, final: Final, path: Path) -> Point:
    if final == "clean":
        return CLEAN
    (point,) = points_of(path, [1 / _table_of(grid, path)])
    return point
