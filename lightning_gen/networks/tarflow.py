r"""TarFlow: a stack of autoregressive flows of patches, each a causal transformer.

An image of N patches :math:`x_0, \dots, x_{N-1}`, P numbers each, goes through blocks that each map

.. math::
    z_0 = x_0, \qquad
    z_i = \big(x_i - \mu_i(x_{<i})\big) \odot \exp\big(-\alpha_i(x_{<i})\big), \qquad
    \log\left|\det\frac{\partial z}{\partial x}\right| = -\sum_{i,\,p} \alpha_{i,p},

every second block with the patches in reverse order. :math:`\mu` and :math:`\alpha` of patch i are what a causal
transformer returns at patch i - 1. Its last layer is zero at the start, so that an untrained network is the identity,
and is given normalized tokens, as the paper's is not: :math:`\alpha` is then bounded whatever an image is like, where
else it grows with the image, and its exponential beyond all numbers.
The way back finds one patch after the other, :math:`x_i = z_i \odot \exp \alpha_i + \mu_i`, with the keys and values
of the patches before kept in a cache.

Guidance, of the scale s in the terms of this package (the paper's weight is w = s - 1), replaces both of a block's
predictions in the way back by

.. math:: \tilde\mu_i = \mu_i^- + s_i\,(\mu_i - \mu_i^-), \qquad s_i = 1 + (s - 1)\frac{i}{N - 1},

:math:`\mu^-` being told the class "none", or having its attention smoothed by a temperature above 1, or both.

References:
    Normalizing Flows are Capable Generative Models (TarFlow; guidance annealed over the patches)
    https://arxiv.org/abs/2412.06329
    Masked Autoregressive Flow for Density Estimation
    https://arxiv.org/abs/1705.07057
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gen.networks.base import positive
from lightning_gen.networks.causal import Cache, CausalLayer
from lightning_gen.networks.embeddings import at_least_float32
from lightning_gen.networks.flow import FlowNetwork


class TarFlow(FlowNetwork):
    """A transformer autoregressive flow.

    Args:
        image_shape: `(C, H, W)` of the data.
        patch_size: side p of the patches, a divisor of height and width. A half quadruples the patches, which the way
            back finds one by one.
        width: width D of the tokens, a multiple of the heads.
        blocks: number of autoregressive flows; the paper has 8.
        layers: layers of each one's transformer; the paper has 8.
        heads: number of attention heads.
        mlp_ratio: hidden width of the MLP over D.
        num_classes: number of classes K, None for a network without classes.
        null_class: whether there is a class K, "none": what guidance by classes needs.
        dropout: probability that an entry of attention's output or of the MLP's hidden layer is zeroed in training.
        checkpointing: whether the layers are computed again in the backward pass, which saves memory for a third more
            time.

    Raises:
        ValueError: where a number is out of range or does not divide another.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        patch_size: int = 2,
        width: int = 256,
        blocks: int = 8,
        layers: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        num_classes: int | None = None,
        null_class: bool = True,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, null_class)
        self.patch_size, self.width = positive(self, "patch_size", patch_size), positive(self, "width", width)
        channels, height, columns = self.image_shape
        if height % self.patch_size or columns % self.patch_size:
            raise ValueError(
                f"TarFlow cuts images of {height} x {columns} pixels into patches of {patch_size} x {patch_size}, which"
                " do not fill them; patch_size is a divisor of both sides."
            )
        if self.width % positive(self, "heads", heads):
            raise ValueError(f"TarFlow with {heads} heads takes a width that is a multiple of them, not {width}.")
        patches, numbers = height * columns // self.patch_size**2, channels * self.patch_size**2
        sizes = Sizes(patches, numbers, self.width, positive(self, "layers", layers), heads, mlp_ratio, dropout)
        self.blocks = nn.ModuleList(
            AutoregressiveBlock(sizes, self.label_rows, reverse=index % 2 == 1, checkpointing=checkpointing)
            for index in range(positive(self, "blocks", blocks))
        )

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images to noise; see `FlowNetwork.forward`."""
        self.check(x, label)
        tokens = self._patches(at_least_float32(x))
        logdet = tokens.new_zeros(len(x))
        for block in self.blocks:
            tokens, change = block(tokens, label)
            logdet = logdet + change
        return self._image(tokens), logdet

    def inverse(
        self, z: Tensor, label: Tensor | None = None, guidance: float = 1.0, weak_temperature: float = 1.0
    ) -> Tensor:
        """Map noise to images; see `FlowNetwork.inverse`."""
        self.check(z, label)
        self.check_guidance(guidance, weak_temperature)
        guide = Guide(guidance, weak_temperature, self.num_classes if self.null_class else None)
        tokens = self._patches(at_least_float32(z))
        for block in reversed(list(self.blocks)):
            tokens = cast(AutoregressiveBlock, block).inverse(tokens, label, guide)
        return self._image(tokens)

    def _patches(self, x: Tensor) -> Tensor:
        """Cut `(B, C, H, W)` into patches row by row, `(B, N, C p p)`."""
        return F.pixel_unshuffle(x, self.patch_size).flatten(2).mT

    def _image(self, tokens: Tensor) -> Tensor:
        """Put patches `(B, N, C p p)` together to `(B, C, H, W)`."""
        _, height, width = self.image_shape
        size = self.patch_size
        return F.pixel_shuffle(tokens.mT.reshape(len(tokens), -1, height // size, width // size), size)


class Sizes(NamedTuple):
    """Sizes of one autoregressive flow.

    Attributes:
        patches: N.
        numbers: P of a patch.
        width: D.
        layers: of the transformer.
        heads: of attention.
        mlp_ratio: hidden width of the MLP over D.
        dropout: probability that an entry is zeroed in training.
    """

    patches: int
    numbers: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    dropout: float


class Guide(NamedTuple):
    """What the way back is guided by.

    Attributes:
        scale: 1 is the network's own prediction.
        temperature: of the attention in the weaker prediction.
        none: the class that it is told; None for the same class.
    """

    scale: float
    temperature: float
    none: int | None

    def scale_at(self, patch: int, patches: int) -> float:
        """Return the scale for one patch: it rises evenly from 1 at the first to the whole at the last one."""
        return 1 + (self.scale - 1) * patch / max(patches - 1, 1)


class AutoregressiveBlock(nn.Module):
    """One autoregressive flow of patches.

    Args:
        sizes: of the flow.
        label_rows: rows of the table of classes; 0 for none.
        reverse: whether the last patch comes first.
        checkpointing: whether the layers are computed again in the backward pass.
    """

    def __init__(self, sizes: Sizes, label_rows: int, reverse: bool, checkpointing: bool) -> None:
        super().__init__()
        self.reverse, self.checkpointing = reverse, checkpointing
        self.embedding = nn.Linear(sizes.numbers, sizes.width)
        self.positions = nn.Parameter(0.02 * torch.randn(sizes.patches, sizes.width))
        self.classes = nn.Embedding(label_rows, sizes.width) if label_rows else None
        self.layers = nn.ModuleList(
            CausalLayer(sizes.width, sizes.heads, sizes.mlp_ratio, sizes.dropout) for _ in range(sizes.layers)
        )
        self.last_norm = nn.LayerNorm(sizes.width)
        self.last = nn.Linear(sizes.width, 2 * sizes.numbers)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)

    def forward(self, tokens: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map patches `(B, N, P)` to patches, and return the logarithm of the determinant, `(B,)`."""
        x = self._ordered(tokens)
        shift, log_scale = (F.pad(told[:, :-1], (0, 0, 1, 0)) for told in self._predict(x, label))
        z = (x - shift) * torch.exp(-log_scale)
        return self._ordered(z), -log_scale.flatten(1).sum(1)

    def inverse(self, tokens: Tensor, label: Tensor | None, guide: Guide) -> Tensor:
        """Map patches `(B, N, P)` back."""
        z = self._ordered(tokens).unbind(1)
        sharpness = None
        if guide.scale != 1:
            sharpness = z[0].new_tensor([1.0, 1 / guide.temperature]).repeat_interleave(len(tokens))
            if label is not None:
                label = torch.cat([label, label if guide.none is None else torch.full_like(label, guide.none)])
        caches, found = [Cache() for _ in self.layers], [z[0]]
        for patch in range(1, len(z)):
            # patches are predicted by the one before: with guidance in a batch of two parts, the weaker one second
            before = found[-1] if sharpness is None else found[-1].repeat(2, 1)
            shift, log_scale = (
                told[:, 0] for told in self._predict(before[:, None], label, patch - 1, caches, sharpness)
            )
            if sharpness is not None:
                scale = guide.scale_at(patch, len(z))
                shift, log_scale = (weak + scale * (own - weak) for own, weak in (shift.chunk(2), log_scale.chunk(2)))
            found.append(z[patch] * torch.exp(log_scale) + shift)
        return self._ordered(torch.stack(found, dim=1))

    def _ordered(self, tokens: Tensor) -> Tensor:
        return tokens.flip(1) if self.reverse else tokens

    def _predict(
        self,
        x: Tensor,
        label: Tensor | None,
        first: int = 0,
        caches: Sequence[Cache] | None = None,
        sharpness: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return shift and logarithm of the scale of the patch behind each of `(B, n, P)`, in the precision of x."""
        # in bfloat16 weights the layers compute in bfloat16, and the flow in float32
        hidden = self.embedding(x.to(self.embedding.weight.dtype)) + self.positions[first : first + x.shape[1]]
        if self.classes is not None and label is not None:
            hidden = hidden + self.classes(label)[:, None]
        for index, layer in enumerate(self.layers):
            if caches is not None:
                hidden = layer(hidden, caches[index], sharpness)
            elif self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, use_reentrant=False)
            else:
                hidden = layer(hidden)
        told: Tensor = self.last(self.last_norm(hidden))
        return told.to(x.dtype).chunk(2, dim=-1)
