"""The contract that every family keeps: one base class."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.optim import Optimizer

from lightning_gen import fsdp2
from lightning_gen.agreement import mean_of_all
from lightning_gen.checks import check_callbacks, expect_unused_parameters
from lightning_gen.held_out import HeldOut
from lightning_gen.images import from_uint8
from lightning_gen.nonfinite import NonFinitePolicy
from lightning_gen.overhead import NoProfiler, drop_stale_scalars
from lightning_gen.quiet import quiet_lightning
from lightning_gen.run_state import RunState
from lightning_gen.seeding import GeneratorStream, RandomStream, SampleStreams, mix, seed_device
from lightning_gen.sharding import forget_order, put_away, shard_networks, share_statistics
from lightning_gen.stepping import ClipAlgorithm, Stepping

quiet_lightning()
fsdp2.register()


class GenerativeModule(HeldOut, RunState, ABC):
    """A generative model that trains itself, and draws samples.

    What a family has to write: `draw`, `sample_shape`, `training_step`, `configure_optimizers`. In
    `training_step` a loss is handed to `self.steps(loss, ...)`, the one place in which optimizers move.
    An iteration is one counted step, whatever the number of optimizers and batches it takes; `max_steps`,
    checkpoints and loggers count iterations.

    Batches are dicts (`image`, `label`, ...); images come as bytes and are turned into floats in [-1, 1]
    here, on the device.

    Attributes:
        num_classes: number of classes `cond` may name; None for a model without classes.
        accumulate: micro-batches in an optimizer step.
        gradient_clip_val: bound of the gradient; None clips nothing.
        gradient_clip_algorithm: "norm" or "value".
        on_nonfinite: "stop" at a gradient that is NaN or infinite, or "skip" its step and count it.
    """

    num_classes: int | None = None
    accumulate: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"
    on_nonfinite: NonFinitePolicy = "stop"
    _sharded: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the signature of `training_step`, which Lightning reads before every batch."""
        super().__init_subclass__(**kwargs)
        step = cls.__dict__.get("training_step")
        if step is not None and not hasattr(step, "__signature__"):
            step.__signature__ = inspect.signature(step)

    def __setattr__(self, name: str, value: Any) -> None:
        """Take the name of the hook that runs, which Lightning sets forty times an iteration, without a search.

        nn.Module looks through parameters, buffers and submodules first.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ------------------------------------------------------------------ sampling

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch dimension."""

    @abstractmethod
    def draw(self, stream: RandomStream, n: int, cond: Any = None, **how: Any) -> Tensor:
        """Draw `n` samples, all randomness coming from the stream.

        Called without gradients, in the precision of the trainer where there is one.
        """

    def weights_used(self, **how: Any) -> str:
        """Name the weights that `sample(..., **how)` draws from, as results have to state."""
        return "raw"

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        cond: Any = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        offset: int | Sequence[int] = 0,
        **how: Any,
    ) -> Tensor:
        """Draw samples.

        Args:
            n: how many.
            cond: what to draw, in the family's terms: for classes one label or `(n,)` labels.
            seed: makes sample i a function of (seed, offset + i) alone, whatever the batch it is drawn in.
            generator: draw from this generator instead; without either, from the global one.
            offset: with a seed, the index of the first sample, or the index of every one.
            **how: options of the family.

        Returns:
            `(n, ...)` on the module's device; images, audio and video in [-1, 1], text as token ids.

        Raises:
            ValueError: where n is below 1, or both a seed and a generator are given.
        """
        if n < 1:
            raise ValueError(f"The number of samples is 1 or more; given was {n}.")
        if seed is not None and generator is not None:
            raise ValueError("Samples are drawn by a seed or from a generator; both were given.")
        dtype = cast(torch.dtype, self.dtype)
        stream: RandomStream
        if seed is not None:
            stream = SampleStreams(seed, offset, n, self.device, dtype)
        else:
            stream = GeneratorStream(generator, n, self.device, dtype)
        # hooks and callbacks run outside of the autocast that Lightning puts around steps
        trainer = self._trainer
        with trainer.precision_plugin.forward_context() if trainer is not None else nullcontext():
            images = self.draw(stream, n, cond, **how)
        if self.sharded:
            forget_order(self)
        return images

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draw the samples whose indices `(B,)` the batch holds."""
        indices = [int(index) for index in batch]
        return self.sample(len(indices), seed=self.seed, offset=indices)

    # ------------------------------------------------------------------ training

    @property  # type: ignore[misc]
    def automatic_optimization(self) -> bool:
        """Every family steps by hand, through `self.steps`."""
        return False

    @property
    def batches_per_iteration(self) -> int:
        """Batches of data that one counted step takes."""
        return self.accumulate

    @property
    def batch_number(self) -> int:
        """Batches trained on before this one, on this process, resumed runs included."""
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    @property
    def between_iterations(self) -> bool:
        """Whether the batch just trained on was the last one of its iteration: no gradient waits for another."""
        return (self.batch_number + 1) % self.batches_per_iteration == 0

    @property
    def logs_now(self) -> bool:
        """Whether this iteration is logged: a call of `self.log` costs more than a small network."""
        return self.trainer._logger_connector.should_update_logs

    def log_scalars(self, values: dict[str, Tensor | float], bar: Sequence[str] = ()) -> None:
        """Log values of this iteration, if it is one that is logged: on several processes, their means over all.

        Args:
            values: name to scalar; tensors are detached here.
            bar: the names that the progress bar shows.
        """
        if not self.logs_now:
            return
        plain = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        if self.trainer.world_size > 1:
            plain = mean_of_all(plain, self.device)
        shown = {name: plain.pop(name) for name in bar if name in plain}
        self.log_dict(plain)
        if shown:
            self.log_dict(shown, prog_bar=True)

    def check_data(self, datamodule: Any) -> None:
        """Refuse data of another shape, or of more classes, than this model makes.

        Raises:
            MisconfigurationException: says what the model makes and what the data holds.
        """
        shape = getattr(datamodule, "shape", None)
        if shape is not None and tuple(shape) != tuple(self.sample_shape):
            raise MisconfigurationException(
                f"The model makes samples of shape {tuple(self.sample_shape)}, the data has {tuple(shape)}"
                f" (channels, height, width): set image_shape of every network to {list(shape)}, or the data's size"
                " (--data.size) and channels."
            )
        classes = getattr(datamodule, "num_classes", None)
        if self.num_classes is not None and classes is not None and classes > self.num_classes:
            raise MisconfigurationException(
                f"The model has {self.num_classes} classes, the data {classes}: set num_classes of every network to"
                f" {classes}."
            )

    def setup(self, stage: str) -> None:
        """Check the data, and let DDP expect parameters without a gradient: a GAN's backward pass leaves half."""
        if stage != "predict":
            self.check_data(getattr(self.trainer, "datamodule", None))
        if stage == "fit":
            check_callbacks(getattr(self.trainer, "checkpoint_callbacks", []))
            expect_unused_parameters(self.trainer.strategy)

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of every network only: all of them then have to use them together."""
        return self._sharded

    def configure_model(self) -> None:
        """Share the networks out over the processes, where the strategy asks for it; once."""
        if self._trainer is not None and not self._sharded:
            self._sharded = shard_networks(self)

    def check_sharding(self) -> None:
        """Refuse to be sharded, where a family trains in a way that does not permit it.

        Raises:
            MisconfigurationException: says in which way.
        """

    def on_fit_start(self) -> None:
        """Make the steps of this run, and start its clock."""
        super().on_fit_start()
        trainer: Any = self.trainer
        if type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = NoProfiler()
        self.steps = Stepping(
            self, self.accumulate, self.gradient_clip_val, self.gradient_clip_algorithm, self.on_nonfinite
        )

    def on_train_end(self) -> None:
        """Let all processes have the same running statistics."""
        share_statistics(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the iteration, and set the loggers' x axis to iterations."""
        if self.sharded:
            share_statistics(self)
        seed_device(self.device, mix(self.seed, self.global_rank, self.batch_number))
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        drop_stale_scalars(self.trainer)

    def on_after_backward(self) -> None:
        """Have networks in parts again, before an optimizer moves the parts."""
        if self.sharded:
            put_away(self)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip: here, under float16 too, gradients are no longer scaled."""
        self.steps.clip(optimizer)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn bytes into floats in [-1, 1], on the device and in this place only."""
        if isinstance(batch, dict):
            image = batch.get("image")
            if isinstance(image, Tensor) and image.dtype == torch.uint8:
                batch = {**batch, "image": from_uint8(image).to(self.dtype)}
        elif self._trainer is not None and not self.trainer.predicting:
            raise MisconfigurationException(
                f"Batches are dicts such as {{'image': ..., 'label': ...}}; this loader gave a"
                f" {type(batch).__name__}. Wrap the data set, or use a data module of lightning_gen.data."
            )
        return batch


def trying(trainer: Trainer) -> bool:
    """Tell whether this is a `fast_dev_run`: a few batches to see that everything fits, nothing kept."""
    return bool(getattr(trainer, "fast_dev_run", False))
