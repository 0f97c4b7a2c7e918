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

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn

from lightning_gen.checkpoint_files import find_checkpoint, load_checkpoint
from lightning_gen.diffusion import defaults
from lightning_gen.diffusion.augmentation import NonLeakyAugmentation
from lightning_gen.diffusion.conditioners import Conditioner
from lightning_gen.diffusion.conditions import condition_of_batch, condition_of_request
from lightning_gen.diffusion.couplings import Coupling, Independent
from lightning_gen.diffusion.denoiser import Denoiser, PointDenoiser
from lightning_gen.diffusion.grids import Grid
from lightning_gen.diffusion.guidance import ClassifierFree, Guidance
from lightning_gen.diffusion.likelihood import bits_per_dim, dequantize, log_likelihood
from lightning_gen.diffusion.objectives import DenoisingMSE, Fit, Losses, Objective, Setting
from lightning_gen.diffusion.parameterizations import Parameterization
from lightning_gen.diffusion.paths import Path, RectifiedFlow
from lightning_gen.diffusion.pictures import mask_of, picture_of
from lightning_gen.diffusion.sampling import Sampler, Start, Watch
from lightning_gen.diffusion.solvers import SOLVERS, Solver
from lightning_gen.diffusion.thresholding import Threshold
from lightning_gen.diffusion.times import TimeSampler
from lightning_gen.diffusion.weightings import Plain, Weighting
from lightning_gen.ema import Averages
from lightning_gen.errors import choose
from lightning_gen.labels import ClassPrior
from lightning_gen.module import GenerativeModule, optimizer_with_schedule
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.nonfinite import NonFiniteLoss, NonFinitePolicy
from lightning_gen.optimizers import DiffusionAdamW
from lightning_gen.seeding import GeneratorStream, RandomStream, mix
from lightning_gen.stepping import ClipAlgorithm, evaluating


class Diffusion(GenerativeModule):
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
        on_nonfinite: "stop" at a loss that is NaN or infinite, or "skip" the batch and count it.
        compile_network: compile the network with torch.compile for training.
        likelihood_steps: steps of the likelihood in `test`, which logs bits per dimension; 0 leaves it out.

    Attributes:
        skipped_batches: batches left out for their loss, on this process.

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
        self.nonfinite = NonFiniteLoss(on_nonfinite)
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
        pictured = 0 if self.conditioner is None else self.conditioner.channels(self.net.image_shape)
        if self.net.image_channels != pictured:
            raise ValueError(
                f"The network takes a picture of {self.net.image_channels} channels beside the noisy one, the"
                f" conditioner makes one of {pictured}: set image_channels of the network to {pictured}."
            )

    # ------------------------------------------------------------------ sampling

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape `(C, H, W)` of an image."""
        return tuple(self.net.image_shape)

    @property
    def skipped_batches(self) -> int:
        """Batches left out for their loss, on this process."""
        return self.nonfinite.skipped

    def weights_used(self, weights: str | None = None, **how: Any) -> str:
        """Name the weights of the network that `sample(weights=...)` draws by."""
        return self.net_ema.resolve(weights)

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
        guide: "str | Diffusion | None" = None,
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
        sampler = self._sampler(network, steps, solver, guidance, guide)
        sampler.watch = watch
        stream.dtype = torch.promote_types(stream.dtype, torch.float32)
        asked = condition_of_request(cond, self.net, self.class_prior, stream, n, self.device)
        if self.conditioner is not None:
            asked, mask = asked._replace(image=self._picture(picture, mask, n)), None
        elif picture is not None:
            raise ValueError("This model takes no picture beside the noise; to begin from one give it as image.")
        start = self._start(image, mask, strength, resample, n)
        with evaluating(network):
            return sampler(stream, self.sample_shape, asked, start).clamp(-1, 1)

    def _sampler(
        self,
        network: nn.Module,
        steps: int | None,
        solver: str | None,
        guidance: float | None,
        guide: "str | Diffusion | None",
    ) -> Sampler:
        guided = self.guidance if guidance is None else self.guidance.with_scale(guidance)
        guided.check(self.net)
        weak = None
        if guide is not None:
            other = _loaded(guide).to(self.device)
            weak = other._estimate(other.net_ema.pick(other.net, None).eval())
        return Sampler(
            self._estimate(network),
            self.path,
            self.solver if solver is None else choose("solver", solver, SOLVERS)(),
            self.grid.points(self.sampling_steps if steps is None else steps, self.path),
            guided,
            weak,
            self.threshold,
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
        start = Start(picture, strength, kept, resample)
        start.check((n, *self.sample_shape))
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

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        """Learn how frequent the classes are, take the weights to start from, and compile."""
        super().setup(stage)
        if stage == "fit":
            self.class_prior.learn(getattr(self.trainer, "datamodule", None))
            if self.init_weights is not None and self.trainer.ckpt_path is None:
                self.take_weights(self.init_weights)
            if self.compile_network:
                self.net.compile()

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
        micro = self.batch_number % self.accumulate
        x0 = batch["image"]
        stream = GeneratorStream(None, len(x0), self.device, x0.dtype)
        losses = self._losses(self.net, batch, stream, training=True)
        loss = losses.total.mean()
        if not self.nonfinite.accepts(losses, self.iterations, self.trainer.world_size):
            self.steps.skip(micro=micro)
            return
        if self.times.learns:
            self._learn_times(losses)
        if self.steps(loss, micro=micro):
            images = self.saw(len(x0) * self.accumulate)
            self.net_ema.update(self.net, images, self.images_seen)
        if micro == self.accumulate - 1 and self.logs_now:
            logs: dict[str, Tensor | float] = {"loss": loss, **losses.logs}
            if self.nonfinite.skipped:
                logs["skipped_batches"] = float(self.nonfinite.skipped)
            self.log_scalars(logs, bar=("loss",))

    def _learn_times(self, losses: Losses) -> None:
        """Tell the sampler of times the losses of all processes."""
        told = cast(Tensor, self.all_gather(torch.stack([losses.t, losses.error.to(losses.t.dtype)])))
        t, error = told.reshape(-1, 2, len(losses.t)).unbind(1)
        self.times.update(self.path, t.flatten(), error.flatten())

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
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log what validation does, on the test split, and bits per dimension where they are asked for."""
        self._evaluate(batch, batch_idx, "test")
        if self.likelihood_steps:
            bits = self.bits_per_dim(batch["image"], batch.get("label"), seed=mix(batch_idx, self.global_rank))
            self.log("test/bits_per_dim", bits.mean(), batch_size=len(bits), sync_dist=True)

    def _evaluate(self, batch: dict[str, Tensor], batch_idx: int, split: str) -> None:
        x0 = batch["image"]
        generator = torch.Generator().manual_seed(mix(batch_idx, self.global_rank))
        network = self.net_ema.pick(self.net, None)
        with evaluating(network):
            losses = self._losses(network, batch, GeneratorStream(generator, len(x0), self.device, x0.dtype))
        self.log(f"{split}/loss", losses.total.mean(), batch_size=len(x0), sync_dist=True)

    def bits_per_dim(
        self,
        images: Tensor,
        cond: int | Sequence[int] | Tensor | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        weights: str | None = None,
    ) -> Tensor:
        """Return the bits per dimension of images whose values are bytes, `(B,)`: an upper bound by dequantisation.

        Args:
            images: `(B, C, H, W)`, bytes / 127.5 - 1.
            cond: their classes.
            seed: of the dequantisation and of the trace's probes.
            steps: of the probability-flow ODE; None for `likelihood_steps`, else 100.
            weights: as `sample` takes it.
        """
        network = self.net_ema.pick(self.net, weights)
        generator = torch.Generator().manual_seed(seed)
        stream = GeneratorStream(generator, len(images), self.device, images.dtype)
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

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Make the optimizer of the network, and of what the weighting learns."""
        trained = nn.ModuleList([self.net, self.weighting])
        return optimizer_with_schedule(trained, self.optimizer, self.scheduler)


def _loaded(guide: "str | Diffusion") -> Diffusion:
    if isinstance(guide, Diffusion):
        return guide
    from lightning_gen.checkpoints import load_module

    other = load_module(guide)
    if not isinstance(other, Diffusion):
        raise ValueError(f"The guide is a Diffusion; {guide} holds a {type(other).__name__}.")
    return other
