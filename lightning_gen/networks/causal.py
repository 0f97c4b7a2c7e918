r"""A causal transformer's layers, which take all tokens at once, or one after the other with a cache.

A token attends to itself and to those before it; with the keys and values of these kept, the next token costs one
token's work. Both ways return the same.

References:
    Attention Is All You Need
    https://arxiv.org/abs/1706.03762
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.networks.dit_blocks import MLP, Attention, attend


class Cache:
    """Keys and values of the tokens so far, of one layer."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values `(B, heads, n, d)`; return all."""
        if self.kept is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.kept, (k, v), strict=True))
        self.kept = k, v
        return self.kept


class CausalAttention(Attention):
    """Attention of every token over itself and those before."""

    def forward(  # type: ignore[override]  # neither a context nor rotations, but a cache
        self, x: Tensor, cache: Cache | None = None, sharpness: Tensor | None = None
    ) -> Tensor:
        """Mix the tokens.

        Args:
            x: tokens, `(B, N, D)`; with a cache the next one, `(B, 1, D)`.
            cache: keys and values of the tokens before; they are added to it.
            sharpness: what each sample's attention logits are multiplied by, `(B,)`.
        """
        q, k, v = self._split(self.qkv(x), 3)
        if sharpness is not None:
            q = q * sharpness[:, None, None, None].to(q.dtype)
        if cache is not None:
            mixed = attend(q, *cache.extended(k, v), how=self.how)
        else:
            tokens = x.shape[1]
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
            mixed = attend(q, k, v, mask, self.how)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return F.dropout(out, self.dropout, self.training)


class CausalLayer(nn.Module):
    """Causal attention and an MLP, each of normalized tokens and added to them.

    Args:
        width: width D of the tokens.
        heads: number of heads, a divisor of D.
        mlp_ratio: hidden width of the MLP over D.
        dropout: probability that an entry of attention's output or of the MLP's hidden layer is zeroed in training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout=dropout)
        self.mlp = MLP(width, mlp_ratio, dropout=dropout)

    def forward(self, x: Tensor, cache: Cache | None = None, sharpness: Tensor | None = None) -> Tensor:
        """Map tokens to tokens; see `CausalAttention.forward`."""
        x = x + self.attention(self.attention_norm(x), cache, sharpness)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out
