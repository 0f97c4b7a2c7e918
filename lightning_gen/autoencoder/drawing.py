"""What a trained variational autoencoder draws, and the likelihood that it tells of images."""

import math
from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gen.autoencoder.binarization import Binarization, dynamic_binary, static_binary
from lightning_gen.autoencoder.importance import importance_sampled
from lightning_gen.autoencoder.priors import Prior
from lightning_gen.autoencoder.vae_net import VAENet
from lightning_gen.autoencoder.variational_coder import Classes, VariationalCoder
from lightning_gen.seeding import RandomStream, SampleStreams
from lightning_gen.stepping import evaluating


class VariationalSampler(VariationalCoder, ABC):
    """The networks of a variational autoencoder and all that drawing by them takes; see `VAE`, which trains them.

    Attributes:
        sampling_prior: what latents of samples are drawn from, once it is fitted; None for the prior.
        sampling_prior_fitted: whether it is, kept in the checkpoint.
        binarize: how gray images become black and white ones; None where they stay.
        test_samples: draws K of the log-likelihood, where no number is given.
    """

    sampling_prior: Prior | None
    sampling_prior_fitted: Tensor
    binarize: Binarization | None
    test_samples: int

    # ------------------------------------------------------------------ samples

    def draw(  # type: ignore[override]  # the options of `sample` are the family's own
        self,
        stream: RandomStream,
        n: int,
        cond: Classes | None = None,
        *,
        weights: str | None = None,
        mean: bool = True,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw images `(n, C, H, W)` in [-1, 1].

        Args:
            stream: all random numbers.
            n: how many.
            cond: the class of all, or of each; drawn from the class prior where it is not given.
            weights: "raw", "ema" or "ema-<half-life>"; the first average where there is one.
            mean: whether images are the likelihood's mean, or are drawn from it, noise included.
            temperature: factor of the latents' deviation from the prior's mean; below 1 images are alike and clean.
        """
        if temperature < 0:
            raise ValueError(f"temperature is 0 or more; given was {temperature}.")
        net = self._picked(weights)
        stream.dtype = torch.promote_types(stream.dtype, torch.float32)
        label = self.class_prior.labels(stream, n, cond)
        with evaluating(net):
            z = self._latents(net, stream, temperature)
            described = net.described(z, label)
            return net.likelihood.mean(described) if mean else net.likelihood.sample(described, stream)

    def _latents(self, net: VAENet, stream: RandomStream, temperature: float) -> Tensor:
        if self.sampling_prior is None or not bool(self.sampling_prior_fitted):
            return net.latents.sample(stream, temperature)
        if temperature != 1:
            raise ValueError("A fitted sampling prior has no temperature: leave it at 1.")
        return self.sampling_prior.sample(stream)

    # ------------------------------------------------------------------ likelihood

    def observed(self, images: Tensor, stream: RandomStream) -> Tensor:
        """Return what the likelihood is of: the images, made black and white where that is asked for."""
        if self.binarize is None:
            return images
        return static_binary(images) if self.binarize == "static" else dynamic_binary(images, stream)

    @torch.no_grad()
    def log_likelihood(
        self,
        images: Tensor,
        cond: Classes | None = None,
        *,
        samples: int | None = None,
        chunk: int | None = None,
        seed: int = 0,
        offset: int | Sequence[int] = 0,
        weights: str | None = None,
    ) -> Tensor:
        """Return the importance-sampled log-likelihood of images in nats, `(B,)`, as they are: nothing is binarized.

        Args:
            images: `(B, C, H, W)` in [-1, 1].
            cond: their classes, of a conditional model.
            samples: draws K of each image's latents, exactly; None for `test_samples`.
            chunk: draws that are decoded at once; None for as many as make some thousand images. It changes rounding.
            seed: of the draws; those of image i are a function of (seed, offset + i) alone.
            offset: index of the first image, or the index of every one.
            weights: as `sample` takes it.
        """
        net = self._picked(weights)
        stream = SampleStreams(seed, offset, len(images), self.device, self._kind(images))
        with evaluating(net):
            samples = self.test_samples if samples is None else samples
            return importance_sampled(net, images, self._labels(cond, len(images)), stream, samples, chunk)

    def bits_per_dim(
        self,
        images: Tensor,
        cond: Classes | None = None,
        *,
        samples: int | None = None,
        chunk: int | None = None,
        seed: int = 0,
        offset: int | Sequence[int] = 0,
        weights: str | None = None,
    ) -> Tensor:
        """Return the bits per dimension of images, `(B,)`; see `log_likelihood`.

        Raises:
            ValueError: where the likelihood is a density, or the images have other values than it is the mass of.
        """
        self.net.likelihood.check_mass(images)
        nats = self.log_likelihood(
            images, cond, samples=samples, chunk=chunk, seed=seed, offset=offset, weights=weights
        )
        return -nats / (images[0].numel() * math.log(2))
