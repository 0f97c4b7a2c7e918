r"""Steps of order one, with as much fresh noise as one likes: DDPM, DDIM, Euler, and the steps of consistency models.

From the noise level t to a lower one s, with :math:`r = \alpha_t\sigma_s / (\alpha_s\sigma_t)` their ratio and
:math:`\hat x_0` the image expected at t,

.. math::
    x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \eta^2 v}\,\frac{x_t - \alpha_t \hat x_0}{\sigma_t} + \sqrt{w}\,z,
    \qquad v = \sigma_s^2 (1 - r^2), \quad z \sim \mathcal{N}(0, I).

For :math:`\eta = 1` the first two terms are the mean of :math:`x_s` given :math:`x_t` and the image, and v its
variance: DDPM with the small variance :math:`w = v`. The large one is that of :math:`x_t` given :math:`x_s`,
:math:`\sigma_{t|s}^2 = \sigma_t^2 (1 - r^2)`. DDIM takes :math:`w = \eta^2 v`, and :math:`\eta = 0` is Euler's step
in the noise level, on every path. All of it holds from :math:`\alpha_t = 0`, where r = 0, and no noise is added where
none may be left, :math:`\sigma_s = 0`.

References:
    Denoising Diffusion Probabilistic Models
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (the learned variance, eq. 15)
    https://arxiv.org/abs/2102.09672
    Denoising Diffusion Implicit Models (eq. 12 and 16)
    https://arxiv.org/abs/2010.02502
    Consistency Models (algorithm 1)
    https://arxiv.org/abs/2303.01469
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_gen.diffusion.solvers.base import Denoise, Normal, Point, Prediction, Solver
from lightning_gen.diffusion.solvers.linear import shrinkage, weighted
from lightning_gen.errors import choose

Variance = Literal["small", "large", "learned"]


class DDPM(Solver):
    """The reverse of the chain that added the noise, in any number of steps.

    Args:
        variance: of the noise added in a step: "small" is right for data of one point and "large" for data that is
            normal noise, the more steps the nearer they are; "learned" lies between them where the network says.
    """

    def __init__(self, variance: Variance = "small") -> None:
        choose("variance of DDPM", variance, dict.fromkeys(("small", "large", "learned")))
        self.variance = variance

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Draw x_s given x_t and the image expected."""
        here, there = points[i], points[i + 1]
        prediction = denoise(x, here, here)
        spread = self._deviation(prediction, here, there)
        mean = _toward(x, prediction.x0, here, there, eta=1.0)
        return mean + normal() * spread if there.sigma else mean

    def _deviation(self, prediction: Prediction, here: Point, there: Point) -> float | Tensor:
        small, large = there.sigma * _fresh(here, there), here.sigma * _fresh(here, there)
        if self.variance != "learned":
            return small if self.variance == "small" else large
        if prediction.variance is None:
            raise ValueError(
                "DDPM was given variance='learned', but the network says no variance: use variance='small' or 'large',"
                " or a network with learned_variance=True, trained for it."
            )
        if not there.sigma:
            return 0.0
        low, high = math.log(small), math.log(large)
        return (prediction.variance * (high - low) + low).exp()


class DDIM(Solver):
    """The steps of DDPM with a part of their noise, down to none.

    The network is told both ends of the step, for those that know two times (MeanFlow).

    Args:
        eta: from 0, no noise, to 1, that of DDPM with the small variance.
    """

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"{type(self).__name__} takes eta from 0 (no noise) to 1 (DDPM's); given was {eta}.")
        self.eta = eta

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Go toward the image, and add the noise that was left out."""
        here, there = points[i], points[i + 1]
        mean = _toward(x, denoise(x, here, there).x0, here, there, self.eta)
        spread = self.eta * there.sigma * _fresh(here, there)
        return weighted((1.0, mean), (spread, normal())) if spread else mean


class Euler(DDIM):
    """Euler's method in the noise level: DDIM without noise."""

    def __init__(self) -> None:
        super().__init__(eta=0.0)


class EulerAncestral(DDIM):
    """Euler's method to a lower noise level than wanted, and noise to make up for it: DDIM with eta = 1.

    Args:
        eta: from 0, no noise, to 1.
    """

    def __init__(self, eta: float = 1.0) -> None:
        super().__init__(eta)


class ConsistencySteps(Solver):
    """Sampling of consistency models: the image in one evaluation, noise again, and a better image from that."""

    def step(
        self, denoise: Denoise, x: Tensor, points: Sequence[Point], i: int, memory: dict[str, Any], normal: Normal
    ) -> Tensor:
        """Return alpha_s x0 + sigma_s z with fresh noise z; the image itself in the last step."""
        here, there = points[i], points[i + 1]
        x0 = denoise(x, here, here).x0
        return weighted((there.alpha, x0), (there.sigma, normal())) if there.sigma else x0 * there.alpha


def _fresh(here: Point, there: Point) -> float:
    """Return sqrt(1 - r^2), the part of the noise at s that may be a fresh one."""
    ratio = shrinkage(here, there)
    return math.sqrt((1 - ratio) * (1 + ratio))


def _toward(x: Tensor, x0: Tensor, here: Point, there: Point, eta: float) -> Tensor:
    """Return the mean of x_s where eta^2 v of its variance comes from fresh noise."""
    # sigma_s^2 - eta^2 v = sigma_s^2 (1 - eta^2 + eta^2 r^2), as a sum of positive terms
    kept = there.sigma / here.sigma * math.hypot(math.sqrt(1 - eta**2), eta * shrinkage(here, there))
    return weighted((kept, x), (there.alpha - kept * here.alpha, x0))
