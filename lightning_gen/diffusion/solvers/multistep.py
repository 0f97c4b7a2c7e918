r"""What multistep solvers share: the exponential integral of a step, and the images expected at earlier points.

With :math:`\lambda = \log(\alpha/\sigma)` the equation of the state has the exact solution

.. math::
    x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s \int_{\lambda_t}^{\lambda_s} e^{\lambda - \lambda_s}\,
    \hat x_0(\lambda)\,d\lambda
    = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s \sum_{k \ge 0} h^{k+1} \varphi_{k+1}(-h)\,\hat x_0^{(k)}(\lambda_t),
    \qquad h = \lambda_s - \lambda_t,

whose derivatives are taken from the images at earlier points. A point of infinite noise has no place among them.

References:
    DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps
    https://arxiv.org/abs/2206.00927
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
    https://arxiv.org/abs/2211.01095
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_gen.diffusion.solvers.base import Point


class Past(NamedTuple):
    """The image that was expected at an earlier point, and lambda there."""

    log_snr: float
    x0: Tensor


def recall(memory: dict[str, Any]) -> list[Past]:
    """Return the images of the run so far, the newest first."""
    past: list[Past] = memory.get("past", [])
    return past


def remember(memory: dict[str, Any], point: Point, x0: Tensor, length: int) -> None:
    """Keep an image with the newest before it, `length` in all."""
    if math.isfinite(point.log_snr):
        memory["past"] = [Past(point.log_snr, x0), *recall(memory)][:length]


def order_within(highest: int, past: Sequence[Past], here: Point, there: Point) -> int:
    """Return the order that the images known allow: one from infinite noise and to none."""
    infinite = math.isinf(here.log_snr) or math.isinf(there.log_snr)
    return 1 if infinite else min(highest, len(past) + 1)


def phi(order: int, z: float) -> float:
    r"""Return :math:`\varphi_k(z) = \sum_{n \ge 0} z^n / (n + k)!`, with :math:`\varphi_1(z) = (e^z - 1)/z`."""
    if abs(z) < 1:
        # the other form would lose digits
        return math.fsum(z**n / math.factorial(n + order) for n in range(20))
    value = math.expm1(z) / z
    for k in range(1, order):
        value = (value - 1 / math.factorial(k)) / z
    return value
