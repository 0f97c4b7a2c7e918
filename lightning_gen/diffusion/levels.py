"""What a Gaussian path is, and the noise of its times; the paths themselves are in `paths` and `tables`."""

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor


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
