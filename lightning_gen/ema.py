r"""Averages of a network's weights over training, kept as frozen submodules beside it.

After an iteration on :math:`B` images the average :math:`\bar\theta` moves to

.. math:: \bar\theta \leftarrow \beta\,\bar\theta + (1 - \beta)\,\theta, \qquad \beta = 2^{-B / h},

so that a weight's share halves every :math:`h` images whatever the batch size. While few images have been
seen the half-life is shortened to :math:`\min(h, r N)` with :math:`N` images so far: early averages would
else be made of the initial weights. Running statistics and counters are copied, not averaged.

References:
    Analyzing and Improving the Image Quality of StyleGAN
    https://arxiv.org/abs/1912.04958
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lightning_gen.errors import did_you_mean


class EMA(nn.Module):
    """One average of a network: always in evaluation mode, never trained.

    Args:
        network: what is averaged; it is copied.
        half_life: images after which a weight's share has halved.
        warmup: ratio r of the warm-up; None for none.
    """

    def __init__(self, network: nn.Module, half_life: int, warmup: float | None = 0.05) -> None:
        super().__init__()
        if half_life <= 0:
            raise ValueError(f"A half-life is a number of images above 0; given was {half_life}.")
        if warmup is not None and warmup <= 0:
            raise ValueError(f"The warm-up ratio is above 0, or null for none; given was {warmup}.")
        self.half_life, self.warmup = half_life, warmup
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "EMA":
        """Stay in evaluation mode, whatever is asked of the module around."""
        return super().train(False)

    def decay(self, batch: int, images: int) -> float:
        """Return beta for a step on `batch` images after which `images` have been seen in all."""
        half_life = float(self.half_life)
        if self.warmup is not None:
            half_life = min(half_life, self.warmup * images)
        return float(0.5 ** (batch / max(half_life, 1e-8)))

    @torch.no_grad()
    def update(self, network: nn.Module, batch: int, images: int) -> None:
        """Move towards the network's weights, and copy its buffers.

        Args:
            network: the network that is trained.
            batch: images of this iteration, over all processes.
            images: images seen so far, these included.
        """
        weight = 1.0 - self.decay(batch, images)
        averaged: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averaged, list(network.parameters()), weight)
        buffers = list(self.network.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(network.buffers()))


class Averages(nn.Module):
    """Several averages of one network at once, each called by its half-life: `ema-10000`.

    Args:
        network: what is averaged.
        half_lives: in images; the first one is the average that `ema` means.
        warmup: ratio of the warm-up, for all.
    """

    def __init__(self, network: nn.Module, half_lives: Sequence[int], warmup: float | None = 0.05) -> None:
        super().__init__()
        if len(set(half_lives)) != len(half_lives):
            raise ValueError(f"Each half-life is averaged once; given were {list(half_lives)}.")
        self.averages = nn.ModuleDict({f"ema-{h}": EMA(network, h, warmup) for h in half_lives})

    def update(self, network: nn.Module, batch: int, images: int) -> None:
        """Move every average; see EMA.update."""
        for name in self.averages:
            self[name].update(network, batch, images)

    def __getitem__(self, name: str) -> EMA:
        return cast(EMA, self.averages[name])

    def resolve(self, weights: str | None) -> str:
        """Return the full name of the weights asked for.

        Args:
            weights: "raw", "ema" for the first average, "ema-<half-life>", or None for the first average
                where there is one and else the raw weights.

        Raises:
            ValueError: where there are no such weights; lists those there are.
        """
        names = list(self.averages)
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
