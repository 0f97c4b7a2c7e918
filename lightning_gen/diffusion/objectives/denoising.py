r"""The denoising loss, and the variational bound where a variance is learned.

.. math:: L = \mathbb{E}_{x_0, \varepsilon, t}\; w(t)\,\lVert \hat x_0(x_t, t) - x_0 \rVert^2 / D

With a learned variance :math:`\lambda\,T\,L_t` is added (the hybrid loss of improved DDPM), :math:`L_t` being the
Kullback-Leibler divergence of the step's posterior from the model's step, in bits per dimension, or the negative
log-likelihood of the 256 bytes at the first step; its gradient does not reach the mean.

References:
    Denoising Diffusion Probabilistic Models
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models
    https://arxiv.org/abs/2102.09672
"""

import math

import torch
from torch import Tensor

from lightning_gen.diffusion.objectives.base import Fit, Losses, Objective, Setting
from lightning_gen.diffusion.paths import Level, diffuse, scaled
from lightning_gen.networks.denoiser import Condition


class DenoisingMSE(Objective):
    """The weighted squared error.

    Args:
        vlb_weight: lambda, the weight of the variational bound where the network learns a variance.
    """

    def __init__(self, vlb_weight: float = 0.001) -> None:
        super().__init__()
        if vlb_weight < 0:
            raise ValueError(f"vlb_weight is 0 or more; given was {vlb_weight}.")
        self.vlb_weight = vlb_weight

    def check(self, fit: Fit) -> None:
        """Refuse two times, and a learned variance where there are no steps that it could be of."""
        super().check(fit)
        if fit.denoiser.net.learned_variance and fit.denoiser.path.steps is None:
            raise ValueError(
                "learned_variance is the variance of a step of a discrete path: use the path DiscreteVP, or set"
                " learned_variance of the network to false."
            )

    def forward(self, x0: Tensor, cond: Condition, setting: Setting) -> Losses:
        """Return the losses of images `(B, C, H, W)`."""
        denoiser, stream = setting.denoiser, setting.stream
        times = setting.times(denoiser.path, stream, setting.rank, setting.world)
        x0, noise, cond = setting.coupling(x0, stream.normal(*x0.shape[1:]), cond, stream)
        level = denoiser.path.at(times.t)
        scales = denoiser.scales(level)
        x_t = diffuse(x0, noise, level)
        output, variance = denoiser.output(x_t, level, cond, scales)
        target = scaled(x0, scales.clean) + scaled(noise, scales.noise)
        # half precision has too few digits for a sum of squares
        kind = torch.promote_types(target.dtype, torch.float32)
        error = (output.to(kind) - target.to(kind)).square().flatten(1).mean(1)
        loss = setting.weighting(error, level, scales)
        logs = {}
        if variance is not None and self.vlb_weight:
            x0_hat = denoiser.image(x_t, output.detach(), scales)
            bound = variational_bound(x0.to(kind), x_t.to(kind), x0_hat.to(kind), variance.to(kind), level)
            steps = denoiser.path.steps or 1
            loss = loss + self.vlb_weight * steps * bound
            logs["vlb"] = bound.mean()
        if times.weight is not None:
            return Losses(loss * times.weight.to(loss.dtype), times.t, loss.detach(), logs)
        return Losses(loss, times.t, error.detach(), logs)


def variational_bound(x0: Tensor, x_t: Tensor, x0_hat: Tensor, variance: Tensor, level: Level) -> Tensor:
    """Return L_t in bits per dimension, `(B,)`, of steps of a discrete path.

    Args:
        x0: images, `(B, C, H, W)`.
        x_t: the noisy ones.
        x0_hat: the images expected.
        variance: where the logarithm of the variance lies between its bounds, 0 to 1.
        level: the noise, times `(B,)` being steps.
    """
    steps = level.path.steps or 1
    below = level.path.at(level.t - 1 / steps)
    kept, log_small, log_large = posterior(level, below)
    log_variance = scaled(variance, log_large - log_small) + _rows(log_small, x0)
    difference = scaled(x0 - x0_hat, below.alpha - kept * level.alpha)
    small = _rows(log_small, x0)
    divergence = 0.5 * (
        log_variance - small + torch.exp(small - log_variance) + difference.square() * torch.exp(-log_variance) - 1
    )
    mean = scaled(x_t, kept) + scaled(x0_hat, below.alpha - kept * level.alpha)
    first = level.t * steps < 1.5
    bytes_ = -byte_log_likelihood(x0, mean, 0.5 * log_variance)
    nats = torch.where(first.view(-1, *[1] * (x0.ndim - 1)), bytes_, divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def posterior(level: Level, below: Level) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return what a step knows, each of the shape of the times.

    The posterior of :math:`x_s` given :math:`x_t` and :math:`x_0` has the mean
    :math:`k x_t + (\alpha_s - k \alpha_t) x_0`.

    Returns:
        k, the logarithm of the posterior's variance (of the step above, at the first step, where it is 0), and that
        of the variance added forward.
    """
    ratio = level.alpha / below.alpha
    added = level.sigma.square() - ratio.square() * below.sigma.square()
    kept = ratio * below.sigma.square() / level.sigma.square()
    small = added * below.sigma.square() / level.sigma.square()
    # at the first step the posterior is a point: as published, the second step's variance stands in
    steps = level.path.steps or 1
    one, two = level.path.at(torch.full_like(level.t, 1 / steps)), level.path.at(torch.full_like(level.t, 2 / steps))
    next_added = two.sigma.square() - (two.alpha / one.alpha).square() * one.sigma.square()
    stand_in = next_added * one.sigma.square() / two.sigma.square()
    small = torch.where(below.sigma > 0, small, stand_in)
    return kept, small.log(), added.log()


def byte_log_likelihood(x0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probability of bytes under a normal distribution cut at their bounds, per dimension.

    Args:
        x0: images whose values are bytes / 127.5 - 1.
        mean: of the distribution.
        log_std: logarithm of its standard deviation.
    """
    half = 1 / 255
    inverse = torch.exp(-log_std)
    upper, lower = (x0 - mean + half) * inverse, (x0 - mean - half) * inverse
    # each from the tail that keeps its digits
    log_upper, log_above = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    flip = x0 > mean
    a = torch.where(flip, -lower, upper)
    b = torch.where(flip, -upper, lower)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    between = log_a + torch.log(-torch.expm1((log_b - log_a).clamp(max=-1e-7)))
    return torch.where(x0 < -1 + half, log_upper, torch.where(x0 > 1 - half, log_above, between))


def _rows(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
