r"""Autoencoders of images whose latents are a grid: VQ-VAE, VQ-VAE-2, VQGAN and KL autoencoders.

Encoder E, bottleneck b and decoder D are trained by

.. math:: \mathcal L = \lVert x - \hat x \rVert / D_x + \lambda_p\,\mathrm{perceptual}(x, \hat x) + \mathcal L_b
    + \lambda\,\lambda_a\,\mathcal L_G(\hat x), \qquad \hat x = D(b(E(x))),

where the distance is the mean absolute or squared difference and :math:`\mathcal L_b` what the bottleneck adds: a
divergence, or the terms of a codebook. Where there is a discriminator it learns to tell :math:`x` from
:math:`\hat x`, by the losses of the GAN family, from an iteration on; :math:`\lambda_a` balances the two gradients in
the decoder's last layer (`adaptive`).

References:
    Neural Discrete Representation Learning (VQ-VAE)
    https://arxiv.org/abs/1711.00937
    Taming Transformers for High-Resolution Image Synthesis (VQGAN; equations 5 to 7)
    https://arxiv.org/abs/2012.09841
    High-Resolution Image Synthesis with Latent Diffusion Models (KL autoencoders)
    https://arxiv.org/abs/2112.10752
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_gen.autoencoder.adaptive import adaptive_weight
from lightning_gen.autoencoder.bottlenecks import Bottleneck
from lightning_gen.autoencoder.coding import ImageCoder
from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.autoencoder.perceptual import PerceptualLoss, PerceptualName, perceptual_loss
from lightning_gen.autoencoder.quantizers.codebook import Codebook
from lightning_gen.ema import Averages
from lightning_gen.errors import choose
from lightning_gen.gan.losses import AdversarialLoss, LossName, adversarial_loss
from lightning_gen.metrics.reconstruction import SMALLEST, psnr, reconstruction_protocol, ssim, ssim_name
from lightning_gen.networks.autoencoding import ImageDecoder, ImageEncoder
from lightning_gen.networks.base import Discriminator, DiscriminatorOutput
from lightning_gen.nonfinite import NonFiniteLoss, NonFinitePolicy
from lightning_gen.optimizers import GANAdam, optimizer_with_schedule
from lightning_gen.seeding import GeneratorStream
from lightning_gen.sharding import COMPILED
from lightning_gen.stepping import ClipAlgorithm, evaluating, frozen, gradients_aside

Distance = Literal["l1", "l2"]


class _Losses(NamedTuple):
    """Of each image: what is minimized without the bottleneck and the discriminator, `(B,)`, and its parts."""

    total: Tensor
    parts: dict[str, Tensor]
    t: None = None


class Autoencoder(ImageCoder):
    """An encoder and a decoder of images with a bottleneck between them.

    Args:
        encoder: images to features.
        decoder: latents to images.
        bottleneck: features to latents: a `GaussianBottleneck` or a quantizer.
        distance: "l1" or "l2", the mean absolute or squared difference of images.
        perceptual: a distance of features, added: "lpips", "laplacian", which needs no weights, "auto" for the first of
            the two that can be, or an object; None for none.
        perceptual_weight: its weight.
        discriminator: tells images from reconstructions; None for none.
        adversarial: the discriminator's loss and the one that deceives it, by name or as an object.
        adversarial_weight: weight of the latter.
        adaptive: whether that weight is multiplied by the ratio of the gradients in the decoder's last layer.
        discriminator_start: iteration from which the discriminator learns and is listened to.
        accumulate: batches in an optimizer step; their gradients are averaged.
        optimizer: makes the optimizer of encoder, bottleneck and decoder.
        optimizer_d: makes the discriminator's.
        scheduler: makes the schedule of the first one's rate, stepped once an iteration.
        scheduler_d: makes the schedule of the discriminator's rate.
        gradient_clip_val: bound of each optimizer's gradient; None for none.
        gradient_clip_algorithm: "norm" or "value".
        ema_half_lives: one average of the network each, in images; the first is what is decoded with.
        ema_warmup: half-lives are shortened to this share of the images seen so far.
        on_nonfinite: "stop" at a loss or gradient that is NaN or infinite, or "skip" the batch and count it.
        compile_network: compile encoder and decoder with torch.compile for training.

    Raises:
        ValueError: where the parts do not fit together.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        decoder: ImageDecoder,
        bottleneck: Bottleneck,
        distance: Distance = "l1",
        perceptual: PerceptualName | PerceptualLoss | None = None,
        perceptual_weight: float = 1.0,
        discriminator: Discriminator | None = None,
        adversarial: LossName | AdversarialLoss = "hinge",
        adversarial_weight: float = 0.5,
        adaptive: bool = True,
        discriminator_start: int = 0,
        accumulate: int = 1,
        optimizer: OptimizerCallable = GANAdam,
        optimizer_d: OptimizerCallable = GANAdam,
        scheduler: LRSchedulerCallable | None = None,
        scheduler_d: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        ema_half_lives: list[int] | None = None,
        ema_warmup: float | None = 0.05,
        on_nonfinite: NonFinitePolicy = "stop",
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = AutoencoderNet(encoder, bottleneck, decoder)
        self.net_ema = Averages(self.net, ema_half_lives or [], ema_warmup)
        self.distance = choose("distance", distance, {"l1": "l1", "l2": "l2"})
        # what reads a file is made where it is used: neither decoding nor a codec asks for it
        self._perceptual_name = perceptual if perceptual == "lpips" or perceptual == "auto" else None
        self.perceptual = None if self._perceptual_name else perceptual_loss(perceptual)
        self.perceptual_weight = perceptual_weight
        self.discriminator, self.discriminator_start = discriminator, discriminator_start
        self.adversarial = adversarial_loss(adversarial)
        self.adversarial_weight, self.adaptive = adversarial_weight, adaptive
        self.accumulate = accumulate
        self.optimizer, self.optimizer_d = optimizer, optimizer_d
        self.scheduler, self.scheduler_d = scheduler, scheduler_d
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.on_nonfinite, self.nonfinite = on_nonfinite, NonFiniteLoss(on_nonfinite)
        self.compile_network = compile_network
        _check_fit(self.net, discriminator, perceptual_weight, adversarial_weight, discriminator_start)

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Make the perceptual loss, refuse half-precision averages of codes, and compile."""
        super().setup(stage)
        if stage != "predict" and self._perceptual_name and self.perceptual is None:
            self.perceptual = perceptual_loss(self._perceptual_name, self.sample_shape)
        if (
            stage == "fit"
            and str(self.trainer.precision) in ("bf16-true", "16-true")
            and any(codebook.averaged or codebook.restart_below for codebook in self._codebooks())
        ):
            raise MisconfigurationException(
                f"Moving averages of codes and of their use are lost in {self.trainer.precision}, where a step is"
                " smaller than a digit: use precision='bf16-mixed' (--trainer.precision bf16-mixed), or codes that"
                " learn by gradients and do not restart (ema_decay: null, restart_below: 0)."
            )
        if stage == "fit" and self.compile_network:
            self.net.encoder.compile()
            self.net.decoder.compile()

    def check_sharding(self) -> None:
        """Refuse to be sharded where the network is compiled, or a gradient is taken in the middle of a step."""
        if self.compile_network:
            raise MisconfigurationException(COMPILED.format("compile_network"))
        if any(codebook.restart_below and not codebook.averaged for codebook in self._codebooks()):
            raise MisconfigurationException(
                "Codes that learn by gradients are not restarted where they are sharded: set restart_below to 0, or let"
                " them be moving averages (ema_decay: 0.99)."
            )
        if self.discriminator is not None and self.adaptive:
            raise MisconfigurationException(
                "The adaptive weight takes a gradient within a forward pass, which sharded networks do not permit: set"
                " adaptive=false (--model.adaptive false), or use strategy='ddp' (--trainer.strategy ddp)."
            )

    def _codebooks(self) -> list[Codebook]:
        return [part for part in self.net.modules() if isinstance(part, Codebook)]

    @property
    def listens(self) -> bool:
        """Whether the discriminator learns and is listened to in this iteration."""
        return self.discriminator is not None and self.iterations >= self.discriminator_start

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one step of the autoencoder and, where there is one, of the discriminator, or parts of both."""
        micro, listens = self.micro, self.listens
        images = batch["image"]
        stream = GeneratorStream(None, len(images), self.device, torch.promote_types(images.dtype, torch.float32))
        # codes move as a batch passes, before its loss is known
        moving = self.net.bottleneck.moving() if self.on_nonfinite == "skip" else []
        before = [tensor.detach().clone() for tensor in moving]
        made, bottled = self.net(images, stream)
        losses = self._losses(images, made)
        if not self.accepts(losses, len(images)):
            put_back(moving, before)
            self.take_step(None)
            if listens:
                self.steps.skip(1, micro=micro, counted=False)
        else:
            loss = losses.total.mean() + bottled.loss
            logs: dict[str, Tensor | float] = {name: part.mean() for name, part in losses.parts.items()}
            logs |= bottled.logs
            if listens:
                deceiving, told = self._deceive(losses.total.mean(), images, made)
                loss, logs = loss + deceiving, logs | told
            # sharded weights cannot be frozen, and the discriminator is not to learn to be deceived
            with gradients_aside(self.discriminator) if self.sharded and listens else nullcontext():
                moved = self.take_step(loss)
            if listens:
                logs |= self._step_discriminator(images, made.detach(), micro)
            self._log(logs | {"loss": loss}, moved)

    def _losses(self, images: Tensor, made: Tensor) -> _Losses:
        """Compare images with their reconstructions, in float32 or wider."""
        difference = (made - images).to(torch.promote_types(made.dtype, torch.float32))
        each = difference.abs() if self.distance == "l1" else difference.square()
        parts = {"reconstruction": each.flatten(1).mean(1)}
        total = parts["reconstruction"]
        if self.perceptual is not None:
            parts[self.perceptual.name] = self.perceptual(images, made)
            total = total + self.perceptual_weight * parts[self.perceptual.name]
        return _Losses(total, parts)

    def _deceive(
        self, reconstruction: Tensor, images: Tensor, made: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the weighted loss of not being taken for an image, and what to log of it."""
        if self.discriminator is None:
            raise RuntimeError("There is no discriminator.")
        with frozen(self.discriminator):
            real = self._judge(images) if self.adversarial.paired else None
            loss = self.adversarial.generator(self._judge(made), real)
        weight: Tensor | float = self.adversarial_weight
        if self.adaptive:
            weight = weight * adaptive_weight(reconstruction, loss, self.net.decoder.last_layer)
        return weight * loss, {"loss_g": loss, "weight_g": weight}

    def _step_discriminator(self, images: Tensor, made: Tensor, micro: int) -> dict[str, Tensor | float]:
        real, fake = self._judge(images), self._judge(made)
        loss = self.adversarial.discriminator(real, fake)
        self.steps(loss, 1, micro=micro, counted=False)
        return {"loss_d": loss, "logit_real": real.mean(), "logit_fake": fake.mean()}

    def _judge(self, images: Tensor) -> Tensor:
        if self.discriminator is None:
            raise RuntimeError("There is no discriminator.")
        judged: Tensor | DiscriminatorOutput = self.discriminator(images, None)
        return judged.logits if isinstance(judged, DiscriminatorOutput) else judged

    def _log(self, logs: dict[str, Tensor | float], moved: bool) -> None:
        if moved and self.logs_now:
            skipped = self.skipped_batches
            self.log_scalars(logs | ({"skipped_batches": float(skipped)} if skipped else {}), bar=("loss",))

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the perceptual loss is, which "auto" does not say."""
        super().on_save_checkpoint(checkpoint)
        if self._perceptual_name and self.perceptual is not None:
            checkpoint["lightning_gen"]["perceptual"] = self.perceptual.name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to train on by another perceptual loss.

        Raises:
            MisconfigurationException: says which.
        """
        super().on_load_checkpoint(checkpoint)
        before = checkpoint.get("lightning_gen", {}).get("perceptual")
        if self._trainer is None or not self.trainer.training or self.perceptual is None or before is None:
            return
        if before != self.perceptual.name:
            raise MisconfigurationException(
                f"The run was trained by the perceptual loss {before}, and here it would go on by"
                f" {self.perceptual.name}: put the same weights where this machine finds them (docs/autoencoders.md),"
                " or begin a new run in another folder (--trainer.default_root_dir)."
            )

    # ------------------------------------------------------------------ validation and optimizers

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log how near held-out images are to their reconstructions, by the weights that are decoded with."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log what validation does, on the test split."""
        self._evaluate(batch, "test")

    def held_out_protocol(self) -> dict[str, str]:
        """Say how reconstructions are compared."""
        difference = {"l1": "absolute", "l2": "squared"}[self.distance]
        how = {"reconstruction": f"mean {difference} difference over an image's dimensions, range 2"}
        how |= reconstruction_protocol(self.sample_shape)
        if self.perceptual is not None:
            how[self.perceptual.name] = f"perceptual distance {self.perceptual.name}, mean over images"
        return {f"test/{name}": text for name, text in how.items()}

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> None:
        images = batch["image"]
        net = self._net(None)
        with evaluating(net):
            made, bottled = net(images)
        losses = self._losses(images, made)
        inside = made.clamp(-1, 1).to(images.dtype)
        values = {"loss": (losses.total.mean() + bottled.loss), **{k: v.mean() for k, v in losses.parts.items()}}
        values |= {"psnr": psnr(images, inside).mean(), **bottled.logs}
        if min(images.shape[2:]) >= SMALLEST:
            values[ssim_name(images.shape[2:])] = ssim(images, inside).mean()
        self.log_held_out({f"{split}/{name}": value for name, value in values.items()}, len(images))

    def configure_optimizers(self) -> Sequence[OptimizerConfig | OptimizerLRSchedulerConfig]:
        """Make the optimizers, the autoencoder's first: it is the one whose steps are the iterations."""
        made = [optimizer_with_schedule(self.net, self.optimizer, self.scheduler)]
        if self.discriminator is not None:
            made.append(optimizer_with_schedule(self.discriminator, self.optimizer_d, self.scheduler_d))
        return made


def put_back(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Give tensors the values they had."""
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def _check_fit(
    net: AutoencoderNet, discriminator: Discriminator | None, perceptual: float, adversarial: float, start: int
) -> None:
    for name, value in (("perceptual_weight", perceptual), ("adversarial_weight", adversarial)):
        if value < 0:
            raise ValueError(f"{name} is 0 or more; given was {value}.")
    if start < 0:
        raise ValueError(f"discriminator_start is an iteration, 0 or more; given was {start}.")
    if discriminator is None:
        return
    if discriminator.num_classes is not None:
        raise ValueError("The discriminator of an Autoencoder is told no classes: give it num_classes=null.")
    if tuple(discriminator.image_shape) != tuple(net.image_shape):
        raise ValueError(
            f"The autoencoder makes images {tuple(net.image_shape)}, the discriminator takes"
            f" {tuple(discriminator.image_shape)}: give both the same image_shape."
        )
