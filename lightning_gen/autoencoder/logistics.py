r"""Discretized logistic likelihoods: the probability mass of images of bytes, or of fewer values.

A logistic distribution of mean :math:`\mu` and scale s gives the value x, one of L evenly in [-1, 1], the mass of the
cell around it, :math:`h = 1 / (L - 1)` to either side; the cells at the ends reach to infinity:

.. math::
    P(x) = \sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,(1 - e^{-2h/s}), \qquad
    a = \frac{x - \mu + h}{s},\quad b = \frac{x - \mu - h}{s},

and :math:`\sigma(a)` or :math:`\sigma(-b)` at the ends. The product has its digits at every scale, however far out x
lies. In the mixture of PixelCNN++ all channels of a pixel come of one component, and the mean of a channel depends
linearly on the channels before it.

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications (section
    2.1 and 2.2)
    https://arxiv.org/abs/1701.05517
    Improved Variational Inference with Inverse Autoregressive Flow (the single logistic)
    https://arxiv.org/abs/1606.04934
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.autoencoder.likelihoods import Likelihood, wide
from lightning_gen.dequantization import to_levels
from lightning_gen.seeding import RandomStream

LOG_SCALE_RANGE = (-7.0, 20.0)
"""Logarithms of scales are kept in this range: above a ninth of a byte, as published, and where cells have a mass."""


class DiscretizedLogistic(Likelihood):
    """Independent logistic channels, cut into cells; the decoder tells means, then logarithms of scales.

    Args:
        levels: number of values L, evenly in [-1, 1]; 256 for bytes. Others are rounded to them.

    Raises:
        ValueError: for fewer than 2 or more than 256 levels.
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels: int = _checked(self, levels)

    def channels_out(self, channels: int) -> int:
        """Return twice the channels."""
        return 2 * channels

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the log-probability of images in nats, `(...)`."""
        mean, log_scale = wide(params).chunk(2, dim=-3)
        return log_mass(x.to(mean.dtype), mean, log_scale, self.levels).flatten(-3).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the means of the logistics, clamped to [-1, 1]."""
        return wide(params).chunk(2, dim=-3)[0].clamp(-1, 1)

    def sample(self, params: Tensor, stream: RandomStream) -> Tensor:
        """Draw images of the levels."""
        mean, log_scale = wide(params).chunk(2, dim=-3)
        return draw_level(mean, log_scale, stream.uniform(*mean.shape[1:]), self.levels)


class DiscretizedLogisticMixture(Likelihood):
    """The mixture of PixelCNN++.

    For each of its components the decoder tells a logit, the means, the logarithms of the scales and the coefficients
    of the channels before: 10 numbers for RGB, 3 for gray.

    Args:
        mixtures: number of components.
        levels: number of values L, evenly in [-1, 1]; 256 for bytes. Others are rounded to them.

    Raises:
        ValueError: for no component, fewer than 2 or more than 256 levels.
    """

    def __init__(self, mixtures: int = 10, levels: int = 256) -> None:
        super().__init__()
        if mixtures < 1:
            raise ValueError(f"DiscretizedLogisticMixture: mixtures is 1 or more; given was {mixtures}.")
        self.mixtures = mixtures
        self.levels: int = _checked(self, levels)

    def channels_out(self, channels: int) -> int:
        """Return the numbers of a component times the components."""
        return self.mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _read(self, params: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[list[Tensor]]]:
        """Return logits, means and scales of each channel, and the coefficients of the channels before each.

        All of shape `(..., M, H, W)`.
        """
        each = params.shape[-3] // self.mixtures
        channels = next(c for c in range(1, each) if 1 + 2 * c + c * (c - 1) // 2 == each)
        shape = (*params.shape[:-3], each, self.mixtures, *params.shape[-2:])
        logits, *rest = wide(params).reshape(shape).unbind(-4)
        means, scales, told = rest[:channels], rest[channels : 2 * channels], iter(rest[2 * channels :])
        return logits, means, scales, [[torch.tanh(next(told)) for _ in range(c)] for c in range(channels)]

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Return the log-probability of images in nats, `(...)`."""
        logits, means, scales, coefficients = self._read(params)
        values = to_levels(x.to(logits.dtype), self.levels).unsqueeze(-4).unbind(-3)
        total = F.log_softmax(logits, dim=-3)
        for value, mean, log_scale, of in zip(values, means, scales, coefficients, strict=True):
            for coefficient, before in zip(of, values, strict=False):
                mean = mean + coefficient * before
            total = total + log_mass(value, mean, log_scale, self.levels)
        return torch.logsumexp(total, dim=-3).flatten(-2).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """Return the means of the components, mixed and clamped to [-1, 1]."""
        logits, means, _, coefficients = self._read(params)
        expected: list[Tensor] = []
        for mean, of in zip(means, coefficients, strict=True):
            for coefficient, before in zip(of, expected, strict=False):
                mean = mean + coefficient * before
            expected.append(mean.clamp(-1, 1))
        mixed = (torch.softmax(logits, dim=-3).unsqueeze(-4) * torch.stack(expected, dim=-4)).sum(-3)
        return mixed.clamp(-1, 1)  # weights may add up to a little more than 1

    def sample(self, params: Tensor, stream: RandomStream) -> Tensor:
        """Draw images of the levels, channel after channel."""
        logits, means, scales, coefficients = self._read(params)
        cumulative = torch.softmax(logits, dim=-3).cumsum(-3)
        uniform = stream.uniform(1, *logits.shape[2:]).to(logits)
        # the last bound is 1 whatever rounding made of it
        chosen = (uniform > cumulative[:, :-1]).sum(-3, keepdim=True)
        drawn: list[Tensor] = []
        for mean, log_scale, of in zip(means, scales, coefficients, strict=True):
            center = mean.gather(-3, chosen)
            for coefficient, before in zip(of, drawn, strict=False):
                center = center + coefficient.gather(-3, chosen) * before
            of_chosen = log_scale.gather(-3, chosen)
            drawn.append(draw_level(center, of_chosen, stream.uniform(*center.shape[1:]), self.levels))
        return torch.cat(drawn, dim=-3)


def log_mass(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Return the log-probability of each value under a logistic cut into cells.

    Args:
        x: values in [-1, 1]; those beside the levels count as the nearest one.
        mean: of the logistics.
        log_scale: logarithms of their scales.
        levels: number of values.
    """
    half = 1 / (levels - 1)
    x = to_levels(x, levels)
    inverse = torch.exp(-log_scale.clamp(*LOG_SCALE_RANGE))
    below = F.logsigmoid((x - mean + half) * inverse)
    above = F.logsigmoid((mean - x + half) * inverse)
    inside = below + above + torch.log(-torch.expm1(-2 * half * inverse))
    return torch.where(x < -1 + half, below, torch.where(x > 1 - half, above, inside))


def draw_level(mean: Tensor, log_scale: Tensor, uniform: Tensor, levels: int) -> Tensor:
    """Send uniform numbers through the inverse of the logistic's distribution function, to the nearest level."""
    tiny = torch.finfo(mean.dtype).eps
    u = uniform.to(mean).clamp(tiny, 1 - tiny)
    drawn = mean + log_scale.clamp(*LOG_SCALE_RANGE).exp() * torch.logit(u)
    return to_levels(drawn, levels)


def _checked(likelihood: Likelihood, levels: int) -> int:
    if not 2 <= levels <= 256:
        raise ValueError(f"{type(likelihood).__name__}: levels is 2 to 256 (bytes); given was {levels}.")
    return levels
