"""What a trained diffusion model does: it draws images, from noise or from a picture, and tells their likelihood."""

from abc import ABC
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.checkpoint_files import find_checkpoint
from lightning_gen.codec import Codec
from lightning_gen.dequantization import bits_per_dim, dequantize
from lightning_gen.diffusion.conditioners import Conditioner
from lightning_gen.diffusion.conditions import condition_of_request
from lightning_gen.diffusion.denoiser import PointDenoiser
from lightning_gen.diffusion.grids import Grid
from lightning_gen.diffusion.guidance import Guidance
from lightning_gen.diffusion.latents import NO_LIKELIHOOD, start_of_latents
from lightning_gen.diffusion.likelihood import log_likelihood
from lightning_gen.diffusion.parameterizations import Parameterization
from lightning_gen.diffusion.paths import Path
from lightning_gen.diffusion.pictures import mask_of, picture_of
from lightning_gen.diffusion.sampling import Sampler, Start, Watch
from lightning_gen.diffusion.solvers import SOLVERS, Solver
from lightning_gen.diffusion.thresholding import Threshold
from lightning_gen.errors import choose
from lightning_gen.labels import ClassPrior
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.one_network import OneNetwork
from lightning_gen.seeding import RandomStream, SampleStreams
from lightning_gen.stepping import evaluating


class DenoisingSampler(OneNetwork, ABC):
    """A denoising network and all that drawing by it takes; see `Diffusion`, which trains one.

    Attributes:
        net: the network.
        path: how images become noise.
        parameterization: what the network is asked for.
        guidance: how its estimates are sharpened.
        solver: how steps are taken.
        grid: where.
        sampling_steps: how many.
        threshold: keeps estimated images in range; None leaves them.
        conditioner: makes the picture that the network is given beside the noisy one; None for none.
        codec: between images and the latents that the network denoises; None where it denoises images.
        class_prior: the classes of samples where none is asked for.
        likelihood_steps: of the probability-flow ODE, where none are asked for; 0 for 100.
    """

    net: DenoisingNetwork
    path: Path
    parameterization: Parameterization
    guidance: Guidance
    solver: Solver
    grid: Grid
    sampling_steps: int
    threshold: Threshold | None
    conditioner: Conditioner | None
    codec: Codec | None
    class_prior: ClassPrior
    likelihood_steps: int = 0

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape `(C, H, W)` of an image."""
        return tuple(self.net.image_shape if self.codec is None else self.codec.image_shape)

    def draw(  # type: ignore[override]  # the options of `sample` are the family's own
        self,
        stream: RandomStream,
        n: int,
        cond: Any = None,
        *,
        weights: str | None = None,
        steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        guide: "str | DenoisingSampler | None" = None,
        image: Tensor | str | None = None,
        mask: Tensor | str | None = None,
        strength: float = 0.5,
        resample: int = 1,
        picture: Tensor | str | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Draw images `(n, C, H, W)` in [-1, 1].

        Args:
            stream: all random numbers.
            n: how many.
            cond: the class of all or of each, or a dict with any of "label", "vector", "tokens" and "mask"; classes are
                drawn from the prior where none is given.
            weights: "raw", "ema", "ema-<half-life>" or "power-<width>"; the first average where there is one.
            steps: of the solver.
            solver: by name, with its own defaults.
            guidance: scale of the guidance; 1 is none.
            guide: for autoguidance, a worse model or its checkpoint.
            image: a picture `(1 or n, C, H, W)` in [-1, 1], or an image file, to begin from or, with a mask, to keep.
            mask: pixels of the picture that stay, 1, and that are made anew, 0, `(1 or n, 1, H, W)`, or an image file
                with the former light.
            strength: how far from the picture to begin, up to 1, where there is no mask.
            resample: times that each step is taken, where there is a mask.
            picture: what a model with a conditioner is given beside the noise: the small picture of
                `SuperResolution`, the picture with its mask of `InpaintingMask`.
            watch: told of every step.
        """
        network = self.net_ema.pick(self.net, weights)
        sampler = self._sampler(network, steps, solver, guidance)
        sampler.watch = watch
        weak = network  # where there is no guide
        if guide is not None:
            other = _loaded(guide).to(self.device)
            weak = other.net_ema.pick(other.net, None)
            sampler.weak = other._estimate(weak)
        stream.dtype = torch.promote_types(stream.dtype, torch.float32)
        asked = condition_of_request(cond, self.net, self.class_prior, stream, n, self.device)
        if self.conditioner is not None:
            asked, mask = asked._replace(image=self._picture(picture, mask, n)), None
        elif picture is not None:
            raise ValueError("This model takes no picture beside the noise; to begin from one give it as image.")
        start = self._start(image, mask, strength, resample, n)
        with evaluating(network), evaluating(weak):
            drawn = sampler(stream, tuple(self.net.image_shape), asked, start)
        return drawn.clamp(-1, 1) if self.codec is None else self.codec.decode(drawn)

    def _sampler(
        self,
        network: nn.Module,
        steps: int | None,
        solver: str | None,
        guidance: float | None,
    ) -> Sampler:
        guided = self.guidance if guidance is None else self.guidance.with_scale(guidance)
        guided.check(self.net)
        return Sampler(
            self._estimate(network),
            self.solver if solver is None else choose("solver", solver, SOLVERS)(),
            self.grid.points(self.sampling_steps if steps is None else steps, self.path),
            guided,
            threshold=self.threshold,
        )

    def _estimate(self, network: nn.Module) -> PointDenoiser:
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
        return PointDenoiser(network, self.path, self.parameterization, dtype)  # type: ignore[arg-type]

    def _start(
        self, image: Tensor | str | None, mask: Tensor | str | None, strength: float, resample: int, n: int
    ) -> Start | None:
        if image is None:
            if mask is not None:
                raise ValueError("A mask says what stays of a picture: give the picture as image.")
            return None
        picture = self._for_each(picture_of(image, self.sample_shape), n)
        kept = None if mask is None else self._for_each(mask_of(mask, self.sample_shape), n)
        if self.codec is not None:
            picture, kept = start_of_latents(self.codec, picture, kept)
        start = Start(picture, strength, kept, resample)
        start.check((n, *self.net.image_shape))
        return start

    def _picture(self, picture: Tensor | str | None, mask: Tensor | str | None, n: int) -> Tensor:
        """Return the picture that the network is given beside the noisy ones."""
        conditioner = self.conditioner
        if conditioner is None or picture is None:
            raise ValueError(
                f"This model was trained with {type(conditioner).__name__}: give the picture as picture=..."
                " (--picture FILE on the command line)."
            )
        shape = conditioner.given_shape(self.sample_shape)
        given = self._for_each(picture_of(picture, shape), n)
        beside = conditioner.prepare(given, None if mask is None else self._for_each(mask_of(mask, shape), n))
        if tuple(beside.shape[2:]) != self.sample_shape[1:]:
            raise ValueError(f"The picture has the shape {tuple(given.shape[1:])}; this model takes {shape}.")
        return beside

    def _for_each(self, picture: Tensor, n: int) -> Tensor:
        return picture.to(self.device).expand(n, *picture.shape[1:])

    def bits_per_dim(
        self,
        images: Tensor,
        cond: int | Sequence[int] | Tensor | None = None,
        *,
        seed: int = 0,
        offset: int | Sequence[int] = 0,
        steps: int | None = None,
        weights: str | None = None,
    ) -> Tensor:
        """Return the bits per dimension of images whose values are bytes, `(B,)`: an upper bound by dequantisation.

        Args:
            images: `(B, C, H, W)`, bytes / 127.5 - 1.
            cond: their classes.
            seed: of the dequantisation and of the trace's probes; those of image i are a function of
                (seed, offset + i) alone.
            offset: index of the first image, or the index of every one.
            steps: of the probability-flow ODE; None for `likelihood_steps`, else 100.
            weights: as `sample` takes it.
        """
        if self.codec is not None:
            raise ValueError(NO_LIKELIHOOD)
        network = self.net_ema.pick(self.net, weights)
        stream = SampleStreams(seed, offset, len(images), self.device, images.dtype)
        asked = condition_of_request(cond, self.net, self.class_prior, stream, len(images), self.device)
        estimate = self._estimate(network)
        with evaluating(network):
            nats = log_likelihood(
                lambda x, point: estimate(x, point, point, asked).x0,
                dequantize(images, stream),
                self.path,
                steps or self.likelihood_steps or 100,
                stream,
            )
        return bits_per_dim(nats, images[0].numel())


def _loaded(guide: "str | DenoisingSampler") -> DenoisingSampler:
    if isinstance(guide, DenoisingSampler):
        return guide
    path = find_checkpoint(guide)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read(path: FilePath, changed: int) -> DenoisingSampler:
    """Load a model once, for it is asked for with every batch, and again where its file has changed."""
    from lightning_gen.checkpoints import load_module

    other = load_module(path)
    if not isinstance(other, DenoisingSampler):
        raise ValueError(f"The guide is a Diffusion; {path} holds a {type(other).__name__}.")
    return other
