r"""Diffusion transformer: patches of the noisy image as tokens, the time and the class by adaLN-zero.

With p x p patches of an H x W image, N = HW / p^2 tokens of width D run through `depth` blocks; see
`lightning_gen.networks.dit_blocks`. The condition is one vector,

.. math:: c = \mathrm{mlp}(\mathrm{embed}(t)) + e_y,

of whose SiLU one linear layer makes the shifts, scales and gates of all blocks at once. It is zero at the start,
and so is the last layer: an untrained network returns zeros. Each block has :math:`18 D^2 + 15 D` parameters.

=====  =====  =====  =====  ================================
size   width  depth  heads  parameters of the blocks
=====  =====  =====  =====  ================================
tiny     128      6      4  1.8 M: minutes on a CPU
mini     256      8      4  9.5 M
S        384     12      6  32 M
B        768     12     12  128 M
L       1024     24     16  453 M
XL      1152     28     16  669 M: DiT-XL/2 has 674.8 M in all
=====  =====  =====  =====  ================================

References:
    Scalable Diffusion Models with Transformers
    https://arxiv.org/abs/2212.09748
    Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models (RMSNorm, SwiGLU, RoPE)
    https://arxiv.org/abs/2501.01423
    PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis (cross-attention)
    https://arxiv.org/abs/2310.00426
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gen.errors import choose
from lightning_gen.networks.base import positive
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.dit_blocks import (
    MLP,
    Attention,
    AttentionName,
    DiTBlock,
    MLPName,
    TimeEmbedding,
    TokenNormName,
    in_forward_mode,
    make_token_norm,
    modulate,
)
from lightning_gen.networks.positions import rotary_positions, sincos_positions

SizeName: TypeAlias = Literal["tiny", "mini", "S", "B", "L", "XL"]
PositionsName: TypeAlias = Literal["sincos", "rope", "both"]


class Size(NamedTuple):
    """Width of the tokens, number of blocks, number of heads."""

    width: int
    depth: int
    heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(128, 6, 4),
    "mini": Size(256, 8, 4),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "XL": Size(1152, 28, 16),
}


class DiT(DenoisingNetwork):
    """Diffusion transformer.

    Args:
        image_shape: `(C, H, W)` of the data.
        size: width, depth and number of heads by name, as in the paper: "S", "B", "L", "XL"; "tiny" and "mini"
            are for images of 28 and 32 pixels.
        patch_size: side p of the patches, a divisor of height and width; 2 is the XL/2 of the paper. A half
            quadruples the tokens.
        num_classes: number of classes K, None for a network without classes.
        null_class: whether there is a class K, "none": what classifier-free guidance needs.
        learned_variance: whether the output has 2 C channels.
        width: width D of the tokens, a multiple of 4 and of the heads; None for the size's.
        depth: number of blocks; None for the size's.
        heads: number of attention heads; None for the size's.
        mlp: "gelu" as published, or "swiglu".
        mlp_ratio: hidden width of the MLP over D; SwiGLU's is 2/3 of it.
        norm: "layer" as published, or "rms".
        norm_eps: added to the variance in the norms.
        mlp_norm_eps: the same before the MLP; None for `norm_eps`.
        qk_norm: whether queries and keys are normalized, which keeps long runs in bfloat16 stable.
        qkv_bias: whether queries, keys and values have a bias.
        positions: "sincos", fixed and added to the tokens, as published; "rope", rotary; or "both".
        attention: "sdpa" for the fused kernels, "math" for plain products. Forward-mode derivatives
            (`torch.func.jvp`, MeanFlow) need "math" where the network is compiled; without, they take it themselves.
        dropout: probability that an entry of attention's output or of the MLP's hidden layer is zeroed.
        checkpointing: whether the blocks are computed again in the backward pass, which saves memory for a third
            more time. Not while forward-mode derivatives are taken.
        freq_shift: 0 as published; 1 ends the frequencies of the time at 1/10000 exactly, as diffusers' DiT does.
        vector_dim: length of the condition's vector, 0 for none.
        token_dim: width of the condition's tokens, attended to in every block; 0 for none.
        image_channels: channels of the condition's picture, 0 for none.
        augment_dim: length of the augmentation's description, 0 for none.
        two_times: whether the network is told a second time, as MeanFlow needs; it has an embedding of its own.

    Raises:
        ValueError: where a number is out of range or does not divide another.
    """

    sincos: Tensor | None
    cos: Tensor | None
    sin: Tensor | None

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        size: SizeName = "S",
        patch_size: int = 2,
        num_classes: int | None = None,
        null_class: bool = True,
        learned_variance: bool = False,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp: MLPName = "gelu",
        mlp_ratio: float = 4.0,
        norm: TokenNormName = "layer",
        norm_eps: float = 1e-6,
        mlp_norm_eps: float | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = True,
        positions: PositionsName = "sincos",
        attention: AttentionName = "sdpa",
        dropout: float = 0.0,
        checkpointing: bool = False,
        freq_shift: int = 0,
        vector_dim: int = 0,
        token_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        two_times: bool = False,
    ) -> None:
        super().__init__(
            image_shape,
            num_classes,
            null_class,
            learned_variance,
            vector_dim,
            token_dim,
            image_channels,
            augment_dim,
            two_times,
        )
        preset = choose("size of DiT", size, SIZES)
        self.width = positive(self, "width", preset.width if width is None else width)
        self.depth = positive(self, "depth", preset.depth if depth is None else depth)
        self.heads = positive(self, "heads", preset.heads if heads is None else heads)
        self.patch_size, self.checkpointing = positive(self, "patch_size", patch_size), checkpointing
        self.mlp_ratio, self.dropout, self.freq_shift = mlp_ratio, dropout, freq_shift
        self.mlp_name, self.norm_name = mlp, norm
        self.norm_eps, self.mlp_norm_eps = norm_eps, norm_eps if mlp_norm_eps is None else mlp_norm_eps
        self.qk_norm, self.qkv_bias, self.attention = qk_norm, qkv_bias, attention
        self.positions = choose("kind of positions", positions, {name: name for name in ("sincos", "rope", "both")})
        self._check_sizes()

        self.patch_embedding = nn.Linear(self.in_channels * self.patch_size**2, self.width)
        self.time = TimeEmbedding(self.width, freq_shift)
        self.second_time = TimeEmbedding(self.width, freq_shift) if two_times else None
        self.classes = nn.Embedding(self.label_rows, self.width) if self.label_rows else None
        # without a bias, so that zeros, which stand for "none", say nothing
        self.vector = nn.Linear(vector_dim, self.width, bias=False) if vector_dim else None
        self.augment = nn.Linear(augment_dim, self.width, bias=False) if augment_dim else None
        self.modulation = nn.Linear(self.width, 6 * self.width * self.depth)
        self.blocks = nn.ModuleList([self._block() for _ in range(self.depth)])
        self.final_norm = make_token_norm(norm, self.width, norm_eps)
        self.final_modulation = nn.Linear(self.width, 2 * self.width)
        self.final = nn.Linear(self.width, self.patch_size**2 * self.out_channels)
        self._add_positions()
        self._initialize()

    def blocks_to_shard(self) -> list[nn.Module]:
        """List the transformer's blocks."""
        return list(self.blocks)

    def forward(
        self, x: Tensor, noise_label: Tensor, cond: Condition | None = None, second_label: Tensor | None = None
    ) -> Tensor:
        """Estimate what the parameterization asks for; see `DenoisingNetwork.forward`."""
        cond = self.check(x, cond, second_label)
        tokens = self.patch_embedding(self._patches(x if cond.image is None else torch.cat([x, cond.image], dim=1)))
        if self.sincos is not None:
            tokens = tokens + self.sincos
        vector = F.silu(self._vector(noise_label, cond, second_label))
        # in the precision of the tokens: under autocast they are wider than what a linear layer returns
        modulations = self.modulation(vector).to(tokens.dtype).view(len(x), self.depth, 6, self.width).unbind(1)
        context, mask = _context(cond)
        rotation = None if self.cos is None or self.sin is None else (self.cos, self.sin)
        again = self.checkpointing and torch.is_grad_enabled() and not in_forward_mode(tokens, vector)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            if again:
                tokens = checkpoint(block, tokens, modulation, context, mask, rotation, use_reentrant=False)
            else:
                tokens = block(tokens, modulation, context, mask, rotation)
        shift, scale = self.final_modulation(vector).to(tokens.dtype)[:, None].chunk(2, dim=-1)
        return self._image(self.final(modulate(self.final_norm(tokens), shift, scale)))

    def _vector(self, noise_label: Tensor, cond: Condition, second_label: Tensor | None) -> Tensor:
        """Return the sum of the embeddings of all that is one vector a sample, `(B, D)`."""
        vector: Tensor = self.time(noise_label)
        if self.second_time is not None:
            vector = vector + self.second_time(second_label)
        for layer, value in ((self.classes, cond.label), (self.vector, cond.vector), (self.augment, cond.augment)):
            if layer is not None and value is not None:
                vector = vector + layer(value)
        return vector

    def _patches(self, x: Tensor) -> Tensor:
        """Cut `(B, C, H, W)` into patches row by row, `(B, N, C p p)`."""
        size, (batch, channels, height, width) = self.patch_size, x.shape
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _image(self, tokens: Tensor) -> Tensor:
        """Put patches `(B, N, p p C)` together to `(B, C, H, W)`."""
        size, (_, height, width) = self.patch_size, self.image_shape
        x = tokens.view(len(tokens), height // size, width // size, size, size, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _block(self) -> DiTBlock:
        def attention(context_width: int | None) -> Attention:
            return Attention(
                self.width, self.heads, context_width, self.qk_norm, self.qkv_bias, self.dropout, self.attention
            )

        eps = [self.norm_eps, self.mlp_norm_eps, self.norm_eps]
        return DiTBlock(
            attention(None),
            attention(self.token_dim) if self.token_dim else None,
            MLP(self.width, self.mlp_ratio, self.mlp_name, self.dropout),
            [make_token_norm(self.norm_name, self.width, each) for each in eps],
        )

    def _check_sizes(self) -> None:
        _, height, width = self.image_shape
        size, heads = self.patch_size, self.heads
        if height % size or width % size:
            raise ValueError(
                f"DiT cuts images of {height} x {width} pixels into patches of {size} x {size}, which do not fill them;"
                f" patch_size is a divisor of both sides."
            )
        step = 4 * heads if self.positions != "sincos" else heads
        if self.width % step or self.width % 4:
            raise ValueError(
                f"DiT with {heads} heads and positions='{self.positions}' takes a width that is a multiple of {step}"
                f" and of 4, not {self.width}."
            )

    def _add_positions(self) -> None:
        rows, columns = (side // self.patch_size for side in self.image_shape[1:])
        sincos = cos = sin = None
        if self.positions != "rope":
            sincos = sincos_positions(rows, columns, self.width)
        if self.positions != "sincos":
            cos, sin = rotary_positions(rows, columns, self.width // self.heads)
        # not in the state dict: they follow from the constructor's arguments
        for name, value in (("sincos", sincos), ("cos", cos), ("sin", sin)):
            self.register_buffer(name, value, persistent=False)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for time in (self.time, self.second_time):
            if time is not None:
                nn.init.normal_(time.hidden.weight, std=0.02)
                nn.init.normal_(time.out.weight, std=0.02)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=0.02)
        # cross-attention has no gate; its last layer does what the gates do
        cross = [part.cross.out for part in self.modules() if isinstance(part, DiTBlock) and part.cross is not None]
        for layer in (self.modulation, self.final_modulation, self.final, *cross):
            nn.init.zeros_(layer.weight)


def _context(cond: Condition) -> tuple[Tensor | None, Tensor | None]:
    """Return the condition's tokens and a mask that leaves at least one to every sample."""
    if cond.tokens is None or cond.mask is None:
        return cond.tokens, None
    # A softmax over nothing has no value. A sample without tokens attends to zeros instead, which stand for "none".
    tokens = cond.tokens.masked_fill(~cond.mask[:, :, None], 0.0)
    return tokens, cond.mask | ~cond.mask.any(dim=1, keepdim=True)
