r"""Lookup-free quantization (LFQ): the signs of the channels are the bits of the code.

.. math:: q_i = \operatorname{sign}(z_i), \qquad k = \sum_i 2^{i-1} \mathbf 1\{z_i > 0\}

Codes are chosen with certainty and used equally often where the entropy loss is least (equations 4 to 6):

.. math:: L = w\, \bigl( \mathrm E\,[H(p(\cdot \mid z))] - \gamma\, H(\mathrm E\,[p(\cdot \mid z)]) \bigr)
    + \beta\, \|z - \operatorname{sg}(q)\|^2,

p being the soft assignment :math:`p(c \mid z) \propto \exp(-\|z - c\|^2 / \tau)`, whose bits are independent,
:math:`p(c_i = 1 \mid z) = \sigma(4 z_i / \tau)`: the first entropy is a sum over bits. The second is that of all
:math:`2^n` codes of groups of n bits, summed over groups. Entropies are in nats; the mean is over the joined batch of
all processes.

References:
    Language Model Beats Diffusion: Tokenizer is Key to Visual Generation
    https://arxiv.org/abs/2310.05737
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.autoencoder.bottlenecks import Bottled
from lightning_gen.autoencoder.joined import joined_mean
from lightning_gen.autoencoder.quantizers.base import (
    Quantizer,
    channels_first,
    channels_last,
    full_precision,
    straight_through,
)
from lightning_gen.autoencoder.quantizers.counts import CodeCounts
from lightning_gen.autoencoder.quantizers.vector import checked_beta
from lightning_gen.seeding import RandomStream

_MOST_BITS = 20
_ADVICE = "Raise entropy_weight or gamma, or take fewer bits."


class LookupFreeQuantizer(Quantizer):
    """Channels to signs.

    Args:
        bits: of a code; the features have as many channels, the codebook 2^bits codes.
        entropy_weight: weight w of the entropies.
        gamma: weight of the entropy of the mean within.
        beta: weight of the commitment, a mean over dimensions.
        temperature: tau of the soft assignment; the lower, the nearer to 0 features have to be for entropies to move
            them.
        group_bits: bits n of a group in the entropy of the mean; memory grows with 2^n.

    Raises:
        ValueError: for a number out of range.
    """

    powers: Tensor
    signs: Tensor

    def __init__(
        self,
        bits: int = 10,
        entropy_weight: float = 0.1,
        gamma: float = 1.0,
        beta: float = 0.25,
        temperature: float = 1.0,
        group_bits: int = 10,
    ) -> None:
        if not 1 <= bits <= _MOST_BITS:
            raise ValueError(f"LookupFreeQuantizer takes 1 to {_MOST_BITS} bits, not {bits}.")
        super().__init__(bits, bits, 2**bits)
        if entropy_weight < 0 or gamma < 0:
            raise ValueError(
                f"LookupFreeQuantizer: entropy_weight and gamma are 0 or more, not {entropy_weight} and {gamma}."
            )
        if not temperature > 0 or not 1 <= group_bits <= 16:
            raise ValueError(
                "LookupFreeQuantizer: temperature is above 0 and group_bits in 1 to 16; given were"
                f" {temperature} and {group_bits}."
            )
        self.entropy_weight, self.gamma, self.beta = entropy_weight, gamma, checked_beta(self, beta)
        self.temperature, self.group_bits = temperature, group_bits
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)
        self.register_buffer("signs", torch.tensor([-1.0, 1.0]), persistent=False)
        self.counts = CodeCounts(2**bits, advice=_ADVICE)

    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Map features `(B, C, h, w)` to signs; see `Bottleneck.forward`. Nothing is drawn."""
        self.check(features)
        with full_precision(features):
            z = channels_last(features)
            positive = (z > 0).long()
            indices = (positive * self.powers).sum(-1)
            quantized = self.signs.to(z.dtype)[positive]
            commitment = (z - quantized).square().mean()
            each, of_mean = self.entropies(z.flatten(0, -2))
            loss = self.entropy_weight * (each - self.gamma * of_mean) + self.beta * commitment
            if self.learns:
                self.counts.count(indices)
            logs = {"commitment_loss": commitment, "entropy": each, "codebook_entropy": of_mean}
            logs = {name: value.detach() for name, value in logs.items()}
            return Bottled(channels_first(straight_through(z, quantized)), loss, logs | self.use(), indices)

    def entropies(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean entropy of the assignments, and the entropy of their mean, in nats.

        Args:
            z: vectors `(N, C)`.
        """
        logits = 4 * z / self.temperature
        p = torch.sigmoid(logits)
        # H = log(1 + e^a) - a sigmoid(a), even in a; for large |a| the other way round would take 1 from 1
        size = logits.abs()
        each = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()
        of_mean = z.new_zeros(())
        for bits in torch.split(p, self.group_bits, dim=1):
            joint = _joint(bits)
            mean = joined_mean(joint) if self.learns else joint.mean(0)
            # at 0 the derivative of -p log p is infinite
            of_mean = of_mean + torch.special.entr(mean.clamp_min(torch.finfo(mean.dtype).tiny)).sum()
        return each, of_mean

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Map codes `(B, h, w)` to latents; see `Quantizer.decode_indices`."""
        self.check_indices(indices, 3)
        return channels_first(self.signs[(indices[..., None] // self.powers) % 2])


def _joint(p: Tensor) -> Tensor:
    """Return the probabilities `(N, 2^n)` of all values of n independent bits, which are 1 with p `(N, n)`."""
    joint = torch.ones_like(p[:, :1])
    for bit in p.unbind(1):
        joint = torch.cat([joint * (1 - bit[:, None]), joint * bit[:, None]], dim=1)
    return joint
