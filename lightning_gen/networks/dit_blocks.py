r"""The blocks of a diffusion transformer: embedding of the time, attention, MLP and adaLN-zero.

With the shift, scale and gate that a linear layer makes of the condition, a block maps tokens :math:`h` to

.. math::
    h \leftarrow h + g_1\,\mathrm{attention}\big((1 + s_1)\,\mathrm{norm}(h) + b_1\big), \qquad
    h \leftarrow h + g_2\,\mathrm{mlp}\big((1 + s_2)\,\mathrm{norm}(h) + b_2\big),

and is the identity where that layer is zero, as it is at the start of training. The norms have no gain and no
bias of their own.

References:
    Scalable Diffusion Models with Transformers (adaLN-zero)
    https://arxiv.org/abs/2212.09748
    Root Mean Square Layer Normalization
    https://arxiv.org/abs/1910.07467
    GLU Variants Improve Transformer (SwiGLU)
    https://arxiv.org/abs/2002.05202
    Scaling Vision Transformers to 22 Billion Parameters (normalized queries and keys)
    https://arxiv.org/abs/2302.05442
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import UnpackedDualTensor, unpack_dual

from lightning_gen.errors import choose
from lightning_gen.networks.embeddings import PositionalEmbedding
from lightning_gen.networks.positions import Rotation, rotate

AttentionName: TypeAlias = Literal["sdpa", "math"]
MLPName: TypeAlias = Literal["gelu", "swiglu"]
TokenNormName: TypeAlias = Literal["layer", "rms"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, how: AttentionName = "sdpa") -> Tensor:
    """Attention of queries `(B, heads, N, d)` over keys and values `(B, heads, M, d)`.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: which keys are there, bool, broadcast to `(B, heads, N, M)`; at least one for every query.
        how: "sdpa" for torch's fused kernels, "math" for matrix products and a softmax. The fused ones know no
            forward-mode derivatives, so outside of a compiled graph these are taken by "math" by themselves.

    Returns:
        `(B, heads, N, d)`.
    """
    if how == "sdpa" and not in_forward_mode(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed: Tensor = scores.softmax(dim=-1).to(v.dtype) @ v
    return mixed


def in_forward_mode(*tensors: Tensor) -> bool:
    """Whether a forward-mode derivative is being taken through one of the tensors; False while compiling."""
    if torch.compiler.is_compiling():
        return False
    unpack: Callable[[Tensor], UnpackedDualTensor] = unpack_dual
    return any(unpack(tensor).tangent is not None for tensor in tensors)


class TimeEmbedding(nn.Module):
    """Cosines and sines of a noise label at 256 frequencies, then an MLP.

    Args:
        width: length of the embedding.
        freq_shift: 1 where the frequencies run to 1/10000 itself, 0 to the one before; see `PositionalEmbedding`.
        frequencies: number of cosines and sines together.
    """

    def __init__(self, width: int, freq_shift: int = 0, frequencies: int = 256) -> None:
        super().__init__()
        self.embed = PositionalEmbedding(frequencies, freq_shift=freq_shift, order="cos_sin")
        self.hidden, self.out = nn.Linear(frequencies, width), nn.Linear(width, width)

    def forward(self, noise_label: Tensor) -> Tensor:
        """Map noise labels `(B,)` to embeddings `(B, width)`."""
        waves = self.embed(noise_label).to(self.hidden.weight.dtype)
        # Without autocast: the layers are small, and bfloat16 would round neighboring times to one. On the meta
        # device there is nothing to switch off.
        device = noise_label.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            out: Tensor = self.out(F.silu(self.hidden(waves)))
        return out


class RMSNorm(nn.Module):
    """Division by the root of the mean square, with a gain where asked for.

    Args:
        width: number of entries that are normalized together.
        eps: added to the mean square.
        gain: whether there is a learned gain per entry.
    """

    def __init__(self, width: int, eps: float = 1e-6, gain: bool = False) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        # the gain outside of the kernel: inside, it would have to be of the precision of x
        normalized = F.rms_norm(x, (self.width,), None, self.eps)
        return normalized if self.weight is None else (normalized * self.weight).to(x.dtype)


def make_token_norm(name: TokenNormName, width: int, eps: float) -> nn.Module:
    """Return a normalization of tokens without gain and bias.

    Raises:
        ValueError: for another name than "layer" and "rms".
    """
    names = {"layer": nn.LayerNorm(width, eps, elementwise_affine=False), "rms": RMSNorm(width, eps)}
    return choose("normalization of tokens", name, names)


class Attention(nn.Module):
    """Attention with several heads, of tokens over themselves or over a context.

    Args:
        width: width D of the tokens.
        heads: number of heads, a divisor of D.
        context_width: width of the context; None for attention over the tokens themselves.
        qk_norm: whether queries and keys are normalized (by RMS, over a head's entries, with a gain).
        bias: whether queries, keys and values have a bias.
        dropout: probability that an entry of the output is zeroed in training.
        how: see `attend`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        context_width: int | None = None,
        qk_norm: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        how: AttentionName = "sdpa",
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.how: AttentionName = choose("way of attention", how, {name: name for name in get_args(AttentionName)})
        self.own = context_width is None
        if context_width is None:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q = nn.Linear(width, width, bias=bias)
            self.kv = nn.Linear(context_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width)
        self.head_width = width // heads
        self.q_norm = RMSNorm(self.head_width, gain=True) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_width, gain=True) if qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, context: Tensor | None = None, rotation: Rotation | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Mix the tokens.

        Args:
            x: tokens, `(B, N, D)`.
            context: what is attended to, `(B, M, context_width)`; None for the tokens.
            rotation: rotary positions of the tokens; see `rotary_positions`.
            mask: which of the context is there, bool `(B, M)`.

        Returns:
            `(B, N, D)`.
        """
        if self.own:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            (q,), (k, v) = self._split(self.q(x), 1), self._split(self.kv(context), 2)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attend(q, k, v, None if mask is None else mask[:, None, None], self.how)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return F.dropout(out, self.dropout, self.training)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, parts, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)


class MLP(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between, or SwiGLU of about as many parameters.

    Args:
        width: width of the tokens.
        ratio: hidden width of the GELU's over the tokens'; SwiGLU's is 2/3 of it, rounded up to a multiple of 8.
        name: "gelu" or "swiglu".
        dropout: probability that a hidden entry is zeroed in training.
    """

    def __init__(self, width: int, ratio: float = 4.0, name: MLPName = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.gated: bool = choose("MLP", name, {"gelu": False, "swiglu": True})
        self.dropout = dropout
        hidden = -(-int(width * ratio * 2 / 3) // 8) * 8 if self.gated else int(width * ratio)
        self.hidden = nn.Linear(width, 2 * hidden if self.gated else hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens `(B, N, D)` to tokens."""
        hidden = self.hidden(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        out: Tensor = self.out(F.dropout(hidden, self.dropout, self.training))
        return out


class DiTBlock(nn.Module):
    """Attention, attention over a context where there is one, and an MLP, each added to the tokens.

    Args:
        attention: of the tokens over themselves.
        cross: of the tokens over the context, or None.
        mlp: the MLP.
        norms: the norms before attention, MLP and, where there is one, cross-attention.
    """

    def __init__(self, attention: Attention, cross: Attention | None, mlp: MLP, norms: list[nn.Module]) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp = attention, cross, mlp
        self.attention_norm, self.mlp_norm = norms[:2]
        self.cross_norm = norms[2] if cross is not None else None

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Map tokens `(B, N, D)` to tokens.

        Args:
            x: tokens.
            modulation: shift, scale and gate of attention, then of the MLP, `(B, 6, D)`.
            context: the condition's tokens, `(B, L, token_dim)`.
            mask: which of them are there, bool `(B, L)`.
            rotation: rotary positions, or None.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, :, None].unbind(1)
        x = x + gate1 * self.attention(modulate(self.attention_norm(x), shift1, scale1), rotation=rotation)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), context, mask=mask)
        x = x + gate2 * self.mlp(modulate(self.mlp_norm(x), shift2, scale2))
        return x


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return (1 + scale) x + shift."""
    return x * (1 + scale) + shift
