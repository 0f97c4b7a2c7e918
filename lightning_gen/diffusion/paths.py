r"""Gaussian paths from data to noise: the pair :math:`(\alpha, \sigma)` as a function of the time.

At time :math:`t \in [0, 1]`, 0 being data and 1 noise, an image :math:`x_0` has become

.. math:: x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon, \qquad \varepsilon \sim \mathcal{N}(0, I).

Everything else follows from the pair: the noise level :math:`\sigma/\alpha` (the sigma of EDM, and the
inverse root of the signal-to-noise ratio) and the derivatives in t. Pairs are kept rather than the noise level
alone, since rectified flow and zero terminal SNR end at :math:`\alpha = 0`. All of it is float64: in float32 a
cosine schedule is off by 1e-5.

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
    Common Diffusion Noise Schedules and Sample Steps are Flawed (zero terminal SNR)
    https://arxiv.org/abs/2305.08891
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.errors import choose


class Level:
    """The noise of some times of a path: what every formula reads.

    Args:
        path: the path.
        t: times in [0, 1], `(B,)` or a scalar.

    Attributes:
        alpha: weight of the image, of the shape of t, float64.
        sigma: weight of the noise, likewise.
    """

    def __init__(self, path: "Path", t: Tensor) -> None:
        self.path, self.t = path, precise(t)
        self.alpha, self.sigma = path.coefficients(self.t)

    @property
    def noise_level(self) -> Tensor:
        """The ratio sigma / alpha, from 0 to infinity."""
        return self.sigma / self.alpha

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2, the signal-to-noise ratio."""
        return (self.alpha / self.sigma).square()

    @cached_property
    def derivatives(self) -> tuple[Tensor, Tensor]:
        """The derivatives d alpha / dt and d sigma / dt."""
        return self.path.derivatives(self.t)


class Path(ABC):
    """Base class of the paths."""

    # steps of a path whose network was trained at so many times only
    steps: int | None = None

    def at(self, t: Tensor) -> Level:
        """Return the noise at times t."""
        return Level(self, t)

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float64, of the shape of t (float64); exact at t = 0 and 1 where they are 0 or 1."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return d alpha / dt and d sigma / dt, float64, of the shape of t; infinite where the path has that slope."""
        slopes: tuple[Tensor, Tensor] = torch.func.jvp(self.coefficients, (t,), (torch.ones_like(t),))[1]
        return slopes

    @abstractmethod
    def time(self, noise_level: Tensor) -> Tensor:
        """Return the times at which sigma / alpha has these values, float64; the inverse of `coefficients`.

        Paths that have no end of their own (VE, EDM) go on outside of [0, 1].
        """

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of the image is left at t = 1, alpha = 0: zero terminal SNR."""
        alpha, _ = self.coefficients(torch.ones((), dtype=torch.float64))
        return bool(alpha == 0)

    def noise_scale(self) -> float:
        """Standard deviation of what sampling starts from: sigma(1)."""
        return float(self.coefficients(torch.ones((), dtype=torch.float64))[1])


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


BetaSchedule = Literal["linear", "scaled_linear", "cosine", "sigmoid"]


class DiscreteVP(Path):
    r"""A table of T steps, :math:`\alpha_k^2 = \prod_{i \le k} (1 - \beta_i)`, step k standing at t = k / T.

    t = 0 is the image itself and t = 1 the last step; the network's noise label is k - 1, as the tables count.
    Between the steps the angle :math:`\arctan(\sigma/\alpha)` is linear.

    Args:
        steps: T.
        schedule: of beta: "linear" (DDPM), "scaled_linear" (its root linear; latent diffusion), "cosine"
            (improved DDPM, beta at most 0.999) or "sigmoid" (GeoDiff).
        beta_start: the first beta, where the schedule is not the cosine.
        beta_end: the last one.
        zero_terminal_snr: shift and scale the table so that the last alpha is 0 (algorithm 1 of the paper).
        betas: the table itself instead.
    """

    def __init__(
        self,
        steps: int = 1000,
        schedule: BetaSchedule = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
        betas: list[float] | None = None,
    ) -> None:
        if betas is not None:
            steps = len(betas)
        least = 2 if zero_terminal_snr else 1
        if steps < least:
            raise ValueError(
                f"DiscreteVP takes {least} steps or more {'with' if least == 2 else 'without'} zero_terminal_snr; given"
                f" were {steps}."
            )
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"DiscreteVP takes 0 < beta_start <= beta_end < 1; given were {beta_start}, {beta_end}.")
        table = (
            _betas(steps, schedule, beta_start, beta_end) if betas is None else torch.tensor(betas, dtype=torch.float64)
        )
        if not bool((table > 0).all() and (table[:-1] < 1).all() and table[-1] <= 1):
            raise ValueError("DiscreteVP takes betas above 0 and below 1; the last one may be 1.")
        self.steps: int = steps
        self.schedule, self.beta_start, self.beta_end = schedule, beta_start, beta_end
        self.zero_terminal_snr, self.betas = zero_terminal_snr, betas
        # the angles arctan(sigma / alpha) and arctan(alpha / sigma) of steps 0 ... T, of each device that asked
        alpha, sigma = _table(table, zero_terminal_snr)
        self._angles = {alpha.device: (torch.atan2(sigma, alpha), torch.atan2(alpha, sigma))}

    def _angles_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._angles:
            angle, rest = self._angles[torch.device("cpu")]
            self._angles[device] = precise(angle, device), precise(rest, device)
        return self._angles[device]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Look alpha and sigma up, or turn the angle between two steps."""
        angle, rest = self._angles_on(t.device)
        place = t * self.steps
        # a time that is a step to within rounding is that step
        step = place.detach().round()
        place = torch.where((place.detach() - step).abs() < 1e-12 * self.steps, place - place.detach() + step, place)
        low = place.detach().floor().clamp(0, self.steps - 1).long()
        share = place - low
        turned = torch.lerp(angle[low], angle[low + 1], share)
        left = torch.lerp(rest[low], rest[low + 1], share)
        return torch.sin(left), torch.sin(turned)

    def time(self, noise_level: Tensor) -> Tensor:
        """Find the steps around the angle."""
        level = precise(noise_level)
        table, _ = self._angles_on(level.device)
        angle = torch.atan(level)
        low = (torch.searchsorted(table, angle.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        return (low + (angle - table[low]) / (table[low + 1] - table[low])) / self.steps


def precise(values: Tensor, device: torch.device | None = None) -> Tensor:
    """Turn numbers into float64, or float32 on devices that have no other; on their device, or on another one."""
    device = values.device if device is None else device
    # in this order: a device without float64 must not be sent any
    return values.to(torch.float32 if device.type == "mps" else torch.float64).to(device)


def scaled(x: Tensor, coefficient: Tensor) -> Tensor:
    """Multiply every sample by its coefficient.

    Args:
        x: `(B, ...)`.
        coefficient: `(B,)`, or a scalar for all, which may lie on the CPU; of any precision.

    Returns:
        The product, in the precision of x.
    """
    if coefficient.ndim == 0:
        return x * coefficient
    return x * coefficient.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def diffuse(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Return x_t, the image with noise of that level."""
    return scaled(x0, level.alpha) + scaled(noise, level.sigma)


def _check_sigmas(path: Path, low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"{type(path).__name__} takes 0 < sigma_min < sigma_max; given were {low} and {high}.")


def _betas(steps: int, schedule: BetaSchedule, start: float, end: float) -> Tensor:
    line = torch.linspace(0, 1, steps, dtype=torch.float64)
    tables: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: start + line * (end - start),
        "scaled_linear": lambda: (start**0.5 + line * (end**0.5 - start**0.5)).square(),
        "sigmoid": lambda: start + torch.sigmoid(line * 12 - 6) * (end - start),
        "cosine": lambda: _cosine_betas(steps),
    }
    return choose("schedule of betas", schedule, tables)()


def _cosine_betas(steps: int) -> Tensor:
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _table(betas: Tensor, zero_terminal_snr: bool) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of steps 0 ... T."""
    log_alpha2 = torch.log1p(-betas).cumsum(0)
    alpha, sigma = (0.5 * log_alpha2).exp(), (-torch.expm1(log_alpha2)).sqrt()
    if zero_terminal_snr:
        # 1 - alpha from the logarithm: the first steps keep their digits
        missing = -torch.expm1(0.5 * log_alpha2)
        missing = (alpha[0] * missing - alpha[-1] * missing[0]) / (alpha[0] - alpha[-1])
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        sigma = (missing * (1 + alpha)).sqrt()
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return torch.cat([one, alpha]), torch.cat([none, sigma])
