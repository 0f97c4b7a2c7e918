r"""Diffusion and flow matching: one module for all Gaussian paths.

A network learns to tell the image in

.. math:: x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon

and a solver goes from noise to images by what it tells. Each part is its own file and stands for a choice of the
papers: the path (`paths`), what the network is asked for (`parameterizations`), which times are trained on
(`times`) and how much each counts (`weightings`), how images and noise are paired (`couplings`), what is minimized
(`objectives`), how the estimates are sharpened (`guidance`) and how noise becomes images (`solvers`, `grids`).

References:
    Denoising Diffusion Probabilistic Models
    https://arxiv.org/abs/2006.11239
    Elucidating the Design Space of Diffusion-Based Generative Models
    https://arxiv.org/abs/2206.00364
    Flow Matching for Generative Modeling
    https://arxiv.org/abs/2210.02747
"""

from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn

from lightning_gen.checkpoint_files import find_checkpoint, load_checkpoint
from lightning_gen.codec import Codec
from lightning_gen.diffusion import defaults
from lightning_gen.diffusion.augmentation import NonLeakyAugmentation
from lightning_gen.diffusion.conditioners import Conditioner
from lightning_gen.diffusion.conditions import condition_of_batch
from lightning_gen.diffusion.couplings import Coupling, Independent
from lightning_gen.diffusion.denoiser import Denoiser
from lightning_gen.diffusion.drawing import DenoisingSampler
from lightning_gen.diffusion.grids import Grid
from lightning_gen.diffusion.guidance import ClassifierFree, Guidance
from lightning_gen.diffusion.latents import check_cache, check_codec, describe_codec, latents_of, whiten
from lightning_gen.diffusion.objectives import DenoisingMSE, Fit, Losses, MeanFlow, Objective, Setting
from lightning_gen.diffusion.parameterizations import Parameterization
from lightning_gen.diffusion.paths import Path, RectifiedFlow
from lightning_gen.diffusion.solvers import Solver
from lightning_gen.diffusion.thresholding import Threshold
from lightning_gen.diffusion.times import TimeSampler
from lightning_gen.diffusion.weightings import Plain, Weighting
from lightning_gen.ema import Averages
from lightning_gen.labels import ClassPrior
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.nonfinite import NonFiniteLoss, NonFinitePolicy
from lightning_gen.optimizers import DiffusionAdamW, optimizer_with_schedule
from lightning_gen.seeding import GeneratorStream, RandomStream
from lightning_gen.sharding import COMPILED
from lightning_gen.stepping import ClipAlgorithm, evaluating


class Diffusion(DenoisingSampler):
    """A denoising network, trained and sampled from.

    Args:
        net: the network.
        path: how images become noise.
        parameterization: what the network is asked for; None for what the path usually goes with.
        times: which times are trained on; None for what the path usually goes with.
        weighting: how much each noise level counts.
        objective: what is minimized.
        coupling: how images and noise are paired; None for independently.
        guidance: how estimates are sharpened in sampling; None for classifier-free guidance of scale 1, none.
        solver: how sampling takes its steps; None for what the path usually goes with.
        grid: where it takes them; None for what the path usually goes with.
        sampling_steps: how many steps.
        threshold: keeps estimated images in range; None leaves them.
        label_dropout: share of training samples whose condition is left out, where the network has a "none".
        augmentation: of training images, told to the network; None for none.
        conditioner: makes the picture that the network is given beside the noisy one; None for none.
        codec: a trained autoencoder: its latents are learned, and decoded to images; None for images themselves.
        label_prior: classes of samples where none is asked for: as frequent as in the training data, or uniform.
        init_weights: checkpoint of a `Diffusion` with the same network that training starts from.
        accumulate: batches in an optimizer step; their gradients are averaged.
        optimizer: makes the optimizer.
        scheduler: makes the schedule of its rate, stepped once an iteration.
        gradient_clip_val: bound of the gradient; None for none.
        gradient_clip_algorithm: "norm" or "value".
        ema_half_lives: one average of the network each, in images; the first is what `sample` uses.
        ema_warmup: half-lives are shortened to this share of the images seen so far.
        ema_sigma_rels: relative widths of further averages with power-function profiles.
        on_nonfinite: "stop" at a loss or gradient that is NaN or infinite, or "skip" the batch and count it.
        compile_network: compile the network with torch.compile for training.
        likelihood_steps: steps of the likelihood in `test`, which logs bits per dimension; 0 leaves it out.

    Attributes:
        skipped_batches: batches left out for their loss, on this process, and steps left out for their gradient.

    Raises:
        ValueError: where the parts do not fit together.
    """

    def __init__(
        self,
        net: DenoisingNetwork,
        path: Path | None = None,
        parameterization: Parameterization | None = None,
        times: TimeSampler | None = None,
        weighting: Weighting | None = None,
        objective: Objective | None = None,
        coupling: Coupling | None = None,
        guidance: Guidance | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        sampling_steps: int = 50,
        threshold: Threshold | None = None,
        label_dropout: float = 0.1,
        augmentation: NonLeakyAugmentation | None = None,
        conditioner: Conditioner | None = None,
        codec: Codec | None = None,
        label_prior: Literal["data", "uniform"] = "data",
        init_weights: str | None = None,
        accumulate: int = 1,
        optimizer: OptimizerCallable = DiffusionAdamW,
        scheduler: LRSchedulerCallable | None = None,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm = "norm",
        ema_half_lives: list[int] | None = None,
        ema_warmup: float | None = 0.05,
        ema_sigma_rels: list[float] | None = None,
        on_nonfinite: NonFinitePolicy = "stop",
        compile_network: bool = False,
        likelihood_steps: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.codec = codec
        describe_codec(self.hparams, codec)
        self.net = net
        self.path = path if path is not None else RectifiedFlow()
        self.parameterization = parameterization or defaults.parameterization_for(self.path)
        self.times = times if times is not None else defaults.times_for(self.path)
        self.weighting = weighting if weighting is not None else Plain()
        self.objective = objective if objective is not None else DenoisingMSE()
        self.coupling = coupling or Independent()
        self.guidance = guidance or ClassifierFree()
        self.solver = solver or defaults.solver_for(self.path)
        self.grid = grid or defaults.grid_for(self.path)
        self.sampling_steps, self.threshold = sampling_steps, threshold
        self.label_dropout = label_dropout if net.conditional else 0.0
        self.augmentation, self.conditioner = augmentation, conditioner
        self.net_ema = Averages(net, ema_half_lives or [], ema_warmup, sigma_rels=ema_sigma_rels or [])
        self.num_classes = net.num_classes
        self.class_prior = ClassPrior(self.num_classes, label_prior)
        self.init_weights, self.compile_network = init_weights, compile_network
        self.accumulate = accumulate
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.optimizer, self.scheduler = optimizer, scheduler
        self.on_nonfinite, self.nonfinite = on_nonfinite, NonFiniteLoss(on_nonfinite)
        self.likelihood_steps = likelihood_steps
        self._check_fit(label_dropout)

    def _check_fit(self, label_dropout: float) -> None:
        """Refuse parts that do not fit together, before anything is trained."""
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout is a share from 0 to below 1; given was {label_dropout}.")
        self.parameterization.check(self.path)
        self.objective.check(Fit(self._denoiser(self.net), self.times))
        self.guidance.check(self.net)
        self.grid.points(self.sampling_steps, self.path)
        described = 0 if self.augmentation is None else self.augmentation.augment_dim
        if self.net.augment_dim != described:
            raise ValueError(
                f"The network is told {self.net.augment_dim} numbers of the augmentation, which describes itself by"
                f" {described}: set augment_dim of the network to {described}."
            )
        check_codec(self)
        pictured = 0 if self.conditioner is None else self.conditioner.channels(self.net.image_shape)
        if self.net.image_channels != pictured:
            raise ValueError(
                f"The network takes a picture of {self.net.image_channels} channels beside the noisy one, the"
                f" conditioner makes one of {pictured}: set image_channels of the network to {pictured}."
            )

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Learn how frequent the classes are, take the weights to start from, and compile."""
        super().setup(stage)
        if stage == "fit":
            self.class_prior.learn(getattr(self.trainer, "datamodule", None))
            check_cache(self.codec, getattr(self.trainer, "datamodule", None))
            if self.codec is not None and self.trainer.ckpt_path is None:
                whiten(self.codec, getattr(self.trainer, "datamodule", None), self.device)
            if self.init_weights is not None and self.trainer.ckpt_path is None:
                self.take_weights(self.init_weights)
            if self.compile_network:
                self.net.compile()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn bytes into floats and, where there is a codec, images into latents."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch if self.codec is None or not isinstance(batch, dict) else latents_of(batch, self.codec)

    def check_sharding(self) -> None:
        """Refuse to be sharded where the network is compiled, or differentiated forwards."""
        if self.compile_network:
            raise MisconfigurationException(COMPILED.format("compile_network"))
        if isinstance(self.objective, MeanFlow):
            raise MisconfigurationException(
                "MeanFlow differentiates the network forwards, which sharded networks do not permit: use"
                " strategy='ddp' (--trainer.strategy ddp)."
            )

    def take_weights(self, path: str) -> None:
        """Take the network's weights, its first average's where there is one, from the checkpoint of a `Diffusion`.

        Raises:
            ValueError: where the checkpoint holds no such network.
        """
        state = load_checkpoint(find_checkpoint(path))["state_dict"]
        averaged = next((key.split(".network.")[0] for key in state if key.startswith("net_ema.")), None)
        prefix = f"{averaged}.network." if averaged else "net."
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        missing = [key for key in self.net.state_dict() if key not in found]
        if missing:
            raise ValueError(
                f"The checkpoint {path} has no weights of this network: '{missing[0]}' is missing, and"
                f" {len(missing) - 1} more. init_weights takes the checkpoint of a Diffusion with the same network."
            )
        self.net.load_state_dict(found)
        self.net_ema.restart(self.net)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Take one step of the network, or a part of it where gradients are accumulated."""
        x0 = batch["image"]
        stream = GeneratorStream(None, len(x0), self.device, torch.promote_types(x0.dtype, torch.float32))
        losses = self._losses(self.net, batch, stream, training=True)
        accepted = self.accepts(losses, len(x0))
        if accepted and self.times.learns:
            self._learn_times(losses)
        if self.take_step(losses.total.mean() if accepted else None) and self.logs_now:
            self._log(losses)

    def _log(self, losses: Losses) -> None:
        logs: dict[str, Tensor | float] = {"loss": losses.total.mean(), **losses.logs}
        if self.skipped_batches:
            logs["skipped_batches"] = float(self.skipped_batches)
        self.log_scalars(logs, bar=("loss",))

    def _learn_times(self, losses: Losses) -> None:
        """Tell the sampler of times the losses of all processes, in the order that one process would have them in."""
        told = cast(Tensor, self.all_gather(torch.stack([losses.t, losses.error.to(losses.t.dtype)])))
        t, error = told.reshape(-1, 2, len(losses.t)).unbind(1)
        self.times.update(self.path, t.T.flatten(), error.T.flatten())

    def _losses(
        self, network: nn.Module, batch: dict[str, Tensor], stream: RandomStream, training: bool = False
    ) -> Losses:
        x0 = batch["image"]
        cond = condition_of_batch(batch, self.net)
        if training and self.augmentation is not None:
            x0, described = self.augmentation(x0, stream)
            cond = cond._replace(augment=described)
        elif self.net.augment_dim:
            cond = cond._replace(augment=x0.new_zeros(len(x0), self.net.augment_dim))
        if self.conditioner is not None:
            cond = cond._replace(image=self.conditioner(x0, stream))
        if training and self.label_dropout:
            cond = cond.dropped(stream.uniform() < self.label_dropout, self.num_classes)
        setting = Setting(
            self._denoiser(network),
            self.times,
            self.weighting,
            self.coupling,
            stream,
            self.global_rank if self._trainer is not None else 0,
            self.trainer.world_size if self._trainer is not None else 1,
            self.images_seen,
        )
        losses: Losses = self.objective(x0, cond, setting)
        return losses

    def _denoiser(self, network: nn.Module) -> Denoiser:
        return Denoiser(network, self.path, self.parameterization)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ validation, likelihood and optimizer

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss of held-out images, by the weights that samples are drawn by, always on the same noise."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log what validation does, on the test split, and bits per dimension where they are asked for."""
        images = batch["image"]
        indices = self.held_out_indices(len(images))
        self._evaluate(batch, "test")
        if self.likelihood_steps:
            bits = self.bits_per_dim(images, batch.get("label"), offset=indices)
            self.log_held_out({"test/bits_per_dim": bits.mean()}, len(bits))

    def held_out_protocol(self) -> dict[str, str]:
        """Say by how many steps bits per dimension are measured."""
        how = f"probability-flow ODE in {self.likelihood_steps} steps, one draw of uniform noise and of the probe"
        return {"test/bits_per_dim": how}

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> None:
        x0 = batch["image"]
        network = self.net_ema.pick(self.net, None)
        with evaluating(network):
            losses = self._losses(network, batch, self.held_out_stream(len(x0), x0.dtype))
        self.log_held_out({f"{split}/loss": losses.total.mean()}, len(x0))

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Make the optimizer of the network, and of what the weighting learns."""
        trained = nn.ModuleList([self.net, self.weighting])
        return optimizer_with_schedule(trained, self.optimizer, self.scheduler)
