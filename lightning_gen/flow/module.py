r"""Normalizing flows of images: an invertible network, trained by the likelihood itself.

.. math:: \min_f\; -\frac{1}{D}\,\mathrm E_x \log p(x), \qquad
          \log p(x) = \log \mathcal N(f(x); 0, I) + \log\left|\det \frac{\partial f}{\partial x}\right|

in nats per dimension. Images have few values, of which a density would make needles, so that noise is added first:

- evenly over the width of a value (`noise_std: 0`). The density then bounds the probability of the images, which is
  what bits per dimension are of, see `lightning_gen.dequantization`;
- or normal (`noise_std` above 0), as TarFlow does for samples: a smoother density, of noisy images, whose samples one
  step along its gradient makes clean. The likelihood is then not one of images, and is told as one of
  the density only.

References:
    Density estimation using Real NVP
    https://arxiv.org/abs/1605.08803
    Normalizing Flows are Capable Generative Models
    https://arxiv.org/abs/2412.06329
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_gen.dequantization import bits_per_dim, check_levels, dequantize, to_levels
from lightning_gen.ema import Averages
from lightning_gen.flow.density import denoised, log_density
from lightning_gen.labels import ClassPrior, label_of
from lightning_gen.networks.embeddings import at_least_float32
from lightning_gen.networks.flow import FlowNetwork
from lightning_gen.nonfinite import NonFinitePolicy, checked
from lightning_gen.one_network import OneNetwork
from lightning_gen.optimizers import DiffusionAdamW, optimizer_with_schedule
from lightning_gen.seeding import GeneratorStream, RandomStream, SampleStreams
from lightning_gen.stepping import ClipAlgorithm, evaluating


class NormalizingFlow(OneNetwork):
    """A flow of images, trained by maximum likelihood.

    Args:
        net: the flow.
        levels: number of values that images have, evenly in [-1, 1]: 256 for bytes.
        noise_std: standard deviation of normal noise on training images in [-1, 1]; 0 spreads every value evenly over
            its width instead.
        guidance: scale in sampling, 1 for none; the paper's weight is 1 less.
        weak_temperature: of the attention in what guidance goes away from; see `FlowNetwork.inverse`.
        label_dropout: share of training samples whose class is left out, where the network has a "none".
        label_prior: classes of samples where none is asked for: as frequent as in the training data, or uniform.
        accumulate: batches in an optimizer step; their gradients are averaged.
        optimizer: makes the optimizer.
        scheduler: makes the schedule of its rate, stepped once an iteration.
        gradient_clip_val: bound of the gradient; None for none.
        gradient_clip_algorithm: "norm" or "value".
        ema_half_lives: one average of the network each, in images; the first is what `sample` uses.
        ema_warmup: half-lives are shortened to this share of the images seen so far.
        ema_sigma_rels: relative widths of further averages with power-function profiles.
        on_nonfinite: "stop" at a gradient that is NaN or infinite, or "skip" its step and count it.

    Raises:
        ValueError: for a number out of range, or guidance of a network that has nothing to guide away from.
    """

    def __init__(
        self,
        net: FlowNetwork,
        levels: int = 256,
        noise_std: float = 0.0,
        guidance: float = 1.0,
        weak_temperature: float = 1.0,
        label_dropout: float = 0.1,
        label_prior: Literal["data", "uniform"] = "data",
        accumulate: int = 1,
        optimizer: OptimizerCallable = DiffusionAdamW,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        ema_half_lives: list[int] | None = None,
        ema_warmup: float | None = 0.05,
        ema_sigma_rels: list[float] | None = None,
        on_nonfinite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.on_nonfinite = checked(on_nonfinite)
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout is a share from 0 to below 1; given was {label_dropout}.")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std is 0, for noise as wide as a value, or above it; given was {noise_std}.")
        net.check_guidance(guidance, weak_temperature)
        self.net = net
        self.levels, self.noise_std = check_levels(levels), noise_std
        self.guidance, self.weak_temperature = guidance, weak_temperature
        self.label_dropout = label_dropout if net.null_class else 0.0
        self.net_ema = Averages(net, ema_half_lives or [], ema_warmup, sigma_rels=ema_sigma_rels or [])
        self.num_classes = net.num_classes
        self.class_prior = ClassPrior(self.num_classes, label_prior)
        self.accumulate = accumulate
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.optimizer, self.scheduler = optimizer, scheduler

    # ------------------------------------------------------------------ sampling

    def draw(  # type: ignore[override]  # the options of `sample` are the family's own
        self,
        stream: RandomStream,
        n: int,
        cond: int | Sequence[int] | Tensor | None = None,
        *,
        weights: str | None = None,
        temperature: float = 1.0,
        guidance: float | None = None,
        weak_temperature: float | None = None,
        denoise: bool | None = None,
    ) -> Tensor:
        """Draw images `(n, C, H, W)` in [-1, 1].

        Args:
            stream: where noise and classes come from.
            n: how many.
            cond: the class of all, or of each; drawn from the class prior where it is not given.
            weights: "raw", "ema", "ema-<half-life>" or "power-<width>"; the first average where there is one.
            temperature: standard deviation of the noise that is mapped to images; below 1 for likelier ones.
            guidance: scale of the guidance; 1 is none.
            weak_temperature: of the attention in what guidance goes away from.
            denoise: whether to take the noise off that the flow has learned; None where it has learned normal noise.
                Noise as wide as a value is taken off by rounding.
        """
        if not temperature > 0:
            raise ValueError(f"The temperature of the noise is above 0; given was {temperature}.")
        if denoise and not self.noise_std:
            raise ValueError("denoise takes off normal noise, and this flow was trained without: its noise_std is 0.")
        network = cast(FlowNetwork, self.net_ema.pick(self.net, weights))
        stream.dtype = torch.promote_types(stream.dtype, torch.float32)
        label = self.class_prior.labels(stream, n, cond)
        z = temperature * stream.normal(*self.sample_shape)
        with evaluating(network):
            images = network.inverse(
                z,
                label,
                self.guidance if guidance is None else guidance,
                self.weak_temperature if weak_temperature is None else weak_temperature,
            )
            if self.noise_std:
                images = denoised(network, images, self.noise_std, label) if denoise in (None, True) else images
            else:
                images = to_levels(images, self.levels)
        return images.clamp(-1, 1)

    # ------------------------------------------------------------------ likelihood

    def log_prob(
        self, images: Tensor, cond: int | Sequence[int] | Tensor | None = None, *, weights: str | None = None
    ) -> Tensor:
        """Return the log-density of images in nats, `(B,)`; gradients pass to the images.

        Args:
            images: points of the space of images in [-1, 1], `(B, C, H, W)`, with noise such as the flow was trained
                on: without, they lie where the density means nothing.
            cond: the class of all, or of each, where the flow has classes.
            weights: as `sample` takes it.
        """
        network = cast(FlowNetwork, self.net_ema.pick(self.net, weights))
        with evaluating(network):
            return log_density(network, images, self._label_of(cond, len(images)))

    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Tensor,
        cond: int | Sequence[int] | Tensor | None = None,
        *,
        seed: int = 0,
        offset: int | Sequence[int] = 0,
        weights: str | None = None,
    ) -> Tensor:
        """Return the bits per dimension of images, `(B,)`: an upper bound by dequantisation.

        Args:
            images: `(B, C, H, W)` in [-1, 1], of as many values as the flow was trained on.
            cond: their classes.
            seed: of the dequantisation; that of image i is a function of (seed, offset + i) alone.
            offset: index of the first image, or the index of every one.
            weights: as `sample` takes it.

        Raises:
            ValueError: where the flow has learned images with normal noise, whose density bounds nothing.
        """
        if self.noise_std:
            raise ValueError(
                f"This flow has learned images with normal noise of noise_std={self.noise_std}; bits per dimension are"
                " those of a flow trained with noise_std=0."
            )
        stream = SampleStreams(seed, offset, len(images), self.device, torch.promote_types(images.dtype, torch.float32))
        nats = self.log_prob(dequantize(images, stream, self.levels), cond, weights=weights)
        return bits_per_dim(nats, images[0].numel(), self.levels)

    def _label_of(self, cond: int | Sequence[int] | Tensor | None, n: int) -> Tensor | None:
        """Return the classes `(n,)` of images that are given, not drawn."""
        if self.num_classes is not None and cond is None:
            raise ValueError("This flow has classes: give those of the images as cond.")
        return self.class_prior.labels(GeneratorStream(None, n, self.device), n, cond)

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Learn how frequent the classes are."""
        super().setup(stage)
        if stage == "fit":
            self.class_prior.learn(getattr(self.trainer, "datamodule", None))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one step of the network, or a part of it where gradients are accumulated."""
        images = batch["image"]
        stream = GeneratorStream(None, len(images), self.device, torch.promote_types(images.dtype, torch.float32))
        label = label_of(batch, self.num_classes)
        if label is not None and self.label_dropout:
            label = label.masked_fill(stream.uniform() < self.label_dropout, cast(int, self.num_classes))
        nats = log_density(self.net, self._noisy(images, stream), label)
        loss = -nats.mean() / images[0].numel()
        self.learn_from(len(images))
        if self.take_step(loss) and self.logs_now:
            self._log(loss, nats.detach(), images[0].numel())

    def _log(self, loss: Tensor, nats: Tensor, dims: int) -> None:
        logs: dict[str, Tensor | float] = {"loss": loss}
        if not self.noise_std:
            logs["bits_per_dim"] = bits_per_dim(nats, dims, self.levels).mean()
        if self.skipped_steps:
            logs["skipped_steps"] = float(self.skipped_steps)
        self.log_scalars(logs, bar=("loss", "bits_per_dim"))

    @property
    def skipped_steps(self) -> int:
        """Steps left out for their gradient."""
        return self.steps.gradients.skipped

    def _noisy(self, images: Tensor, stream: RandomStream) -> Tensor:
        """Add the noise that makes a density of images."""
        if self.noise_std:
            images = at_least_float32(images)
            return images + self.noise_std * stream.normal(*images.shape[1:]).to(images)
        return dequantize(images, stream, self.levels)

    # ------------------------------------------------------------------ validation and optimizer

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the likelihood of held-out images, by the weights that samples are drawn by, always with the same noise.

        `loss` is in nats of the density per dimension, `nats` those of a whole image, `bits_per_dim` in bits.
        """
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log what validation does, on the test split."""
        self._evaluate(batch, "test")

    def held_out_protocol(self) -> dict[str, str]:
        """Say what likelihood is measured."""
        if self.noise_std:
            return {"test/loss": f"nats per dimension of images with normal noise of deviation {self.noise_std}"}
        return {"test/bits_per_dim": f"bound of the probability of {self.levels} values, by one draw of uniform noise"}

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> None:
        images = batch["image"]
        noisy = self._noisy(images, self.held_out_stream(len(images), torch.promote_types(images.dtype, torch.float32)))
        dims = images[0].numel()
        network = cast(FlowNetwork, self.net_ema.pick(self.net, None))
        with evaluating(network):
            nats = log_density(network, noisy, label_of(batch, self.num_classes))
        values = {"loss": -nats.mean() / dims}
        if not self.noise_std:
            bits = bits_per_dim(nats, dims, self.levels).mean()
            values |= {"bits_per_dim": bits, "nats": bits * dims * math.log(2)}
        self.log_held_out({f"{split}/{name}": value for name, value in values.items()}, len(images))

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Make the optimizer of the network."""
        return optimizer_with_schedule(self.net, self.optimizer, self.scheduler)
