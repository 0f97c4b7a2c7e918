r"""How much each noise level counts in the loss, in one place and in units of the image.

The loss of a sample is :math:`w\,\lVert \hat x_0 - x_0 \rVert^2 / D`. Since :math:`\hat x_0 - x_0 =
c_\text{out} (F - F^*)`, the error of the network's own output counts :math:`w\,c_\text{out}^2`, which is computed
as one number. With SNR :math:`= \alpha^2/\sigma^2`, a plain loss on the noise is :math:`w = \text{SNR}`, on v
:math:`\text{SNR} + 1`, on the velocity of rectified flow :math:`1/t^2`, on EDM's output
:math:`\text{SNR} + 1/\sigma_d^2`.

References:
    Efficient Diffusion Training via Min-SNR Weighting Strategy
    https://arxiv.org/abs/2303.09556
    Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers (soft-min-SNR)
    https://arxiv.org/abs/2401.11605
    Elucidating the Design Space of Diffusion-Based Generative Models
    https://arxiv.org/abs/2206.00364
    Analyzing and Improving the Training Dynamics of Diffusion Models (learned uncertainty)
    https://arxiv.org/abs/2312.02696
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_gen.diffusion.parameterizations import Scales
from lightning_gen.diffusion.paths import Level


class Weighting(nn.Module, ABC):
    """Base class of the weightings."""

    @abstractmethod
    def of_image(self, level: Level) -> Tensor:
        """Return w, the weight of the squared error of the image, of the shape of the times."""

    def of_output(self, level: Level, scales: Scales) -> Tensor:
        """Return w c_out^2, the weight of the squared error of the network's output."""
        return self.of_image(level) * scales.out.square()

    def forward(self, error: Tensor, level: Level, scales: Scales) -> Tensor:
        """Weigh; objectives call it as a module, which puts the parts of what is learned together."""
        return self.weigh(error, level, scales)

    def weigh(self, error: Tensor, level: Level, scales: Scales) -> Tensor:
        """Weigh the mean squared errors `(B,)` of the output."""
        return error * self.of_output(level, scales).to(error.dtype)


class Plain(Weighting):
    """The squared error of the network's output as it is: the "simple" loss of each parameterization."""

    def of_image(self, level: Level) -> Tensor:
        """Have no weight of its own: it is 1 / c_out^2."""
        raise NotImplementedError("The weight of the plain loss is that of the parameterization, 1 / c_out^2.")

    def of_output(self, level: Level, scales: Scales) -> Tensor:
        """Return ones."""
        return torch.ones_like(scales.out)


class SNR(Weighting):
    """The signal-to-noise ratio: what a plain loss on the noise amounts to."""

    def of_image(self, level: Level) -> Tensor:
        """Return the ratio."""
        return level.snr


class MinSNR(Weighting):
    """min(SNR, gamma): the same gradients whatever the parameterization.

    Args:
        gamma: the bound.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        super().__init__()
        if not gamma > 0:
            raise ValueError(f"MinSNR takes gamma above 0; given was {gamma}.")
        self.gamma = gamma

    def of_image(self, level: Level) -> Tensor:
        """Return the bounded ratio."""
        return level.snr.clamp(max=self.gamma)


class SoftMinSNR(Weighting):
    """1 / (s^2 + sigma_data^2) with the noise level s: min-SNR without a corner.

    Args:
        sigma_data: standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = _positive(self, sigma_data)

    def of_image(self, level: Level) -> Tensor:
        """Return the weight, written with alpha^2 above so that no infinite level is met."""
        alpha2 = level.alpha.square()
        return alpha2 / (level.sigma.square() + alpha2 * self.sigma_data**2)


class EDMWeighting(Weighting):
    """SNR + 1 / sigma_data^2: the error of EDM's output counts 1 at every noise level (table 1).

    Args:
        sigma_data: standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = _positive(self, sigma_data)

    def of_image(self, level: Level) -> Tensor:
        """Return the weight."""
        return level.snr + self.sigma_data**-2


class LearnedUncertainty(Weighting):
    r"""EDM2's: another weighting, divided by a learned variance :math:`e^{u}` of each noise level, plus u (eq. 21).

    With the optimal u every noise level contributes alike.

    Args:
        base: the weighting whose loss is brought to one.
        channels: Fourier features of the noise level that u is linear in.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, base: Weighting | None = None, channels: int = 128) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"LearnedUncertainty takes 2 channels or more; given were {channels}.")
        self.base = base if base is not None else EDMWeighting()
        # a fixed draw, the same for all models: nothing here depends on the global generator
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels, generator=generator))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels, generator=generator))
        self.linear = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def of_image(self, level: Level) -> Tensor:
        """Return the base's weight, without the uncertainty."""
        return self.base.of_image(level)

    def log_variance(self, level: Level) -> Tensor:
        """Return u, of the shape of the times."""
        # no infinite noise levels, and no angles of less than single precision
        place = torch.log(level.noise_level.clamp(1e-6, 1e6)) / 4
        kind = torch.promote_types(self.frequencies.dtype, torch.float32)
        features = torch.cos(place[..., None].to(kind) * self.frequencies.to(kind) + self.phases.to(kind))
        u: Tensor = self.linear((features * math.sqrt(2 / len(self.phases))).to(self.linear.weight.dtype))
        return u.squeeze(-1)

    def weigh(self, error: Tensor, level: Level, scales: Scales) -> Tensor:
        """Weigh, divide by the variance and add its logarithm."""
        u = self.log_variance(level).to(error.dtype)
        return error * self.base.of_output(level, scales).to(error.dtype) * torch.exp(-u) + u


def _positive(weighting: Weighting, sigma_data: float) -> float:
    if not sigma_data > 0:
        raise ValueError(f"{type(weighting).__name__} takes sigma_data above 0; given was {sigma_data}.")
    return sigma_data
