r"""What a variational autoencoder minimizes, of log p(x | z), log q(z | x), log p(z) and the divergence of the two.

All in nats, summed over the dimensions of an image and of a latent, averaged over images. The evidence lower bound

.. math:: \log p(x) \ge \mathbb E_{q(z \mid x)} \log p(x \mid z) - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

is minimized with its sign turned, the divergence weighted by :math:`\beta`, rising to that over a warm-up; or held near
a capacity C that rises, :math:`\beta\,|\mathrm{KL} - C|`; or with free bits,
:math:`\sum_j \max(\lambda, \mathbb E_x \mathrm{KL}_j)`. The importance-weighted bound of K draws is

.. math:: \log p(x) \ge \mathbb E\, \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}.

References:
    Auto-Encoding Variational Bayes
    https://arxiv.org/abs/1312.6114
    beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
    https://openreview.net/forum?id=Sy2fzU9gl
    Understanding disentangling in beta-VAE (eq. 8)
    https://arxiv.org/abs/1804.03599
    Improved Variational Inference with Inverse Autoregressive Flow (eq. 15: free bits)
    https://arxiv.org/abs/1606.04934
    Importance Weighted Autoencoders (eq. 8)
    https://arxiv.org/abs/1509.00519
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.autoencoder.joined import gathered
from lightning_gen.autoencoder.latents import Inferred, LatentModel
from lightning_gen.errors import choose
from lightning_gen.seeding import RandomStream


class Terms(NamedTuple):
    """What a batch of B images says, by K draws of their latents.

    Attributes:
        log_px: log p(x | z) in nats, `(K, B)`.
        latents: the draws and what is known of them.
    """

    log_px: Tensor
    latents: Inferred

    @property
    def kl(self) -> Tensor:
        """The divergence of q(z | x) from p(z) in nats, `(B,)`; an estimate where it has no closed form."""
        return self.latents.kl.sum(-1).mean(0)

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound in nats, `(B,)`."""
        return self.log_px.mean(0) - self.kl

    @property
    def log_weights(self) -> Tensor:
        """Logarithms of the importance weights p(x, z) / q(z | x), `(K, B)`."""
        return self.log_px + self.latents.log_p - self.latents.log_q


@dataclass
class Setting:
    """What an objective may need besides.

    Attributes:
        model: of the latents.
        stream: random numbers, a row an image.
        images: images trained on so far, over all processes.
        data_size: images of the training data; 0 where it is not known.
    """

    model: LatentModel
    stream: RandomStream
    images: int = 0
    data_size: int = 0


@dataclass
class VariationalLosses:
    """The losses of a batch.

    Attributes:
        total: of each image, `(B,)`; its mean is what is minimized.
        logs: further values worth showing, scalars.
        t: None; images have no times here.
    """

    total: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    t: None = None


class VariationalObjective(nn.Module, ABC):
    """Base class of the objectives.

    Attributes:
        samples: draws K of each image's latents.
        needs_data_size: whether it has to know the number of training images.
    """

    samples: int = 1
    needs_data_size: bool = False

    def samples_at(self, images: int) -> int:
        """Return the draws of each image's latents after so many images were trained on."""
        return self.samples

    @abstractmethod
    def forward(self, terms: Terms, setting: Setting) -> VariationalLosses:
        """Return the losses of a batch; called by all processes."""

    def check(self, model: LatentModel) -> None:
        """Refuse a model of latents that the objective cannot be computed with.

        Raises:
            ValueError: says which would do.
        """


class ELBO(VariationalObjective):
    """The evidence lower bound, its divergence weighted.

    Args:
        beta: weight of the divergence; 1 is the bound itself.
        warmup: images over which the weight rises to that from 0, linearly.
        capacity: divergence in nats that is aimed at instead of 0, in the end; None for none.
        capacity_images: images over which it rises from 0, linearly.
        free_bits: nats that the divergence of every part of the latents, on average over the batch of all processes,
            may have for nothing.
        free_bits_of: the parts: "dimension", or "layer" for the layers of a ladder; where the divergence has no closed
            form, it is one part.
        samples: draws that are averaged over.

    Raises:
        ValueError: for numbers out of range, or a capacity together with free bits.
    """

    def __init__(
        self,
        beta: float = 1.0,
        warmup: int = 0,
        capacity: float | None = None,
        capacity_images: int = 0,
        free_bits: float = 0.0,
        free_bits_of: Literal["dimension", "layer"] = "dimension",
        samples: int = 1,
    ) -> None:
        super().__init__()
        choose("part of the latents", free_bits_of, dict.fromkeys(("dimension", "layer")))
        numbers = {"beta": beta, "warmup": warmup, "capacity": capacity or 0.0, "capacity_images": capacity_images}
        for name, value in (numbers | {"free_bits": free_bits}).items():
            if value < 0:
                raise ValueError(f"ELBO: {name} is 0 or more; given was {value}.")
        if capacity is not None and free_bits:
            raise ValueError("ELBO: a capacity and free_bits both say how large the divergence may be: set one.")
        self.beta, self.warmup = beta, warmup
        self.capacity, self.capacity_images = capacity, capacity_images
        self.free_bits, self.free_bits_of = free_bits, free_bits_of
        self.samples = checked_samples(samples)

    def beta_at(self, images: int) -> float:
        """Return the weight of the divergence after so many images."""
        return self.beta * (min(1.0, images / self.warmup) if self.warmup else 1.0)

    def capacity_at(self, images: int) -> float:
        """Return the divergence aimed at after so many images, in nats."""
        share = min(1.0, images / self.capacity_images) if self.capacity_images else 1.0
        return (self.capacity or 0.0) * share

    def forward(self, terms: Terms, setting: Setting) -> VariationalLosses:
        """Return the losses of a batch."""
        beta, divergence = self.beta_at(setting.images), terms.kl
        logs = {"beta": divergence.new_tensor(beta)} if self.warmup else {}
        if self.capacity is not None:
            target = self.capacity_at(setting.images)
            divergence = (divergence - target).abs()
            logs["capacity"] = divergence.new_tensor(target)
        elif self.free_bits:
            divergence = self._beyond_free_bits(terms.latents.kl.mean(0), setting.model.layers)
        return VariationalLosses(beta * divergence - terms.log_px.mean(0), logs)

    def _beyond_free_bits(self, kl: Tensor, layers: tuple[int, ...]) -> Tensor:
        """Return the divergence `(B,)` of kl `(B, G)`, whose parts count from the free bits on."""
        if self.free_bits_of == "layer" and kl.shape[1] == sum(layers):
            kl = torch.stack([part.sum(1) for part in torch.split(kl, list(layers), dim=1)], dim=1)
        counts = gathered(kl.detach()).mean(0) > self.free_bits
        return torch.where(counts, kl, self.free_bits).sum(1)


class IWAE(VariationalObjective):
    """The importance-weighted bound; gradients pass through all of it.

    With few draws a step is cheap, and its gradient tells the encoder more; with many the bound is tight. So their
    number may double from 1 to K as training goes on.

    Args:
        samples: draws K of each image's latents; with 1 it is the evidence lower bound by draws.
        warmup: images over which the draws double from 1 to K, each number for the same share of them; 0 for K draws
            from the start, as in the paper.

    Raises:
        ValueError: for no draw, or a negative number of images.
    """

    def __init__(self, samples: int = 50, warmup: int = 0) -> None:
        super().__init__()
        if warmup < 0:
            raise ValueError(f"IWAE: warmup is a number of images, 0 or more; given was {warmup}.")
        self.samples, self.warmup = checked_samples(samples), warmup

    def samples_at(self, images: int) -> int:
        """Return the draws of each image's latents after so many images were trained on: 1, 2, 4 ... K."""
        if images >= self.warmup:
            return self.samples
        doublings = math.ceil(math.log2(self.samples))
        return int(2 ** (images * doublings // self.warmup))

    def forward(self, terms: Terms, setting: Setting) -> VariationalLosses:
        """Return the losses of a batch."""
        return VariationalLosses(-log_mean_exp(terms.log_weights))


def log_mean_exp(values: Tensor) -> Tensor:
    """Return the logarithm of the mean of exponentials along dimension 0."""
    return torch.logsumexp(values, dim=0) - math.log(len(values))


def checked_samples(samples: int) -> int:
    """Return the number of draws, or raise a ValueError where it is not positive."""
    if samples < 1:
        raise ValueError(f"samples is the number of draws of an image's latents, 1 or more; given was {samples}.")
    return samples
