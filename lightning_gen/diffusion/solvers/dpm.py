r"""DPM-Solver++: multistep solvers in the image expected, with one evaluation a step.

A step of order one is DDIM's. With :math:`h` the step in :math:`\lambda = \log(\alpha/\sigma)` and :math:`\hat x_0`
replaced by a mixture of the images at the last points,

.. math::
    x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta h}\,x_t + \alpha_s \bigl(1 - e^{-(1 + \eta) h}\bigr)\,\tilde x_0
    + \sigma_s \sqrt{1 - e^{-2 \eta h}}\,z, \qquad
    \tilde x_0 = m_0 + \frac{h}{2 h_0} (m_0 - m_1) \ \text{(2M)},

:math:`m_0, m_1, m_2` being the images at the point, the one before and the one before that, :math:`h_0, h_1` the
steps between them, and :math:`\eta` the noise of the stochastic solver, 0 for the others. The third order is

.. math::
    \tilde x_0 = m_0 + \frac{\varphi_2}{\varphi_1} D_1 + c\,\frac{\varphi_3}{\varphi_1} D_2, \quad
    D_2 = \frac{h}{h_0 + h_1} (d_0 - d_1),\ D_1 = d_0 + \frac{h_0}{h} D_2,\ d_k = \frac{h}{h_k} (m_k - m_{k+1})

with :math:`\varphi_k` at :math:`-h`. Since :math:`D_2` estimates half of the second derivative, c = 2 has order
three. The code of the paper, and what follows it, has c = 1: order two, though with a small error. On a mixture of
Gaussians c = 1 is the better one on Karras's grid up to 40 steps, and c = 2 on a grid uniform in lambda from 10 on.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
    https://arxiv.org/abs/2211.01095
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from lightning_gen.diffusion.solvers.base import Denoise, Normal, Point, Solver
from lightning_gen.diffusion.solvers.linear import weighted
from lightning_gen.diffusion.solvers.multistep import order_within, phi, recall, remember

SHORT = 15
"""A run of fewer steps ends in steps of lower orders, as in the code of the paper."""


class _DPMSolverPP(Solver):
    order: ClassVar[int] = 2
    eta: float = 0.0

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Take the step with a mixture of the images at this point and the last ones."""
        here, there = points[i], points[i + 1]
        x0, past, left = denoise(x, here, here).x0, recall(memory), len(points) - 1 - i
        order = order_within(self.order, past, here, there)
        if len(points) - 1 < SHORT:
            order = min(order, left)
        h = there.log_snr - here.log_snr
        times = [here.log_snr, *(known.log_snr for known in past)]
        weights = self._mixture(order, h, [later - earlier for later, earlier in pairwise(times)])
        remember(memory, here, x0, self.order - 1)

        # h may be infinite
        churn = self.eta * h if self.eta else 0.0
        gain = -there.alpha * math.expm1(-h - churn)
        images = [x0, *(known.x0 for known in past)]
        mean = weighted(
            (there.sigma / here.sigma * math.exp(-churn), x),
            *((gain * weight, image) for weight, image in zip(weights, images, strict=False)),
        )
        spread = there.sigma * math.sqrt(-math.expm1(-2 * churn))
        return weighted((1.0, mean), (spread, normal())) if spread else mean

    def _mixture(self, order: int, h: float, gaps: Sequence[float]) -> list[float]:
        """Return the weights of the images, the newest first."""
        if order == 1:
            return [1.0]
        ratio = 0.5 * h / gaps[0]
        return [1 + ratio, -ratio]


class DPMSolverPP2M(_DPMSolverPP):
    """Order two. The first step and the one to the clean image are of order one."""


class DPMSolverPP2MSDE(_DPMSolverPP):
    """The same with noise, which is added at once for a whole step (the midpoint form).

    Args:
        eta: how much noise; 0 is DPMSolverPP2M, 1 the reverse of the diffusion.
    """

    def __init__(self, eta: float = 1.0) -> None:
        if eta < 0:
            raise ValueError(f"DPMSolverPP2MSDE takes eta of 0 (no noise) or more; given was {eta}.")
        self.eta = eta


class DPMSolverPP3M(_DPMSolverPP):
    """Three images a step; the first two steps have one and two, as has the end of a run of fewer than 15 steps.

    Args:
        corrected: whether the term of the second derivative is whole, which makes it order three; the published form
            has half of it and is of order two. With few steps either may be the better one, by the grid.
    """

    order = 3

    def __init__(self, corrected: bool = False) -> None:
        self.corrected = corrected

    def _mixture(self, order: int, h: float, gaps: Sequence[float]) -> list[float]:
        """Return the weights of the images, the newest first."""
        if order < 3:
            return super()._mixture(order, h, gaps)
        first, second = phi(2, -h) / phi(1, -h), phi(3, -h) / phi(1, -h) * (2 if self.corrected else 1)
        # D1 and D2 as multiples of d_0 and d_1, then of the images
        bend = (first * gaps[0] + second * h) / (gaps[0] + gaps[1])
        newer, older = (first + bend) * h / gaps[0], -bend * h / gaps[1]
        return [1 + newer, older - newer, -older]
