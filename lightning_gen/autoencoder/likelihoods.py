r"""What a decoder's output says of an image: the narrow type, the Gaussian and the Bernoulli likelihood.

.. math::
    \log \mathcal N(x; \mu, \sigma^2) = -\tfrac12 \sum_i \left[ \log 2\pi\sigma_i^2 + (x_i - \mu_i)^2 / \sigma_i^2
    \right], \qquad
    \log \mathrm{Ber}(p; l) = \sum_i \left[ p_i l_i - \log(1 + e^{l_i}) \right],

in nats, summed over all dimensions of an image: together with a divergence that is summed over the dimensions of the
latent it bounds log p(x). A mean over pixels instead would weigh the divergence by their number.

The Gaussian is a density of images in [-1, 1]. The Bernoulli reads a value x as the probability p = (x + 1) / 2, and is
the probability mass of images whose pixels are black or white; of others it is no likelihood.

References:
    Auto-Encoding Variational Bayes (appendix C)
    https://arxiv.org/abs/1312.6114
    Simple and Effective VAE Training with Calibrated Decoders (the learned deviations, their lower bound)
    https://arxiv.org/abs/2006.13202
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoder.softplus import softplus_sum
from lightning_gen.dequantization import to_levels
from lightning_gen.errors import choose
from lightning_gen.seeding import RandomStream

MIN_LOG_STD = -6.0
"""Learned standard deviations stay above exp(-6) softly: a third of a byte."""


class Likelihood(nn.Module, ABC):
    """A distribution of images, described by a decoder.

    Attributes:
        levels: number of values, evenly in [-1, 1], whose probability mass this is; None for a density.
    """

    levels: int | None = None

    @abstractmethod
    def channels_out(self, channels: int) -> int:
        """Return how many numbers a decoder gives for a pixel of so many channels."""

    @abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the log-likelihood of images in nats, summed over dimensions.

        Args:
            params: of the decoder, `(..., channels_out(C), H, W)`.
            x: images in [-1, 1], `(..., C, H, W)`, with leading dimensions that fit those of the parameters.

        Returns:
            `(...)`, in float32 or wider.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """Return the images expected, `(N, C, H, W)` in [-1, 1]."""

    @abstractmethod
    def sample(self, params: Tensor, stream: RandomStream) -> Tensor:
        """Draw images, `(N, C, H, W)` in [-1, 1]."""

    def params_of(self, mean: Tensor) -> Tensor:
        """Return what a decoder that knows nothing yet would say: parameters of the mean of all images.

        Args:
            mean: `(C, H, W)` in [-1, 1].

        Returns:
            `(channels_out(C), H, W)`.

        Raises:
            ValueError: where the mean alone does not say.
        """
        raise ValueError(
            f"{type(self).__name__} does not begin at the mean of the images: leave start_at_mean out, or use Bernoulli"
            " or Gaussian."
        )

    def check(self, x: Tensor) -> None:
        """Refuse images that this is no likelihood of; values are read on the CPU only, where that costs no wait.

        Raises:
            ValueError: for values out of range.
        """
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not x.numel():
            return
        # NaN passes: the loss tells of it
        largest = float(x.detach().abs().max())
        if largest > 1 + 1e-6:
            raise ValueError(
                f"{type(self).__name__} takes images in [-1, 1]; given were values up to {largest:.4g} in size."
            )

    def is_mass_of(self, x: Tensor) -> bool:
        """Tell whether this is the probability mass of images, all of whose values are among its own."""
        return self.levels is not None and _bytes_off(x, self.levels) <= _OFF

    def check_mass(self, x: Tensor) -> None:
        """Refuse images of other values than those whose probability mass this is.

        Raises:
            ValueError: for a density, or other values.
        """
        if self.levels is None:
            raise ValueError(
                f"{type(self).__name__} is a density and has no bits per dimension: use DiscretizedLogistic for"
                " images of bytes, Bernoulli for black and white ones."
            )
        off = _bytes_off(x, self.levels)
        if off > _OFF:
            raise ValueError(
                f"{type(self).__name__} is the probability mass of {self.levels} values evenly in [-1, 1], and a value"
                f" lies {off:.1f} bytes beside them: binarize images for Bernoulli (binarize='static' or"
                " 'dynamic'), set levels to the number of their values for others."
            )


# how far, in bytes, a value may be rounded
_OFF = 0.8


def _bytes_off(x: Tensor, levels: int) -> float:
    return float((to_levels(x, levels) - x).abs().max()) * 127.5


class Gaussian(Likelihood):
    """Independent normal pixels.

    Args:
        std: standard deviation, in units of images in [-1, 1]; where it is learned, what it starts from.
        learn: "no" for a fixed one, "scalar" for one of all pixels, "pixel" for one of each pixel of each image,
            which the decoder tells.

    Raises:
        ValueError: for a deviation that is not above 0, or another way of learning it.
    """

    def __init__(self, std: float = 1.0, learn: Literal["no", "scalar", "pixel"] = "no") -> None:
        super().__init__()
        choose("way to learn the deviation", learn, dict.fromkeys(("no", "scalar", "pixel")))
        if not std > 0:
            raise ValueError(f"Gaussian: std is above 0; given was {std}.")
        if learn != "no" and math.log(std) <= MIN_LOG_STD:
            raise ValueError(f"Gaussian: a learned std starts above {math.exp(MIN_LOG_STD):.4g}; given was {std}.")
        self.std, self.learn = std, learn
        # the softplus below, inverted
        self.start = math.log(std) if learn == "no" else MIN_LOG_STD + math.log(math.expm1(math.log(std) - MIN_LOG_STD))
        if learn == "scalar":
            self.raw = nn.Parameter(torch.tensor(self.start))

    def channels_out(self, channels: int) -> int:
        """Return the channels, twice where the decoder tells deviations."""
        return channels * (2 if self.learn == "pixel" else 1)

    def _read(self, params: Tensor) -> tuple[Tensor, Tensor]:
        params = wide(params)
        if self.learn == "no":
            return params, params.new_tensor(self.start)
        if self.learn == "scalar":
            mean, raw = params, self.raw.to(params.dtype)
        else:
            mean, offset = params.chunk(2, dim=-3)
            raw = offset + self.start
        return mean, MIN_LOG_STD + F.softplus(raw - MIN_LOG_STD)

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the log-density of images in [-1, 1], in nats, `(...)`."""
        mean, log_std = self._read(params)
        error = (x - mean) * torch.exp(-log_std)
        each = -0.5 * error.square() - log_std - 0.5 * math.log(2 * math.pi)
        return each.flatten(-3).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the means, clamped to [-1, 1]."""
        return self._read(params)[0].clamp(-1, 1)

    def params_of(self, mean: Tensor) -> Tensor:
        """Return the mean, and deviations as they start."""
        return torch.cat([mean, torch.zeros_like(mean)]) if self.learn == "pixel" else mean

    def sample(self, params: Tensor, stream: RandomStream) -> Tensor:
        """Draw images, clamped to [-1, 1]."""
        mean, log_std = self._read(params)
        return (mean + log_std.exp() * stream.normal(*mean.shape[1:]).to(mean)).clamp(-1, 1)

    def check(self, x: Tensor) -> None:
        """Take whatever values there are: dequantized images lie a little out of [-1, 1]."""


class Bernoulli(Likelihood):
    """Independent pixels that are black or white; the decoder tells logits."""

    levels = 2

    def channels_out(self, channels: int) -> int:
        """Return the channels."""
        return channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the log-likelihood in nats, `(...)`; values between -1 and 1 are read as probabilities."""
        logits = wide(params)
        # p l - log(1 + e^l), in two reductions, so that neither product nor softplus is kept twice
        on = ((x.to(logits.dtype) + 1) * (0.5 * logits)).flatten(-3).sum(-1)
        return on - softplus_sum(logits.flatten(-3))

    def mean(self, params: Tensor) -> Tensor:
        """Return the images expected: grays between black and white."""
        return 2 * torch.sigmoid(wide(params)) - 1

    def params_of(self, mean: Tensor) -> Tensor:
        """Return the logits, of probabilities between 0.001 and 0.999."""
        return torch.logit((mean + 1) / 2, eps=1e-3)

    def sample(self, params: Tensor, stream: RandomStream) -> Tensor:
        """Draw black and white images."""
        probability = torch.sigmoid(wide(params))
        return 2 * (stream.uniform(*probability.shape[1:]).to(probability) < probability).to(probability) - 1


def wide(params: Tensor) -> Tensor:
    """Return a network's output in float32 or wider: half precision has too few digits for a sum over pixels."""
    return params.to(torch.promote_types(params.dtype, torch.float32))
