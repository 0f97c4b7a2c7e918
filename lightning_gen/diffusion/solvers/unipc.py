r"""UniPC: a multistep predictor, and a corrector that costs nothing, from the image expected where it led to.

The predictor and the corrector of order p, with :math:`h` the step in :math:`\lambda = \log(\alpha/\sigma)`,
:math:`m_0` the image at the point, :math:`m_k` those at earlier points, :math:`r_k` their places in units of h
(below 0), and, in the corrector alone, :math:`m_p` the image at the point reached, :math:`r_p = 1`, are both

.. math::
    x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s (1 - e^{-h}) \Bigl(m_0 + \sum_k \frac{\rho_k}{r_k}
    (m_k - m_0)\Bigr), \qquad
    \sum_k \rho_k r_k^{j-1} = \frac{j!\,\varphi_{j+1}(-h)}{\varphi_1(-h)}, \quad j = 1, 2, \dots

This is the variant :math:`B_2(h) = e^h - 1` in the image. A sum of one term has :math:`\rho = 1/2`, as in the
paper. The corrector asks the network nothing: the image at the point reached is the one that the next step
needs, and it is not asked for again at the corrected state. The order of the whole is p + 1.

References:
    UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models
    https://arxiv.org/abs/2302.04867
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from lightning_gen.diffusion.solvers.base import Denoise, Normal, Point, Solver
from lightning_gen.diffusion.solvers.linear import weighted
from lightning_gen.diffusion.solvers.multistep import order_within, phi, recall, remember


class _Predicted(NamedTuple):
    """A step as predicted, which the corrector takes up.

    Attributes:
        h: the step in lambda.
        gain: alpha_s (1 - e^{-h}).
        places: r_k of the earlier images.
        weights: rho_k of theirs.
        images: m_0, m_1, ...
    """

    h: float
    gain: float
    places: list[float]
    weights: list[float]
    images: list[Tensor]


class UniPC(Solver):
    """UniPC. The first steps are of lower orders, as are the last; one evaluation a step.

    Args:
        order: p, how many images the predictor uses: 2, better with guidance, or 3.
        corrector: whether to correct; without it, it is the predictor alone, of order p.
    """

    def __init__(self, order: Literal[2, 3] = 2, corrector: bool = True) -> None:
        if order not in (2, 3):
            raise ValueError(f"UniPC takes order 2 or 3; given was {order}.")
        self.order, self.corrector = order, corrector

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Correct the last step, and predict the next one."""
        here, there = points[i], points[i + 1]
        x0 = denoise(x, here, here).x0
        last: _Predicted | None = memory.pop("predicted", None)
        if last is not None:
            x = _corrected(x, x0, last)
        past = recall(memory)
        order = min(order_within(self.order, past, here, there), len(points) - 1 - i)
        h = there.log_snr - here.log_snr
        places = [(known.log_snr - here.log_snr) / h for known in past[: order - 1]]
        step = _Predicted(
            h=h,
            gain=-there.alpha * math.expm1(-h),
            places=places,
            weights=_weights(h, places),
            images=[x0, *(known.x0 for known in past[: order - 1])],
        )
        remember(memory, here, x0, self.order - 1)
        if self.corrector and math.isfinite(h):
            memory["predicted"] = step
        return weighted((there.sigma / here.sigma, x), (step.gain, x0), *_residual(step, step.weights))


def _corrected(x: Tensor, x0: Tensor, last: _Predicted) -> Tensor:
    """Return the state that the last step reaches with the image there, `x0`, known.

    The difference to the prediction is added to the state, so that a change of the state between two steps
    (inpainting) is not undone.
    """
    *weights, newest = _weights(last.h, [*last.places, 1.0])
    changes = [new - old for new, old in zip(weights, last.weights, strict=True)]
    return weighted(
        (1.0, x), (last.gain * newest, x0), (-last.gain * newest, last.images[0]), *_residual(last, changes)
    )


def _residual(step: _Predicted, weights: Sequence[float]) -> list[tuple[float, Tensor]]:
    """Return gain sum_k rho_k / r_k (m_k - m_0), as terms."""
    shares = [step.gain * weight / place for weight, place in zip(weights, step.places, strict=True)]
    return [*zip(shares, step.images[1:], strict=True), (-math.fsum(shares), step.images[0])]


def _weights(h: float, places: Sequence[float]) -> list[float]:
    """Return rho for images at these places."""
    if len(places) < 2:
        return [0.5] * len(places)
    powers = np.vander(np.asarray(places), increasing=True).T
    moments = [math.factorial(j) * phi(j + 1, -h) / phi(1, -h) for j in range(1, len(places) + 1)]
    solved: list[float] = np.linalg.solve(powers, np.asarray(moments)).tolist()
    return solved
