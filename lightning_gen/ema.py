r"""Averages of a network's weights over training, kept as frozen submodules beside it.

After an iteration on :math:`B` images the average :math:`\bar\theta` moves to

.. math:: \bar\theta \leftarrow \beta\,\bar\theta + (1 - \beta)\,\theta.

With a half-life :math:`h` in images, :math:`\beta = 2^{-B / h}`: a weight's share halves every :math:`h` images
whatever the batch size. While few images have been seen the half-life is shortened to :math:`\min(h, r N)` with
:math:`N` images so far: early averages would else be made of the initial weights.

With a relative width :math:`\sigma_\text{rel}`, :math:`\beta = (1 - B/N)^{\gamma + 1}`: the average reaches back a
fixed share of the run, however long that is, and forgets the initial weights at the first step; see `ema_profiles`.

Running statistics and counters are copied, not averaged.

References:
    Analyzing and Improving the Image Quality of StyleGAN
    https://arxiv.org/abs/1912.04958
    Analyzing and Improving the Training Dynamics of Diffusion Models (power-function averages)
    https://arxiv.org/abs/2312.02696
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_gen.ema_profiles import exponent_of, power_decay
from lightning_gen.errors import did_you_mean

A = TypeVar("A", bound="Average")


class Average(nn.Module, ABC):
    """One average of a network: always in evaluation mode, never trained.

    Args:
        network: what is averaged; it is copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.eval()

    def train(self: A, mode: bool = True) -> A:
        """Stay in evaluation mode, whatever is asked of the module around."""
        return super().train(False)

    @abstractmethod
    def decay(self, batch: int, images: int) -> float:
        """Return beta for a step on `batch` images after which `images` have been seen in all."""

    @torch.no_grad()
    def update(self, network: nn.Module, batch: int, images: int) -> None:
        """Move towards the network's weights, and copy its buffers.

        Args:
            network: the network that is trained.
            batch: images of this iteration, over all processes.
            images: images seen so far, these included.
        """
        self._move(network, 1.0 - self.decay(batch, images))

    @torch.no_grad()
    def restart(self, network: nn.Module) -> None:
        """Forget the past: become a copy of the network."""
        self._move(network, 1.0)

    def _move(self, network: nn.Module, weight: float) -> None:
        averaged: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averaged, list(network.parameters()), weight)
        buffers = list(self.network.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(network.buffers()))


class EMA(Average):
    """An average with a half-life.

    Args:
        network: what is averaged; it is copied.
        half_life: images after which a weight's share has halved.
        warmup: ratio r of the warm-up; None for none.
    """

    def __init__(self, network: nn.Module, half_life: int, warmup: float | None = 0.05) -> None:
        if half_life <= 0:
            raise ValueError(f"A half-life is a number of images above 0; given was {half_life}.")
        if warmup is not None and warmup <= 0:
            raise ValueError(f"The warm-up ratio is above 0, or null for none; given was {warmup}.")
        super().__init__(network)
        self.half_life, self.warmup = half_life, warmup

    def decay(self, batch: int, images: int) -> float:
        """Return beta for a step on `batch` images after which `images` have been seen in all."""
        half_life = float(self.half_life)
        if self.warmup is not None:
            half_life = min(half_life, self.warmup * images)
        return float(0.5 ** (batch / max(half_life, 1e-8)))


class PowerEMA(Average):
    """An average with a power-function profile.

    Args:
        network: what is averaged; it is copied.
        sigma_rel: standard deviation of the profile in parts of the images seen; above 0, at most 0.2887.
    """

    def __init__(self, network: nn.Module, sigma_rel: float) -> None:
        gamma = exponent_of(sigma_rel)
        super().__init__(network)
        self.sigma_rel, self.gamma = float(sigma_rel), gamma

    def decay(self, batch: int, images: int) -> float:
        """Return beta for a step on `batch` images after which `images` have been seen in all."""
        return power_decay(self.gamma, batch, images)


class Averages(nn.Module):
    """Several averages of one network at once, each called by what it is: `ema-10000`, `power-0.050`.

    Args:
        network: what is averaged.
        half_lives: in images; the first average, of these or else of the others, is the one that `ema` means.
        warmup: ratio of the warm-up, for all half-lives.
        sigma_rels: relative widths of power-function averages.

    Attributes:
        averages: the averages; a point in a name is an underscore here, for keys of a state dict have points between
            them.
    """

    def __init__(
        self,
        network: nn.Module,
        half_lives: Sequence[int],
        warmup: float | None = 0.05,
        sigma_rels: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if len(set(half_lives)) != len(half_lives):
            raise ValueError(f"Each half-life is averaged once; given were {list(half_lives)}.")
        if len({f"{width:.3f}" for width in sigma_rels}) != len(sigma_rels):
            raise ValueError(f"Each width is averaged once, to three digits; given were {list(sigma_rels)}.")
        made: dict[str, Average] = {f"ema-{h}": EMA(network, h, warmup) for h in half_lives}
        made |= {f"power-{width:.3f}": PowerEMA(network, width) for width in sigma_rels}
        self.averages = nn.ModuleDict({_key(name): average for name, average in made.items()})
        self.names = tuple(made)

    def update(self, network: nn.Module, batch: int, images: int) -> None:
        """Move every average; see Average.update."""
        for name in self.names:
            self[name].update(network, batch, images)

    def restart(self, network: nn.Module) -> None:
        """Make every average a copy of the network, as where training starts from weights that are loaded."""
        for name in self.names:
            self[name].restart(network)

    def __getitem__(self, name: str) -> Average:
        return cast(Average, self.averages[_key(name)])

    def resolve(self, weights: str | None) -> str:
        """Return the full name of the weights asked for.

        Args:
            weights: "raw", "ema" for the first average, "ema-<half-life>", "power-<width>", or None for the first
                average where there is one and else the raw weights.

        Raises:
            ValueError: where there are no such weights; lists those there are.
        """
        names = list(self.names)
        if weights is None:
            return names[0] if names else "raw"
        if weights == "ema" and names:
            return names[0]
        if weights != "raw" and weights not in names:
            allowed = ["raw", *(["ema"] if names else []), *names]
            raise ValueError(
                f"There are no weights '{weights}'; this model has {', '.join(allowed)}."
                f"{did_you_mean(weights, allowed)}"
            )
        return weights

    def pick(self, network: nn.Module, weights: str | None) -> nn.Module:
        """Return the network with the weights asked for; see `resolve`."""
        name = self.resolve(weights)
        return network if name == "raw" else self[name].network


def _key(name: str) -> str:
    return name.replace(".", "_")
