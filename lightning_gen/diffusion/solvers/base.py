"""What a solver is: from one noise level of a grid to the next, by estimates of the image.

A grid is a list of points, from pure noise down to the image, each five Python floats in float64: nothing on a
GPU is ever waited for. The state is at least float32, whatever the network computes in. Noise comes from outside,
a fresh draw at a time, so that sample i is a function of (seed, i).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_gen.diffusion.paths import Path


class Point(NamedTuple):
    """One noise level of a grid.

    Attributes:
        t: the time.
        alpha: weight of the image.
        sigma: weight of the noise.
        dalpha: d alpha / dt.
        dsigma: d sigma / dt.
    """

    t: float
    alpha: float
    sigma: float
    dalpha: float = math.nan
    dsigma: float = math.nan

    @property
    def noise_level(self) -> float:
        """Sigma / alpha, infinite where nothing of the image is left."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def log_snr(self) -> float:
        """Lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio, with its infinities."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


class Prediction(NamedTuple):
    """What a denoiser says of x_t.

    Attributes:
        x0: the image expected, `(B, ...)`.
        variance: where the logarithm of the step's variance lies between its bounds, 0 the smaller and 1 the larger
            (eq. 15 of improved DDPM, (v + 1) / 2), `(B, ...)`; None where no variance is learned.
    """

    x0: Tensor
    variance: Tensor | None = None


class Denoise(Protocol):
    """Estimates the image from x_t at a point; one call is one evaluation.

    `until` is the point that the step goes to, for networks of two times; others do not read it.
    """

    def __call__(self, x: Tensor, point: Point, until: Point) -> Prediction:
        """Return the estimate, in the precision of x."""
        ...


Normal = Callable[[], Tensor]
"""Draws standard normal noise of the state's shape."""


class Solver(ABC):
    """Base class of the solvers; one object may serve many runs at once, what a run remembers is in `memory`."""

    @abstractmethod
    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        points: Sequence[Point],
        i: int,
        memory: dict[str, Any],
        normal: Normal,
    ) -> Tensor:
        """Go from points[i] to points[i + 1].

        Args:
            denoise: the estimate of the image.
            x: the state at points[i], `(B, ...)`.
            points: the whole grid, the last point being the image, alpha = 1 and sigma = 0.
            i: number of the step.
            memory: of this run, empty before the first step.
            normal: draws noise.

        Returns:
            The state at points[i + 1].
        """

    def evaluations(self, steps: int, points: Sequence[Point] | None = None) -> int:
        """Return how often the network is asked in a run of so many steps.

        Args:
            steps: number of steps.
            points: the grid, for solvers whose number depends on its ends.
        """
        return steps


def points_of(path: Path, times: Sequence[float] | Tensor) -> list[Point]:
    """Return the points of a path at some times."""
    t = torch.as_tensor(times, dtype=torch.float64).cpu()
    level = path.at(t)
    return [Point(*row) for row in torch.stack([t, level.alpha, level.sigma, *level.derivatives], 1).tolist()]


def integrate(
    solver: Solver,
    denoise: Denoise,
    x: Tensor,
    points: Sequence[Point],
    normal: Normal,
    after: Callable[[Tensor, int], Tensor] | None = None,
    first: int = 0,
) -> Tensor:
    """Go through a grid.

    Args:
        solver: what takes the steps.
        denoise: the estimate of the image.
        x: the state at points[first], `(B, ...)`.
        points: the grid.
        normal: draws noise of the shape of x.
        after: called with the state and the number of the point reached, may change the state.
        first: number of the point to begin at.

    Returns:
        The state at the last point.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    memory: dict[str, Any] = {}
    for i in range(first, len(points) - 1):
        x = solver.step(denoise, x, points, i, memory, normal)
        if after is not None:
            x = after(x, i + 1)
    return x


def to_clean(x: Tensor, x0: Tensor, here: Point, there: Point) -> Tensor:
    """Take the step of order one, along the line through x_t and the image: DDIM without noise.

    With the noise that x_t then holds, (x_t - alpha_t x0) / sigma_t, the state is alpha_s x0 + sigma_s noise.
    """
    kept = there.sigma / here.sigma
    return kept * x + (there.alpha - kept * here.alpha) * x0
