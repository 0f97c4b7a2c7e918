r"""Variational autoencoders: one module for all that differ in their parts only.

An encoder tells of an image x the distribution :math:`q(z \mid x)` of its latents, a decoder of latents z that of
their image, and both are trained to make

.. math:: \log p(x) \ge \mathbb E_{q(z \mid x)}\left[ \log p(x \mid z) + \log p(z) - \log q(z \mid x) \right]

large. Each part is its own file and stands for a choice of the papers: what an image is drawn from (`likelihoods`,
`logistics`), what latents are drawn from (`priors`, `vamp`, `posterior_flows`, `ladder`) and what is minimized
(`objectives`, `beta_tc`, `info_vae`). A conditional one hands the class to both networks.

References:
    Auto-Encoding Variational Bayes
    https://arxiv.org/abs/1312.6114
    Stochastic Backpropagation and Approximate Inference in Deep Generative Models
    https://arxiv.org/abs/1401.4082
    Learning Structured Output Representation using Deep Conditional Generative Models
    https://papers.nips.cc/paper/5775-learning-structured-output-representation-using-deep-conditional-generative-models
"""

import math
from typing import Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_gen.agreement import of_every
from lightning_gen.autoencoder.active_units import ActiveUnits, active_units
from lightning_gen.autoencoder.beginning import mean_image, number_of_images, warn_of_other_values
from lightning_gen.autoencoder.binarization import Binarization
from lightning_gen.autoencoder.drawing import VariationalSampler
from lightning_gen.autoencoder.importance import importance_sampled
from lightning_gen.autoencoder.joined import gathered
from lightning_gen.autoencoder.ladder import Ladder
from lightning_gen.autoencoder.latents import GaussianLatents, LatentModel
from lightning_gen.autoencoder.likelihoods import Bernoulli, Likelihood
from lightning_gen.autoencoder.objectives import (
    ELBO,
    Setting,
    Terms,
    VariationalLosses,
    VariationalObjective,
    log_mean_exp,
)
from lightning_gen.autoencoder.posterior_flows import PosteriorFlow
from lightning_gen.autoencoder.priors import Prior
from lightning_gen.autoencoder.vae_net import VAENet
from lightning_gen.autoencoder.vamp import VampPrior
from lightning_gen.ema import Averages
from lightning_gen.errors import choose
from lightning_gen.labels import ClassPrior, label_of
from lightning_gen.networks.latent import LatentDecoder, LatentEncoder
from lightning_gen.nonfinite import NonFiniteLoss, NonFinitePolicy
from lightning_gen.optimizers import DiffusionAdamW, optimizer_with_schedule
from lightning_gen.seeding import GeneratorStream, RandomStream
from lightning_gen.stepping import ClipAlgorithm, evaluating


class VAE(VariationalSampler):
    """A variational autoencoder with vector latents.

    Args:
        encoder: images to what describes their latents.
        decoder: latents to what describes images.
        latent_dim: length of a latent; None with a ladder, which has its own.
        likelihood: of images, as the decoder describes it; None for Bernoulli.
        prior: of latents; None for the standard normal.
        posterior_flow: bends the posterior; None for none.
        ladder: several layers of latents in the place of one; None for one.
        objective: what is minimized; None for the evidence lower bound.
        start_at_mean: begin with the mean of the training images as what the decoder says of every latent, as the IWAE
            paper does: the first thousands of steps are else spent on it.
        binarize: make gray images black and white at random: "static", an image once for all, or "dynamic", anew at
            every look; None leaves them.
        sampling_prior: what latents of samples are drawn from once it was fitted to those of a trained model; it takes
            no part in training. None for the prior.
        test_samples: draws K of the log-likelihood that `test` logs; 0 leaves it out.
        label_prior: classes of samples where none is asked for: as frequent as in the training data, or uniform.
        compile_network: compile the networks with torch.compile for training.
        accumulate: batches in an optimizer step; their gradients are averaged.
        optimizer: makes the optimizer.
        scheduler: makes the schedule of its rate, stepped once an iteration.
        gradient_clip_val: bound of the gradient; None for none.
        gradient_clip_algorithm: "norm" or "value".
        ema_half_lives: one average of all networks each, in images; the first is what `sample` uses.
        ema_warmup: half-lives are shortened to this share of the images seen so far.
        on_nonfinite: "stop" at a loss or gradient that is NaN or infinite, or "skip" the batch and count it.

    Attributes:
        skipped_batches: batches left out for their loss, on this process, and steps left out for their gradient.

    Raises:
        ValueError: where the parts do not fit together.
    """

    def __init__(
        self,
        encoder: LatentEncoder,
        decoder: LatentDecoder,
        latent_dim: int | None = None,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        posterior_flow: PosteriorFlow | None = None,
        ladder: Ladder | None = None,
        objective: VariationalObjective | None = None,
        start_at_mean: bool = False,
        binarize: Binarization | None = None,
        sampling_prior: Prior | None = None,
        test_samples: int = 100,
        label_prior: Literal["data", "uniform"] = "data",
        compile_network: bool = False,
        accumulate: int = 1,
        optimizer: OptimizerCallable = DiffusionAdamW,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        ema_half_lives: list[int] | None = None,
        ema_warmup: float | None = 0.05,
        on_nonfinite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        latents = _latents_of(latent_dim, prior, posterior_flow, ladder)
        self.net = VAENet(encoder, decoder, latents, likelihood if likelihood is not None else Bernoulli())
        self.net_ema = Averages(self.net, ema_half_lives or [], ema_warmup)
        self.objective = objective if objective is not None else ELBO()
        self.objective.check(latents)
        self.start_at_mean, self.compile_network = start_at_mean, compile_network
        self.num_classes = self.net.num_classes
        self.class_prior = ClassPrior(self.num_classes, label_prior)
        if binarize is not None:
            choose("way to binarize", binarize, dict.fromkeys(("static", "dynamic")))
        self.binarize: Binarization | None = binarize
        self.sampling_prior = _checked_sampling_prior(sampling_prior, latents)
        self.register_buffer("sampling_prior_fitted", torch.tensor(False))
        if test_samples < 0:
            raise ValueError(f"test_samples is the number of draws, 0 for no likelihood; given was {test_samples}.")
        self.test_samples, self.accumulate = test_samples, accumulate
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.optimizer, self.scheduler = optimizer, scheduler
        self.on_nonfinite, self.nonfinite = on_nonfinite, NonFiniteLoss(on_nonfinite)
        self._data_size, self._looked = 0, False
        self._units = ActiveUnits(latents.latent_dim)

    def take_sampling_prior(self, prior: Prior) -> None:
        """Let samples be drawn from another prior, once it is fitted; see `sampling_prior.fit_sampling_prior`.

        Raises:
            ValueError: where it is of latents of another length.
        """
        self.sampling_prior = _checked_sampling_prior(prior, self.net.latents)
        self.sampling_prior_fitted.fill_(False)

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Learn of the training images what has to be known, such as their classes and their mean, and compile."""
        super().setup(stage)
        if stage == "fit":
            datamodule = getattr(self.trainer, "datamodule", None)
            self.class_prior.learn(datamodule)
            if self.objective.needs_data_size and getattr(self.objective, "data_size", None) is None:
                self._data_size = number_of_images(datamodule)
            if self.start_at_mean and self.trainer.ckpt_path is None and self.images_seen == 0:
                mean = mean_image(datamodule).to(self.device, cast(torch.dtype, self.dtype))
                self.net.decoder.start_at(self.net.likelihood.params_of(mean))
                self.net_ema.restart(self.net)
            if self.compile_network:
                self.net.compile()

    def check_sharding(self) -> None:
        """Refuse to be sharded: encoder and decoder are called one without the other."""
        raise MisconfigurationException(
            "A VAE is not sharded, for its encoder and decoder are used apart: use strategy='ddp' (--trainer.strategy"
            " ddp)."
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one step, or a part of it where gradients are accumulated."""
        images = batch["image"]
        stream = self._training_stream(images)
        x, label = self.observed(images, stream), label_of(batch, self.num_classes)
        if not self._looked and self.trainer.is_global_zero:
            warn_of_other_values(self.net.likelihood, x)
        self._looked = True
        features, terms = self._terms(self.net, x, label, stream, self.objective.samples_at(self.images_seen))
        losses = self.objective(terms, Setting(self.net.latents, stream, self.images_seen, self._data_size))
        accepted = self.accepts(losses, len(images))
        if self.take_step(losses.total.mean() if accepted else None) and self.logs_now:
            self._log(losses, terms, features)

    def _training_stream(self, images: Tensor) -> RandomStream:
        return GeneratorStream(None, len(images), self.device, self._kind(images))

    def _terms(
        self, net: VAENet, x: Tensor, label: Tensor | None, stream: RandomStream, samples: int
    ) -> tuple[Tensor, Terms]:
        """Return the encoder's features of images, and what so many draws of their latents say of the bound."""
        net.likelihood.check(x)
        found: tuple[Tensor, Terms] = net(x, net.noise(stream, samples), label)
        return found

    @torch.no_grad()
    def _log(self, losses: VariationalLosses, terms: Terms, features: Tensor) -> None:
        logs: dict[str, Tensor | float] = {"loss": losses.total.mean(), **_summary(terms), **losses.logs}
        logs["active_units"] = float(active_units(gathered(self.net.latents.mean(features.detach()))))
        if self.skipped_batches:
            logs["skipped_batches"] = float(self.skipped_batches)
        self.log_scalars(logs, bar=("loss",))

    # ------------------------------------------------------------------ validation, likelihood and optimizer

    def on_validation_epoch_start(self) -> None:
        """Begin to count held-out images and active units."""
        super().on_validation_epoch_start()
        self._units = ActiveUnits(self.net.latents.latent_dim)

    def on_test_epoch_start(self) -> None:
        """Begin to count held-out images and active units."""
        super().on_test_epoch_start()
        self._told_bits: bool | None = None
        self._units = ActiveUnits(self.net.latents.latent_dim)

    def on_validation_epoch_end(self) -> None:
        """Log the active units over all images."""
        self._log_units("val")

    def on_test_epoch_end(self) -> None:
        """Log the active units over all images."""
        self._log_units("test")

    def _log_units(self, split: str) -> None:
        sums = self._units.sums
        if self.trainer.world_size > 1:
            kind = torch.float32 if self.device.type == "mps" else torch.float64
            sums = cast(Tensor, self.all_gather(sums.to(self.device, kind))).sum(0).to("cpu", torch.float64)
        if sums[-1] > 0:
            self.log(f"{split}/active_units", float(self._units.count(sums)))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the bound of held-out images, by the weights that samples are drawn by, always on the same noise."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log what validation does, on the test split, and the log-likelihood by `test_samples` draws."""
        self._evaluate(batch, "test")

    def held_out_protocol(self) -> dict[str, str]:
        """Say by how many draws the bounds and the likelihood are measured, and of which images."""
        likelihood = self.net.likelihood
        what = "a density" if likelihood.levels is None else f"the mass of {likelihood.levels} values"
        binarized = {"static": ", images binarized once by their own hash", "dynamic": ", images binarized once a test"}
        of = f"{type(likelihood).__name__}, {what}{binarized.get(self.binarize or '', '')}"
        bound = f"nats of an image, {of}; draws: {self.objective.samples}"
        draws = f"by importance sampling with {self.test_samples} draws an image"
        return {
            **dict.fromkeys(("test/elbo", "test/iwae", "test/kl", "test/reconstruction"), bound),
            "test/log_likelihood": f"nats of an image, {of}; {draws}",
            "test/bits_per_dim": f"bits, {of}; {draws}",
        }

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> None:
        images, label = batch["image"], label_of(batch, self.num_classes)
        net = self._picked(None)
        stream = self.held_out_stream(len(images), self._kind(images))
        x = self.observed(images, stream)
        with evaluating(net):
            features, terms = self._terms(net, x, label, stream, self.objective.samples)
            self._units.add(net.latents.mean(features))
            values = {f"{split}/{name}": value for name, value in _summary(terms).items()}
            if self.objective.samples > 1:
                values[f"{split}/iwae"] = log_mean_exp(terms.log_weights).mean()
            if split == "test" and self.test_samples:
                nats = importance_sampled(net, x, label, stream, self.test_samples).mean()
                values["test/log_likelihood"] = nats
                if self._told_bits is None:
                    self._told_bits = of_every(net.likelihood.is_mass_of(x), x.device)
                if self._told_bits:
                    values["test/bits_per_dim"] = -nats / (x[0].numel() * math.log(2))
        self.log_held_out(values, len(images))

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Make the optimizer of the networks, the prior's and the likelihood's parameters among them."""
        return optimizer_with_schedule(self.net, self.optimizer, self.scheduler)


def _summary(terms: Terms) -> dict[str, Tensor]:
    return {"elbo": terms.elbo.mean(), "reconstruction": -terms.log_px.mean(), "kl": terms.kl.mean()}


def _latents_of(
    latent_dim: int | None, prior: Prior | None, flow: PosteriorFlow | None, ladder: Ladder | None
) -> LatentModel:
    """Return the model of latents that the arguments describe."""
    if ladder is None:
        if latent_dim is None or latent_dim < 1:
            raise ValueError(f"latent_dim is the length of a latent, 1 or more; given was {latent_dim}.")
        return GaussianLatents(latent_dim, prior, flow)
    if latent_dim is not None or prior is not None or flow is not None:
        raise ValueError("A ladder has its own lengths and priors: leave latent_dim, prior and posterior_flow out.")
    return ladder


def _checked_sampling_prior(prior: Prior | None, latents: LatentModel) -> Prior | None:
    """Return the prior that samples will be drawn from, which training leaves alone."""
    if prior is None:
        return None
    if prior.latent_dim != latents.latent_dim:
        raise ValueError(
            f"sampling_prior is of latents of length {prior.latent_dim}, the model's have {latents.latent_dim}: set its"
            f" latent_dim to {latents.latent_dim}."
        )
    if isinstance(prior, VampPrior):
        raise ValueError("VampPrior is learned together with the encoder: give it as prior.")
    return prior.requires_grad_(False)
