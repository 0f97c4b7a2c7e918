r"""Generative adversarial networks: one module for all that differ in their parts only.

A generator G turns latents :math:`z` into images, a discriminator D turns images into logits. An iteration
takes `n_dis` steps of D, each on another batch of data and on fresh fakes,

.. math:: \min_D\; L_D\big(D(x), D(G(z))\big) + \text{penalties},

and then one step of G on fresh fakes,

.. math:: \min_G\; L_G\big(D(G(z))\big),

with the losses of `gan.losses`, the penalties of `gan.penalties` and, before every image that D sees, the
augmentation of `gan.diffaugment` or `gan.ada`. A conditional GAN hands the class to both networks.

Policies, each tested:
    * A step of D leaves G as it is, running statistics included; a step of G leaves D's weights as they are.
    * D sees real and fake images in two passes (`joint_batch: false`) or in one. With batch norm in D these
      differ; without it they do not.
    * A penalty on the gradient of single samples is refused where D mixes samples by batch norm.

References:
    Generative Adversarial Networks
    https://arxiv.org/abs/1406.2661
    Conditional Generative Adversarial Nets
    https://arxiv.org/abs/1411.1784
    Conditional Image Synthesis with Auxiliary Classifier GANs
    https://arxiv.org/abs/1610.09585
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.ema import Averages
from lightning_gen.gan.augmentation import Augmentation
from lightning_gen.gan.latents import draw_latents
from lightning_gen.gan.losses import AdversarialLoss, LossName, adversarial_loss
from lightning_gen.gan.penalties import Penalty, clip_weights_, refuse_batch_norm
from lightning_gen.labels import ClassPrior, label_of
from lightning_gen.module import GenerativeModule
from lightning_gen.networks.base import Discriminator, DiscriminatorOutput, Generator
from lightning_gen.nonfinite import NonFinitePolicy, checked
from lightning_gen.optimizers import GANAdam, optimizer_with_schedule
from lightning_gen.seeding import GeneratorStream, RandomStream
from lightning_gen.sharding import COMPILED, keep_through_backward
from lightning_gen.stepping import ClipAlgorithm, eager, evaluating, frozen, tracking_layers, untracked_statistics


class GAN(GenerativeModule):
    """A generator and a discriminator, trained against each other.

    Args:
        generator: G.
        discriminator: D, or the critic.
        loss: by name, or an object of one's own.
        penalties: added to D's loss, each at its own interval.
        augmentation: put before every image that D sees, real or fake, in its steps and in G's.
        n_dis: steps of D in an iteration, each on another batch.
        accumulate: batches in an optimizer step; their gradients are averaged.
        joint_batch: let D see real and fake images in one pass.
        weight_clip: bound of D's weights after each of its steps, as WGAN has it; None for none.
        label_prior: classes of generated images in training, and in `sample` without `cond`: as frequent as
            in the training data, or uniform.
        class_weight: weight of the auxiliary classifier's cross-entropy, in D's loss and in G's.
        classify_fakes: let D's classifier learn from fakes too, as ACGAN has it.
        optimizer_g: makes G's optimizer.
        optimizer_d: makes D's.
        scheduler_g: makes the schedule of G's rate, stepped once an iteration.
        scheduler_d: makes the schedule of D's rate, stepped once an iteration.
        gradient_clip_val: bound of each network's gradient; None for none.
        gradient_clip_algorithm: "norm" or "value".
        ema_half_lives: one average of G each, in images; the first is what `sample` draws from.
        ema_warmup: half-lives are shortened to this share of the images seen so far.
        compile_networks: compile both networks with torch.compile. Penalties run uncompiled.
        on_nonfinite: "stop" at a gradient that is NaN or infinite, or "skip" its step and count it.

    Raises:
        ValueError: where the parts do not fit together.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        loss: LossName | AdversarialLoss = "non_saturating",
        penalties: list[Penalty] | None = None,
        augmentation: Augmentation | None = None,
        n_dis: int = 1,
        accumulate: int = 1,
        joint_batch: bool = False,
        weight_clip: float | None = None,
        label_prior: Literal["data", "uniform"] = "data",
        class_weight: float = 1.0,
        classify_fakes: bool = True,
        optimizer_g: OptimizerCallable = GANAdam,
        optimizer_d: OptimizerCallable = GANAdam,
        scheduler_g: LRSchedulerCallable | None = None,
        scheduler_d: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        ema_half_lives: list[int] | None = None,
        ema_warmup: float | None = 0.05,
        compile_networks: bool = False,
        on_nonfinite: NonFinitePolicy = "stop",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.on_nonfinite = checked(on_nonfinite)
        _check_fit(generator, discriminator, n_dis, weight_clip)
        self.generator, self.discriminator = generator, discriminator
        self.generator_ema = Averages(generator, ema_half_lives or [], ema_warmup)
        self.augmentation = augmentation
        self.loss = adversarial_loss(loss)
        self.penalties = list(penalties or [])
        if any(penalty.per_sample for penalty in self.penalties):
            refuse_batch_norm(discriminator)
        self.num_classes = generator.num_classes
        self.class_prior = ClassPrior(self.num_classes, label_prior)
        self.class_weight, self.classify_fakes = class_weight, classify_fakes
        self.n_dis, self.joint_batch, self.weight_clip = n_dis, joint_batch, weight_clip
        self.accumulate = accumulate
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.optimizer_g, self.optimizer_d = optimizer_g, optimizer_d
        self.scheduler_g, self.scheduler_d = scheduler_g, scheduler_d
        self.compile_networks = compile_networks
        # what a real and a fake image are compared or mixed by must be of one class
        self._pairs_labels = self.loss.paired or any(penalty.on == "between" for penalty in self.penalties)
        self._tracking = tracking_layers(generator)
        self._held: list[dict[str, Tensor]] = []

    # ------------------------------------------------------------------ sampling

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape `(C, H, W)` of an image."""
        return tuple(self.generator.image_shape)

    def weights_used(self, weights: str | None = None, **how: Any) -> str:
        """Name the weights of G that `sample(weights=...)` draws from."""
        return self.generator_ema.resolve(weights)

    def draw(  # type: ignore[override]  # the options of `sample` are the family's own
        self,
        stream: RandomStream,
        n: int,
        cond: int | Sequence[int] | Tensor | None = None,
        *,
        weights: str | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Draw images `(n, C, H, W)` in [-1, 1].

        Args:
            stream: where latents and classes come from.
            n: how many.
            cond: the class of all, or of each; drawn from the class prior where it is not given.
            weights: "raw", "ema" or "ema-<half-life>"; the first average where there is one.
            truncation: bound of a latent's entries.
        """
        network = self.generator_ema.pick(self.generator, weights)
        z = draw_latents(stream, self.generator.latent_dim, truncation)
        label = self.class_prior.labels(stream, n, cond)
        with evaluating(network):
            images: Tensor = network(z, label)
        return images.float() if images.dtype in (torch.bfloat16, torch.float16) else images

    # ------------------------------------------------------------------ training

    @property
    def batches_per_iteration(self) -> int:
        """Batches of data in an iteration: of each of D's steps, times those accumulated."""
        return self.n_dis * self.accumulate

    def setup(self, stage: str) -> None:
        """Learn how frequent the classes are, and compile."""
        super().setup(stage)
        if stage == "fit":
            self.class_prior.learn(getattr(self.trainer, "datamodule", None))
            if self.compile_networks:
                self.generator.compile()
                self.discriminator.compile()

    def check_sharding(self) -> None:
        """Refuse to be sharded where the networks are compiled."""
        if self.compile_networks:
            raise MisconfigurationException(COMPILED.format("compile_networks"))

    def configure_model(self) -> None:
        """Share the networks out over the processes, where the strategy asks for it; once."""
        super().configure_model()
        if self.sharded and self.penalties:
            keep_through_backward(self.discriminator)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one step of D, or a part of it where gradients are accumulated; after the last one, a step of G."""
        position = self.batch_number % self.batches_per_iteration
        micro = position % self.accumulate
        if micro == 0:
            self._held.clear()
        self._held.append(batch)
        logs = self._step_discriminator(batch, micro)
        if position == self.batches_per_iteration - 1:
            logs |= self._step_generator()
            self.log_scalars(logs, bar=("loss_d", "loss_g"))

    def _step_discriminator(self, batch: dict[str, Tensor], micro: int) -> dict[str, Tensor | float]:
        real, label = batch["image"], label_of(batch, self.num_classes)
        with torch.no_grad(), untracked_statistics(self._tracking):
            fake, fake_label = self._fakes(batch)
        judged_real, judged_fake = self._judge_both(real, label, fake, fake_label)
        loss = adversarial = self.loss.discriminator(judged_real.logits, judged_fake.logits)
        penalties = self._penalties(real, label, fake, fake_label)
        learned_from = [(judged_real, label), (judged_fake, fake_label)][: 2 if self.classify_fakes else 1]
        for term in [*self._class_terms(*learned_from), *penalties.values()]:
            loss = loss + term
        if self.steps(loss, 1, micro=micro, counted=False) and self.weight_clip is not None:
            clip_weights_(self.discriminator, self.weight_clip)
        if self.augmentation is not None:
            self.augmentation.update(judged_real.logits.detach(), len(real))
        if not self.logs_now:
            return {}
        return {
            "loss_d": adversarial,
            "logit_real": judged_real.logits.mean(),
            "logit_fake": judged_fake.logits.mean(),
            **penalties,
        }

    def _step_generator(self) -> dict[str, Tensor | float]:
        images = 0
        for micro, batch in enumerate(self._held):
            fake, label = self._fakes(batch)
            with frozen(self.discriminator):
                judged = self._judge(fake, label)
                real = self._logits_of_real(batch) if self.loss.paired else None
                loss = adversarial = self.loss.generator(judged.logits, real)
                for term in self._class_terms((judged, label)):
                    loss = loss + term
                moved = self.steps(loss, 0, micro=micro)
            images += len(fake)
        self._held.clear()
        if moved:
            images = self.saw(images)
            self.generator_ema.update(self.generator, images, self.images_seen)
        return {"loss_g": adversarial} | ({"skipped_steps": float(self.skipped_steps)} if self.skipped_steps else {})

    @property
    def skipped_steps(self) -> int:
        """Steps left out for their gradient."""
        return self.steps.gradients.skipped

    def _fakes(self, batch: dict[str, Tensor], stream: RandomStream | None = None) -> tuple[Tensor, Tensor | None]:
        """Generate as many images as the batch has, in the mode that G is in."""
        real = batch["image"]
        if stream is None:
            stream = GeneratorStream(None, len(real), self.device, real.dtype)
        z = draw_latents(stream, self.generator.latent_dim)
        own_label = (
            label_of(batch, self.num_classes) if self._pairs_labels else self.class_prior.labels(stream, len(real))
        )
        return self.generator(z, own_label), own_label

    def _judge(self, images: Tensor, label: Tensor | None) -> DiscriminatorOutput:
        """Augment images and let D judge them."""
        if self.augmentation is not None:
            images = self.augmentation(images)
        output = self.discriminator(images, label)
        return output if isinstance(output, DiscriminatorOutput) else DiscriminatorOutput(output, None)

    def _judge_both(
        self, real: Tensor, label: Tensor | None, fake: Tensor, fake_label: Tensor | None
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        if not self.joint_batch:
            return self._judge(real, label), self._judge(fake, fake_label)
        labels = torch.cat([label, fake_label]) if label is not None and fake_label is not None else None
        logits, classes = self._judge(torch.cat([real, fake.to(real.dtype)]), labels)
        first, second = slice(0, len(real)), slice(len(real), None)
        if classes is None:
            return DiscriminatorOutput(logits[first]), DiscriminatorOutput(logits[second])
        return DiscriminatorOutput(logits[first], classes[first]), DiscriminatorOutput(logits[second], classes[second])

    def _logits_of_real(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self._judge(batch["image"], label_of(batch, self.num_classes)).logits

    def _class_terms(self, *judged: tuple[DiscriminatorOutput, Tensor | None]) -> list[Tensor]:
        """Return the auxiliary classifier's loss on each set of images; none where D has no classifier."""
        return [
            self.class_weight * F.cross_entropy(output.class_logits, label)
            for output, label in judged
            if output.class_logits is not None and label is not None
        ]

    def _penalties(
        self, real: Tensor, label: Tensor | None, fake: Tensor, fake_label: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the penalties that are due in this step of D."""
        step = self.batch_number // self.accumulate
        due = [penalty for penalty in self.penalties if penalty.due(step)]
        with eager() if due and self.compile_networks else nullcontext():
            return {
                type(penalty).__name__.lower(): penalty.scaled(
                    self._critic(fake_label if penalty.on == "fake" else label), real, fake
                )
                for penalty in due
            }

    def _critic(self, label: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda images: self._judge(images, label).logits

    # ------------------------------------------------------------------ validation and optimizers

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log D's loss and its mean logit on held-out images: far below the training ones, D has overfitted.

        The latents of an image are always the same.
        """
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log what validation does, on the test split."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> None:
        images = batch["image"]
        fake, fake_label = self._fakes(batch, self.held_out_stream(len(images), images.dtype))
        real = self._judge(images, label_of(batch, self.num_classes)).logits
        judged = self._judge(fake, fake_label).logits
        values = {"loss_d": self.loss.discriminator(real, judged), "logit_real": real.mean()}
        self.log_held_out({f"{split}/{name}": value for name, value in values.items()}, len(real))

    def configure_optimizers(self) -> list[OptimizerConfig | OptimizerLRSchedulerConfig]:
        """Make the optimizers, G's first: it is the one whose steps are the iterations."""
        return [
            optimizer_with_schedule(self.generator, self.optimizer_g, self.scheduler_g),
            optimizer_with_schedule(self.discriminator, self.optimizer_d, self.scheduler_d),
        ]


def _check_fit(generator: Generator, discriminator: Discriminator, n_dis: int, weight_clip: float | None) -> None:
    if n_dis < 1:
        raise ValueError(f"n_dis is the number of steps of D in an iteration, 1 or more; given was {n_dis}.")
    if weight_clip is not None and not weight_clip > 0:
        raise ValueError(f"weight_clip is the bound of D's weights, above 0, or null; given was {weight_clip}.")
    if tuple(generator.image_shape) != tuple(discriminator.image_shape):
        raise ValueError(
            f"The generator makes images {tuple(generator.image_shape)}, the discriminator takes"
            f" {tuple(discriminator.image_shape)}: give both the same image_shape."
        )
    if generator.num_classes != discriminator.num_classes:
        raise ValueError(
            f"The generator has num_classes={generator.num_classes}, the discriminator"
            f" num_classes={discriminator.num_classes}: give both the same, or null for no classes."
        )
