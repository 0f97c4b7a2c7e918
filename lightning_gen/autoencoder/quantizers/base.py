r"""The narrow type of quantizers: features to the nearest of finitely many codes, through which gradients are copied.

The decoder is given the code q of the feature z, and gradients pass as if nothing had happened between the two
(the straight-through estimator):

.. math:: \hat q = z + \operatorname{sg}(q - z), \qquad \partial L / \partial z = \partial L / \partial \hat q,

sg standing for what no gradient passes through. Losses are means over all dimensions, as the reconstruction error is.

References:
    Neural Discrete Representation Learning
    https://arxiv.org/abs/1711.00937
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_gen.autoencoder.bottlenecks import Bottleneck
from lightning_gen.autoencoder.quantizers.codebook import Codebook
from lightning_gen.autoencoder.quantizers.counts import CodeCounts
from lightning_gen.seeding import RandomStream, inverse_cdf


class Quantizer(Bottleneck, ABC):
    """Features to codes.

    Codebooks and counts move in training mode, while gradients are recorded; then every process has to call.
    Everything is computed in float32 under autocast, and the latents are float32.

    Args:
        in_channels: channels of the features it takes.
        out_channels: channels of the latents it makes.
        codebook_size: number K of codes.
        num_quantizers: number Q of codes of one place.

    Raises:
        ValueError: where one of them is not positive.
    """

    def __init__(self, in_channels: int, out_channels: int, codebook_size: int, num_quantizers: int = 1) -> None:
        super().__init__()
        given = {"channels": in_channels, "codebook_size": codebook_size, "num_quantizers": num_quantizers}
        for name, value in given.items():
            if value != int(value) or value < 1:
                raise ValueError(f"{type(self).__name__} takes a positive integer as {name}, not {value!r}.")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.codebook_size, self.num_quantizers = codebook_size, num_quantizers

    @abstractmethod
    def decode_indices(self, indices: Tensor) -> Tensor:
        """Map codes to the latents that the decoder was given, `(B, out_channels, h, w)`.

        Args:
            indices: as in `Bottled.indices`.

        Raises:
            ValueError: for codes of another shape or type, or out of range.
        """

    def draw(self, stream: RandomStream, grid: tuple[int, int]) -> Tensor:
        """Draw latents `(n, out_channels, h, w)`, each code by itself, as often as it was chosen in training."""
        return self.decode_indices(self.draw_indices(stream, grid))

    def draw_indices(self, stream: RandomStream, grid: tuple[int, int]) -> Tensor:
        """Draw codes of a grid `(h, w)`, as `Bottled.indices` has them."""
        frequencies = torch.cat([counts.counts.sum(0) for counts in self._all_counts()]).double()
        uniform = stream.uniform(*grid, self.num_quantizers)
        # before training, all alike
        codes = [
            inverse_cdf(chosen if chosen.any() else torch.ones_like(chosen), uniform[..., place])
            for place, chosen in enumerate(frequencies)
        ]
        return codes[0] if self.num_quantizers == 1 else torch.stack(codes, dim=-1)

    @property
    def usage(self) -> Tensor:
        """Share of codes in use over the last 100 to 200 batches of training, in [0, 1]; the mean over codebooks."""
        return torch.cat([counts.usage for counts in self._all_counts()]).mean()

    @property
    def perplexity(self) -> Tensor:
        """Number of codes that, used equally often, would be as hard to foretell; the mean over codebooks."""
        return torch.cat([counts.perplexity for counts in self._all_counts()]).mean()

    def moving(self) -> list[Tensor]:
        """Return the buffers, and the codes that learn by gradients and restart."""
        books = [part for part in self.modules() if isinstance(part, Codebook)]
        return [*self.buffers(), *(book.codes for book in books if book.restart_below and not book.averaged)]

    def _all_counts(self) -> list[CodeCounts]:
        return [part for part in self.modules() if isinstance(part, CodeCounts)]

    @property
    def learns(self) -> bool:
        """Whether codebooks and counts move with the next batch."""
        return self.training and torch.is_grad_enabled()

    def use(self) -> dict[str, Tensor]:
        """Return what is logged of the codebooks."""
        return {"usage": self.usage, "perplexity": self.perplexity}

    def check_indices(self, indices: Tensor, ndim: int, lowest: int = 0) -> None:
        """Raise a ValueError for codes that this quantizer does not decode.

        Values are read only where that is free of a wait: on the CPU and outside a compiled graph.

        Args:
            indices: the codes.
            ndim: how many dimensions they have.
            lowest: the lowest code allowed, -1 where it stands for none.
        """
        shape = "(B, h, w)" if ndim == 3 else "(B, h, w, Q)"
        if indices.dtype != torch.int64 or indices.ndim != ndim:
            raise ValueError(
                f"{type(self).__name__} decodes int64 codes of shape {shape}, not {indices.dtype} of shape"
                f" {tuple(indices.shape)}; forward(features).indices has that shape."
            )
        if indices.device.type != "cpu" or torch.compiler.is_compiling() or not indices.numel():
            return
        low, high = int(indices.min()), int(indices.max())
        if low < lowest or high >= self.codebook_size:
            raise ValueError(
                f"{type(self).__name__} has codes {lowest} to {self.codebook_size - 1}; given were {low} to {high}."
            )


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized`, bit by bit, with gradients that go to `z` alone."""
    return quantized.detach() + (z - z.detach())


def channels_last(features: Tensor) -> Tensor:
    """Return vectors `(B, h, w, C)` of features `(B, C, h, w)`, in float32 at least."""
    return features.movedim(1, -1).to(torch.promote_types(features.dtype, torch.float32))


def channels_first(vectors: Tensor) -> Tensor:
    """Return features `(B, C, h, w)` of vectors `(B, h, w, C)`."""
    return vectors.movedim(-1, 1).contiguous()


def full_precision(features: Tensor) -> torch.autocast:
    """Compute outside autocast: the nearest of many codes is not found with 8 bits."""
    return torch.autocast(features.device.type, enabled=False)
