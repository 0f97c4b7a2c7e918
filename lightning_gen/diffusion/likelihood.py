r"""The exact log-likelihood of images, by the probability-flow ODE.

The flow :math:`\mathrm{d}x/\mathrm{d}t = \alpha' \hat x_0 + \sigma' \hat\varepsilon` takes the data's density to
the noise's, and the logarithm of the density changes by the divergence along the way. Every Gaussian path is the same
flow in other coordinates; it is integrated in those in which nothing is singular at either end,

.. math::
    y = \frac{x}{\sqrt{\alpha^2 + \sigma^2}}, \qquad w = -\operatorname{arsinh}\frac{\alpha}{\sigma}, \qquad
    \frac{\mathrm{d}y}{\mathrm{d}w} = \frac{\alpha\, y}{\sqrt{\alpha^2 + \sigma^2}} - \hat x_0,

w being the logarithm of the noise level where that is small, and 0 where nothing of the image is left. Steps are
even in w. With s the smallest noise level, D the number of dimensions and :math:`x_1` the end of the flow,

.. math::
    \log p(x) = \log \mathcal{N}\big(x_1/\sigma_1; 0, I\big) - D \log s
    - \int \sqrt{\alpha^2 + \sigma^2}\; \nabla_x \cdot \hat x_0\, \mathrm{d}w.

This is the density of the data with noise of the level s, at x. At t = 1 the density is taken for
:math:`\mathcal{N}(0, \sigma_1^2 I)`, as sampling does: what is left of the data there, :math:`\alpha_1`, is ignored.

The trace of the Jacobian is estimated by :math:`v^\top J v` with signs v drawn once for the whole way (Hutchinson),
or added up entry by entry.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (appendix D.2)
    https://arxiv.org/abs/2011.13456
    FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models (the estimate of the trace)
    https://arxiv.org/abs/1810.01367
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_gen.diffusion.paths import Path, precise
from lightning_gen.diffusion.solvers.base import Point, points_of
from lightning_gen.errors import choose
from lightning_gen.seeding import RandomStream

ImageEstimate: TypeAlias = Callable[[Tensor, Point], Tensor]
"""The image expected from x_t at a point, `(B, ...)` to `(B, ...)`; each sample's from that sample alone."""

Divergence: TypeAlias = Literal["hutchinson", "exact"]
Method: TypeAlias = Literal["rk4", "heun"]

# Butcher tableaus: where in the step each stage is, what of the last stage's slope leads to it, its weight.
_STAGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "rk4": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    "heun": ((0.0, 1.0), (0.5, 0.5)),
}


def log_likelihood(
    estimate: ImageEstimate,
    x: Tensor,
    path: Path,
    steps: int,
    stream: RandomStream,
    divergence: Divergence = "hutchinson",
    probes: int = 1,
    method: Method = "rk4",
    noise_level: float = 1e-3,
) -> Tensor:
    """Return the log-density of images, in nats.

    The network must be in evaluation mode and leave samples alone: no dropout, no batch statistics.

    Args:
        estimate: the image expected from x_t.
        x: images, `(B, ...)`.
        path: the path that the estimate is of.
        steps: of the ODE; 4 evaluations each, or 2 for Heun's method.
        stream: draws the signs.
        divergence: "hutchinson" for an unbiased estimate, or "exact" for D gradients an evaluation.
        probes: draws of signs that the estimate averages over, each a gradient an evaluation.
        method: "rk4", of order 4, or "heun", of order 2.
        noise_level: sigma / alpha at which the image is taken for free of noise; the path's smallest, or its first
            step's, where that is larger.

    Returns:
        `(B,)`, float64.

    Raises:
        ValueError: for numbers out of range, and under `torch.inference_mode`, where nothing has a gradient.
    """
    shares, weights = choose("method", method, _STAGES)
    if divergence not in ("hutchinson", "exact"):
        raise ValueError(f"divergence is hutchinson or exact; given was {divergence!r}.")
    if steps < 1 or probes < 1 or not noise_level > 0:
        raise ValueError(
            "A likelihood takes 1 or more steps and probes and a noise_level above 0; given were"
            f" {steps}, {probes} and {noise_level}."
        )
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "A likelihood needs gradients, which torch.inference_mode rules out: compute it under torch.no_grad, with"
            " Trainer(inference_mode=False), or inside of `with torch.inference_mode(False)` on clones of its tensors."
        )
    places, points = _grid(path, steps, noise_level)
    step = (places[1] - places[0]) * 2
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    signs = None
    if divergence == "hutchinson":
        signs = [torch.where(stream.uniform(*x.shape[1:]) < 0.5, -1.0, 1.0).to(x) for _ in range(probes)]
    with torch.no_grad():
        y = x * _cosine(points[0])
        trace = precise(torch.zeros(len(x), device=x.device))
        for i in range(steps):
            slope, change, traced = torch.zeros_like(y), torch.zeros_like(y), torch.zeros_like(trace)
            for share, weight in zip(shares, weights, strict=True):
                point = points[2 * i + round(2 * share)]
                slope, of_stage = _slope(estimate, y + share * step * slope, point, signs)
                change, traced = change + weight * slope, traced + weight * of_stage
            y, trace = y + step * change, trace + step * traced
        last = precise(y.flatten(1)) * math.hypot(points[-1].alpha, points[-1].sigma) / points[-1].sigma
        dims = last.shape[1]
        normal = -0.5 * last.square().sum(1) - 0.5 * dims * math.log(2 * math.pi)
        return normal - dims * math.log(points[0].noise_level) - trace


def _cosine(point: Point) -> float:
    return point.alpha / math.hypot(point.alpha, point.sigma)


def _grid(path: Path, steps: int, noise_level: float) -> tuple[list[float], list[Point]]:
    """Return the values of w at the ends and the middles of the steps, and the points there."""
    first, last = points_of(path, [1 / path.steps if path.steps is not None else 0.0, 1.0])
    low = max(noise_level, first.noise_level)
    start, end = (-math.asinh(point) for point in (1 / low, last.alpha / last.sigma))
    places = [start + (end - start) * i / (2 * steps) for i in range(2 * steps + 1)]
    levels = torch.tensor([1 / math.sinh(-place) for place in places[:-1]], dtype=torch.float64)
    return places, points_of(path, [*path.time(levels).tolist(), 1.0])


def _slope(estimate: ImageEstimate, y: Tensor, point: Point, signs: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return dy/dw, and the divergence of the image estimated times sqrt(alpha^2 + sigma^2), `(B,)`."""
    root = math.hypot(point.alpha, point.sigma)
    with torch.enable_grad():
        x = (y * root).requires_grad_()
        x0 = estimate(x, point)
        probes = _basis(x) if signs is None else iter(signs)
        traces = []
        for probe in probes:
            (row,) = torch.autograd.grad(x0, x, probe, retain_graph=True)
            traces.append(precise((row * probe).flatten(1).sum(1)))
    total = torch.stack(traces).sum(0) / (1 if signs is None else len(signs))
    return _cosine(point) * y - x0.detach(), root * total


def _basis(x: Tensor) -> Iterator[Tensor]:
    """Go through the unit vectors of one sample, the same for all."""
    for i in range(x[0].numel()):
        probe = torch.zeros_like(x[0]).flatten()
        probe[i] = 1
        yield probe.view_as(x[0]).expand_as(x)
