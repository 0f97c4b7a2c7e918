r"""Gaussian paths from data to noise: the pair :math:`(\alpha, \sigma)` as a function of the time.

At time :math:`t \in [0, 1]`, 0 being data and 1 noise, an image :math:`x_0` has become

.. math:: x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, I).

Everything else follows from the pair: the noise level :math:`\sigma/\alpha` (the sigma of EDM, and the
inverse root of the signal-to-noise ratio) and the derivatives in t. Pairs are kept rather than the noise level
alone, since rectified flow and zero terminal SNR end at :math:`\alpha = 0`. All of it is float64: in float32 a
cosine schedule is off by 1e-5. The discrete path is in `tables`.

References:
    Score-Based Generative Modeling through Stochastic Differential Equations (VP, VE)
    https://arxiv.org/abs/2011.13456
    Improved Denoising Diffusion Probabilistic Models (cosine)
    https://arxiv.org/abs/2102.09672
    Elucidating the Design Space of Diffusion-Based Generative Models (EDM)
    https://arxiv.org/abs/2206.00364
    Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
    https://arxiv.org/abs/2209.03003
    On the Importance of Noise Scheduling for Diffusion Models (sigmoid)
    https://arxiv.org/abs/2301.10972
"""

import math

import torch
from torch import Tensor

from lightning_gen.diffusion.levels import Level, Path, diffuse, precise, scaled
from lightning_gen.diffusion.tables import BetaSchedule, DiscreteVP

__all__ = [
    "EDM",
    "VE",
    "VP",
    "BetaSchedule",
    "CosineVP",
    "DiscreteVP",
    "Level",
    "Path",
    "RectifiedFlow",
    "SigmoidVP",
    "diffuse",
    "precise",
    "scaled",
]


class VP(Path):
    r"""Variance preserving, :math:`\beta(t)` linear: :math:`\log \alpha = -t^2 (\beta_1 - \beta_0)/4 - t\beta_0/2`.

    Args:
        beta_min: rate at t = 0.
        beta_max: rate at t = 1.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"VP takes 0 < beta_min <= beta_max; given were {beta_min} and {beta_max}.")
        self.beta_min, self.beta_max = beta_min, beta_max

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma (eq. 33 of the paper)."""
        log_alpha = -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def time(self, noise_level: Tensor) -> Tensor:
        """Solve the quadratic: with s the noise level, -2 log alpha = log(1 + s^2)."""
        twice = torch.log1p(precise(noise_level).square())
        delta = self.beta_max - self.beta_min
        # the root in the form that loses no digits for small t and holds for delta = 0
        return 2 * twice / (self.beta_min + (self.beta_min**2 + 2 * delta * twice).sqrt())


class CosineVP(Path):
    r"""Variance preserving with :math:`\alpha^2 = f(t)/f(0)`, :math:`f = \cos^2\frac{\pi}{2}\frac{t+s}{1+s}`.

    Args:
        offset: s, which keeps the first steps from being too small.
    """

    def __init__(self, offset: float = 0.008) -> None:
        if offset < 0:
            raise ValueError(f"CosineVP takes an offset of 0 or more; given was {offset}.")
        self.offset = offset

    @property
    def _angle(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma (eq. 17); the cosine is written as the sine of the rest, which is 0 at t = 1."""
        first = math.cos(self._angle)
        alpha = torch.sin(0.5 * math.pi * (1 - t) / (1 + self.offset)) / first
        turned = 0.5 * math.pi * t / (1 + self.offset)
        if self.offset == 0:
            return alpha, torch.sin(turned)
        # cos^2 a - cos^2 b = sin(a + b) sin(b - a): no digits lost at small t
        return alpha, (torch.sin(turned + 2 * self._angle) * torch.sin(turned)).sqrt() / first

    def time(self, noise_level: Tensor) -> Tensor:
        """Invert the sine of the rest where there is more noise than image, else the product of sines."""
        level, first = precise(noise_level), math.cos(self._angle)
        rest = torch.asin(first / torch.hypot(level, torch.ones_like(level)))
        # with T the tangent of the turned angle, (cos 2a - q) T^2 + sin 2a T = q
        q = (first / torch.hypot(1 / level, torch.ones_like(level))).square()
        sine, cosine = math.sin(2 * self._angle), math.cos(2 * self._angle)
        turned = torch.atan2(2 * q, sine + (sine**2 + 4 * q * (cosine - q)).clamp_min(0).sqrt())
        share = 2 * (1 + self.offset) / math.pi
        return torch.where(level < 1, turned * share, 1 - rest * share)


class SigmoidVP(Path):
    r"""Variance preserving with :math:`\alpha^2` a piece of a sigmoid, brought to 1 at t = 0 and to 0 at t = 1.

    Args:
        start: where the piece begins.
        end: where it ends.
        tau: its temperature.
    """

    def __init__(self, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> None:
        if not (start < end and tau > 0):
            raise ValueError(f"SigmoidVP takes start < end and tau > 0; given were {start}, {end} and {tau}.")
        self.start, self.end, self.tau = start, end, tau

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma (algorithm 1, `sigmoid_schedule`); differences of sigmoids are written as products."""
        start, half = self.start / (2 * self.tau), (self.end - self.start) / (2 * self.tau)
        # sigmoid(2 a) - sigmoid(2 b) = sinh(a - b) / (2 cosh(a) cosh(b))
        below = math.sinh(half) * torch.cosh(start + t * half)
        alpha2 = torch.sinh((1 - t) * half) * math.cosh(start) / below
        sigma2 = torch.sinh(t * half) * math.cosh(start + half) / below
        return alpha2.sqrt(), sigma2.sqrt()

    def time(self, noise_level: Tensor) -> Tensor:
        """Invert the sigmoid: with p its value, log(p / low) - log((1 - p) / (1 - low))."""
        level = precise(noise_level)
        low = 1 / (1 + math.exp(-self.start / self.tau))
        # 1 - low and 1 - high, with all their digits
        above_low, above_high = (1 / (1 + math.exp(x / self.tau)) for x in (self.start, self.end))
        alpha2, sigma2 = 1 / (1 + level.square()), 1 / (1 + level.pow(-2))
        rise = math.sinh((self.end - self.start) / (2 * self.tau))
        rise /= 2 * math.cosh(self.start / (2 * self.tau)) * math.cosh(self.end / (2 * self.tau))
        left = torch.where(
            sigma2 < 0.5, torch.log1p(-sigma2 * rise / above_low), ((above_high + alpha2 * rise) / above_low).log()
        )
        return (torch.log1p(sigma2 * rise / low) - left) * self.tau / (self.end - self.start)


class VE(Path):
    r"""Variance exploding: :math:`\alpha = 1`, :math:`\sigma = \sigma_0 (\sigma_1/\sigma_0)^t`.

    Args:
        sigma_min: noise at t = 0, taken for none.
        sigma_max: noise at t = 1.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        _check_sigmas(self, sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma (eq. 31)."""
        return torch.ones_like(t), self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()

    def time(self, noise_level: Tensor) -> Tensor:
        """Invert the exponential."""
        return (precise(noise_level) / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


class EDM(Path):
    r"""EDM's: :math:`\alpha = 1`, the :math:`\rho`-th root of :math:`\sigma` linear in time (eq. 5).

    Args:
        sigma_min: noise at t = 0, taken for none.
        sigma_max: noise at t = 1.
        rho: how much of the time goes to small noise.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        _check_sigmas(self, sigma_min, sigma_max)
        if rho <= 0:
            raise ValueError(f"EDM takes rho above 0; given was {rho}.")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma."""
        low, high = self._roots
        return torch.ones_like(t), (low + t * (high - low)).pow(self.rho)

    def time(self, noise_level: Tensor) -> Tensor:
        """Invert the power."""
        low, high = self._roots
        return (precise(noise_level).pow(1 / self.rho) - low) / (high - low)


class RectifiedFlow(Path):
    r"""Straight lines: :math:`\alpha = 1 - t`, :math:`\sigma = t`."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma."""
        return 1 - t, t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return -1 and 1."""
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, noise_level: Tensor) -> Tensor:
        """With s the noise level, t = s / (1 + s)."""
        return 1 / (1 + 1 / precise(noise_level))


def _check_sigmas(path: Path, low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"{type(path).__name__} takes 0 < sigma_min < sigma_max; given were {low} and {high}.")
