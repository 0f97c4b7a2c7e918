r"""Which times are trained on.

A sampler is the quantile function of its distribution, applied to numbers u uniform in (0, 1]. Stratified, the u of
a global batch of N samples are one in each of N equal intervals, over all processes, which lowers the variance of
the loss. On a discrete path a time becomes the next step.

The importance sampler draws each step in proportion to the root mean square of its last losses, and divides by
that probability (eq. 18 of improved DDPM).

References:
    Improved Denoising Diffusion Probabilistic Models (importance sampling)
    https://arxiv.org/abs/2102.09672
    Elucidating the Design Space of Diffusion-Based Generative Models (lognormal noise levels)
    https://arxiv.org/abs/2206.00364
    Variational Diffusion Models (stratified times)
    https://arxiv.org/abs/2107.00630
    Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (logit-normal times)
    https://arxiv.org/abs/2403.03206
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.diffusion.paths import Path, precise
from lightning_gen.seeding import RandomStream


class Times(NamedTuple):
    """Times to train on.

    Attributes:
        t: float64 `(B,)`.
        weight: what the loss of each is multiplied by, `(B,)`; None for 1.
    """

    t: Tensor
    weight: Tensor | None = None


class TimeSampler(nn.Module, ABC):
    """Base class of the samplers.

    Args:
        stratified: spread the times of a global batch evenly over the distribution.
    """

    def __init__(self, stratified: bool = False) -> None:
        super().__init__()
        self.stratified = stratified

    @abstractmethod
    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """Return the times below which the share u of the distribution lies, float64, of the shape of u."""

    def forward(self, path: Path, stream: RandomStream, rank: int = 0, world: int = 1) -> Times:
        """Draw one time a sample of the stream.

        Args:
            path: the path.
            stream: where to draw.
            rank: this process, of `world`; each has as many samples.
            world: number of processes.
        """
        u = 1 - _uniform(stream)
        if self.stratified:
            n = len(u)
            u = (torch.arange(n, device=u.device) * world + rank + u) / (n * world)
        t = self.quantile(u, path)
        if path.steps is not None:
            t = (_interval(t, path.steps) + 1).to(t.dtype) / path.steps
        return Times(t)

    def update(self, path: Path, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses `(N,)` of times `(N,)`, those of all processes; does nothing unless overridden."""

    @property
    def learns(self) -> bool:
        """Whether `update` has to be called."""
        return False


class Uniform(TimeSampler):
    """All times alike.

    Args:
        low: the smallest time.
        high: the largest time.
        stratified: spread the times of a global batch evenly.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, stratified: bool = False) -> None:
        super().__init__(stratified)
        if not 0 <= low < high <= 1:
            raise ValueError(f"Uniform takes 0 <= low < high <= 1; given were {low} and {high}.")
        self.low, self.high = low, high

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """Return low + (high - low) u."""
        return self.low + (self.high - self.low) * u


class LogNormal(TimeSampler):
    """Noise levels sigma / alpha whose logarithm is normal.

    Args:
        mean: of the logarithm.
        std: of the logarithm.
        stratified: spread the times of a global batch evenly.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = False) -> None:
        super().__init__(stratified)
        self.mean, self.std = mean, _positive(self, std)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """Return the time of the noise level exp(mean + std z), z the normal quantile of u."""
        return path.time((self.mean + self.std * _normal_quantile(u)).exp())


class LogitNormal(TimeSampler):
    """Times whose logit is normal: the middle of the path more often than its ends.

    Args:
        mean: of the logit; above 0 for more noise.
        std: of the logit.
        stratified: spread the times of a global batch evenly.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, stratified: bool = False) -> None:
        super().__init__(stratified)
        self.mean, self.std = mean, _positive(self, std)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """Return sigmoid(mean + std z), z the normal quantile of u."""
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u))


class Importance(TimeSampler):
    """Steps as often as their losses are large; uniform until every step has been seen often enough.

    Args:
        history: losses kept of each step.
        uniform_share: part of the draws that stays uniform.
        buckets: parts that a path without steps is cut into.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, history: int = 10, uniform_share: float = 0.001, buckets: int = 1000) -> None:
        super().__init__()
        if history < 1 or buckets < 1 or not 0 < uniform_share <= 1:
            raise ValueError(
                "Importance takes 1 or more as history and buckets and a uniform_share above 0 and at most 1; given"
                f" were {history}, {buckets} and {uniform_share}."
            )
        self.history, self.uniform_share, self.buckets = history, uniform_share, buckets
        self.register_buffer("losses", torch.zeros(buckets, history, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(buckets, dtype=torch.int64))

    @property
    def learns(self) -> bool:
        """Whether `update` has to be called: it has."""
        return True

    def probabilities(self) -> Tensor:
        """Return the probability of each bucket, float64 `(buckets,)`."""
        n = self.buckets
        if bool((self.seen < self.history).any()):
            return torch.full_like(precise(self.losses[:, 0]), 1 / n)
        root = precise(self.losses).square().mean(1).sqrt()
        return (1 - self.uniform_share) * root / root.sum() + self.uniform_share / n

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """Return the time, uniform within its bucket."""
        bucket, within = self._bucket(u)
        return (bucket + within) / self.buckets

    def forward(self, path: Path, stream: RandomStream, rank: int = 0, world: int = 1) -> Times:
        """Draw times, with the weights that keep the expected loss what it is with uniform times."""
        if path.steps is not None and path.steps % self.buckets:
            raise ValueError(
                f"Importance has {self.buckets} buckets, the path {path.steps} steps: set buckets to {path.steps}."
            )
        t = super().forward(path, stream, rank, world).t
        return Times(t, 1 / (self.buckets * self.probabilities()[self._bucket_of(t)]))

    def update(self, path: Path, t: Tensor, loss: Tensor) -> None:
        """Keep each bucket's last losses."""
        bucket, order = self._bucket_of(t).sort(stable=True)
        counts = torch.bincount(bucket, minlength=self.buckets)
        # the number of each loss among those of its bucket; of more than fit, the last ones stay
        number = torch.arange(len(bucket), device=bucket.device) - (counts.cumsum(0) - counts)[bucket]
        stays = number >= counts[bucket] - self.history
        slot = (self.seen[bucket] + number) % self.history
        self.losses[bucket[stays], slot[stays]] = loss[order][stays].to(self.losses.dtype)
        self.seen += counts

    def _bucket(self, u: Tensor) -> tuple[Tensor, Tensor]:
        cumulative = self.probabilities().cumsum(0).to(u.device)
        bucket = torch.searchsorted(cumulative / cumulative[-1], u).clamp(max=self.buckets - 1)
        edges = torch.cat([cumulative.new_zeros(1), cumulative]) / cumulative[-1]
        return bucket, (u - edges[bucket]) / (edges[bucket + 1] - edges[bucket])

    def _bucket_of(self, t: Tensor) -> Tensor:
        return _interval(t, self.buckets)


def _positive(sampler: TimeSampler, std: float) -> float:
    if not std > 0:
        raise ValueError(f"{type(sampler).__name__} takes std above 0; given was {std}.")
    return std


def _uniform(stream: RandomStream) -> Tensor:
    """Draw one number a sample, in single precision at least: bfloat16 has 256 numbers between 0 and 1."""
    kind = stream.dtype
    stream.dtype = torch.promote_types(kind, torch.float32)
    try:
        return precise(stream.uniform())
    finally:
        stream.dtype = kind


def _interval(t: Tensor, n: int) -> Tensor:
    """Return which of n equal intervals, 0 to n - 1, times lie in; an edge belongs to the one below."""
    # rounding must not push an edge into the one above
    slack = 1e-9 if t.dtype == torch.float64 else 1e-3
    return (t * n - slack).ceil().long().clamp(1, n) - 1


def _normal_quantile(u: Tensor) -> Tensor:
    """Invert the normal distribution function, away from its two infinities."""
    tiny = 1e-7 if u.dtype == torch.float32 else 1e-15
    z: Tensor = torch.special.ndtri(u.clamp(tiny, 1 - tiny))
    return z
