r"""From noise to images: a solver on a grid, guided, from a picture or around one.

From a picture (SDEdit, "img2img") sampling starts in the middle of the grid, at the picture with noise of that
level. Around one (inpainting), what is known of :math:`x_s` is put back after every step, the picture with noise of
level s; going back and forth some times in each step (RePaint) lets the rest agree with it.

References:
    SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations
    https://arxiv.org/abs/2108.01073
    RePaint: Inpainting using Denoising Diffusion Probabilistic Models
    https://arxiv.org/abs/2201.09865
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_gen.diffusion.guidance import Estimate, Guidance
from lightning_gen.diffusion.solvers.base import Denoise, Normal, Point, Prediction, Solver, integrate
from lightning_gen.diffusion.thresholding import Threshold
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import RandomStream

Watch = Callable[[int, Point, Tensor, Tensor | None], None]
"""Told, after each step, its number, the point reached, the state and the last estimate of the image."""


@dataclass
class Start:
    """A picture to begin from, or to keep.

    Attributes:
        image: `(n, C, H, W)` in [-1, 1].
        strength: without a mask, where on the grid to begin: 1 at pure noise, near 0 at the picture itself.
        mask: which pixels stay, 1, and which are made, 0, `(n, 1, H, W)`; None makes all anew.
        resample: times that each step is taken, with a mask.
    """

    image: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    resample: int = 1

    def check(self, shape: Sequence[int]) -> None:
        """Refuse pictures and masks of another shape, and numbers out of range.

        Raises:
            ValueError: says what was given and what is allowed.
        """
        if tuple(self.image.shape) != tuple(shape):
            raise ValueError(f"The picture has the shape {tuple(self.image.shape)}; the model makes {tuple(shape)}.")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is above 0 and at most 1; given was {self.strength}.")
        if self.resample < 1:
            raise ValueError(f"resample is 1 or more; given was {self.resample}.")
        if self.mask is not None:
            wanted = (shape[0], 1, *shape[2:])
            if tuple(self.mask.shape) != wanted:
                raise ValueError(f"The mask has the shape {tuple(self.mask.shape)}; wanted is {wanted}.")


@dataclass
class Sampler:
    """All that a run from noise to images uses.

    Attributes:
        estimate: the network.
        solver: takes the steps.
        points: the grid.
        guidance: sharpens the estimates.
        weak: a worse network, for autoguidance.
        threshold: keeps the estimates in range.
        watch: told of every step.
    """

    estimate: Estimate
    solver: Solver
    points: list[Point]
    guidance: Guidance
    weak: Estimate | None = None
    threshold: Threshold | None = None
    watch: Watch | None = None
    _last: Tensor | None = field(default=None, init=False)

    def __call__(
        self, stream: RandomStream, shape: Sequence[int], cond: Condition, start: Start | None = None
    ) -> Tensor:
        """Draw images.

        Args:
            stream: all random numbers.
            shape: `(C, H, W)` of one.
            cond: what they are asked to be.
            start: a picture to begin from or to keep.

        Returns:
            The images `(n, C, H, W)`, not clipped.
        """

        def normal() -> Tensor:
            return stream.normal(*shape)

        def denoise(x: Tensor, point: Point, until: Point) -> Prediction:
            prediction = self.guidance(self.estimate, self.weak, x, point, until, cond)
            if self.threshold is not None:
                prediction = prediction._replace(x0=self.threshold(prediction.x0))
            self._last = prediction.x0
            return prediction

        def after(x: Tensor, number: int) -> Tensor:
            if self.watch is not None:
                self.watch(number - 1, self.points[number], x, self._last)
            return x

        solver, first = self.solver, self._first(start)
        if start is not None and start.mask is not None:
            solver = Repainting(solver, start.image, start.mask, start.resample)
        x = self._begin(normal(), self.points[first], start)
        return integrate(solver, denoise, x, self.points, normal, after, first)

    def _first(self, start: Start | None) -> int:
        """Return the number of the point that sampling begins at."""
        steps = len(self.points) - 1
        if start is None or start.mask is not None:
            return 0
        return steps - max(1, round(start.strength * steps))

    def _begin(self, noise: Tensor, point: Point, start: Start | None) -> Tensor:
        if start is None or start.mask is not None:
            return noise * point.sigma
        return point.alpha * start.image.to(noise) + point.sigma * noise


class Repainting(Solver):
    """The steps of another solver, known pixels put back after each, every step taken several times.

    Args:
        solver: takes the steps.
        image: the picture, `(n, C, H, W)`.
        mask: which pixels are known, `(n, 1, H, W)`.
        resample: times that each step is taken.
    """

    def __init__(self, solver: Solver, image: Tensor, mask: Tensor, resample: int) -> None:
        self.solver, self.image, self.mask, self.resample = solver, image, mask, resample

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Go to the next point, back, and to it again."""
        for repeat in range(self.resample):
            if repeat:
                x = renoise(x, normal(), points[i + 1], points[i])
                memory.clear()
            x = self._keep(self.solver.step(denoise, x, points, i, memory, normal), points[i + 1], normal)
        return x

    def evaluations(self, steps: int, points: Sequence[Point] | None = None) -> int:
        """Return how often the network is asked."""
        return self.resample * self.solver.evaluations(steps, points)

    def _keep(self, x: Tensor, point: Point, normal: Normal) -> Tensor:
        """Put the known pixels back, with the noise of the point."""
        known = point.alpha * self.image.to(x)
        if point.sigma:
            known = known + point.sigma * normal()
        # lerp gives either end without rounding
        return torch.lerp(x, known, self.mask.to(x))


def renoise(x: Tensor, noise: Tensor, here: Point, there: Point) -> Tensor:
    """Go forward along the path, from a point to a noisier one."""
    kept = there.alpha / here.alpha
    added = max(there.sigma**2 - (kept * here.sigma) ** 2, 0.0)
    return kept * x + math.sqrt(added) * noise
