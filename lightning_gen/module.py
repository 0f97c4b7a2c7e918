"""The contract that every family keeps: one base class."""

import inspect
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.optim import Optimizer

from lightning_gen import __version__, epoch_means, fsdp2
from lightning_gen.agreement import mean_of_all
from lightning_gen.checks import check_callbacks, expect_unused_parameters
from lightning_gen.images import from_uint8
from lightning_gen.loggers import recent_rows
from lightning_gen.nonfinite import NonFinitePolicy
from lightning_gen.overhead import NoProfiler, drop_stale_scalars
from lightning_gen.place import end_epoch_if_done, settle, within_epoch
from lightning_gen.quiet import quiet_lightning
from lightning_gen.seeding import GeneratorStream, RandomStream, SampleStreams, mix, seed_device
from lightning_gen.sharding import forget_order, put_away, shard_networks, share_statistics
from lightning_gen.stepping import ClipAlgorithm, Stepping

quiet_lightning()
fsdp2.register()


class GenerativeModule(LightningModule, ABC):
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
        images_seen: samples trained on so far, over all processes.
        held_out_images: images that the last validation or test has logged means of, as many as its processes had each.
    """

    num_classes: int | None = None
    accumulate: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: ClipAlgorithm = "norm"
    on_nonfinite: NonFinitePolicy = "stop"
    images_seen: int = 0
    held_out_images: int = 0
    steps: Stepping
    _held_out: int = 0
    _iterations: int = 0
    _seconds: float = 0.0
    _started: float | None = None
    _seed: int | None = None
    _scalers: dict[int, Any] | None = None
    _epoch_means: list[epoch_means.Gathered] | None = None
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
    def seed(self) -> int:
        """The seed of this run: of `seed_everything`, else of the checkpoint, else torch's own."""
        given = os.environ.get("PL_GLOBAL_SEED")
        if given is not None:
            return int(given)
        if self._seed is None:
            self._seed = torch.initial_seed() % 2**63
        return self._seed

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
    def iterations(self) -> int:
        """Iterations this module was trained for, in this run and in the one it was loaded from."""
        running = self._trainer.global_step if self._trainer is not None else 0
        return max(running, self._iterations)

    @property
    def training_seconds(self) -> float:
        """Seconds of training and validation so far, in this run and in the ones it continues."""
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)

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

    def saw(self, samples: int) -> int:
        """Count the samples of an iteration; return them over all processes."""
        samples *= self.trainer.world_size
        self.images_seen += samples
        return samples

    def held_out_stream(self, n: int, dtype: torch.dtype) -> SampleStreams:
        """Return what the next images of a validation or a test draw from: always the same for the same image.

        On several processes, each takes every so many-th image, as the data modules here share them out.

        Args:
            n: images of the batch on this process; they are counted.
            dtype: of the numbers.
        """
        indices = self.held_out_indices(n)
        self._held_out += n
        return SampleStreams(0, indices, n, self.device, dtype)

    def held_out_indices(self, n: int) -> list[int]:
        """Return the numbers of the next `n` images of this process, in the data of a validation or a test."""
        world = self.trainer.world_size
        return [self.global_rank + world * index for index in range(self._held_out, self._held_out + n)]

    def log_held_out(self, values: dict[str, Tensor], n: int) -> None:
        """Log means over the `n` images of a batch of a validation or a test, for the mean over all of them."""
        self.held_out_images += n * self.trainer.world_size
        # Lightning takes the mean of the processes' numbers of images as a whole number, so it is made one
        self.log_dict(values, batch_size=n * self.trainer.world_size, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Begin to count the held-out images; all processes look at them by the same running statistics."""
        self._held_out = self.held_out_images = 0
        share_statistics(self)

    def on_test_epoch_start(self) -> None:
        """Begin to count the held-out images; all processes look at them by the same running statistics."""
        self._held_out = self.held_out_images = 0
        share_statistics(self)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed what is drawn besides, such as an augmentation: always the same for the same batch."""
        seed_device(self.device, mix(self.global_rank, batch_idx))

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed what is drawn besides, such as an augmentation: always the same for the same batch."""
        seed_device(self.device, mix(self.global_rank, batch_idx))

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
        self._started = time.monotonic()
        trainer: Any = self.trainer
        if type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = NoProfiler()
        self.steps = Stepping(
            self, self.accumulate, self.gradient_clip_val, self.gradient_clip_algorithm, self.on_nonfinite
        )

    def on_train_start(self) -> None:
        """Go on in the epoch that a checkpoint was saved in, with its means."""
        if self._scalers is not None:
            self.steps.load_state_dict(self._scalers)
            self._scalers = None
        end_epoch_if_done(self.trainer)
        if self._epoch_means is not None:
            epoch_means.put_back(self.trainer, self._epoch_means)
            self._epoch_means = None

    def on_train_end(self) -> None:
        """Let all processes have the same running statistics."""
        share_statistics(self)

    def on_fit_end(self) -> None:
        """Stop the clock."""
        self._seconds, self._started = self.training_seconds, None

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

    # ------------------------------------------------------------------ checkpoints

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Keep the constructor's arguments that are plain data; from a configuration, all are, networks too.

        Objects built in Python are left out: a checkpoint that held them would load by unpickling alone.
        """
        if kwargs.get("frame") is None:
            caller = inspect.currentframe()
            kwargs["frame"] = caller.f_back if caller is not None else None
        super().save_hyperparameters(*args, **kwargs)
        for kept in cast(list[dict[str, Any]], [self.hparams, self._hparams_initial]):
            for key in [key for key, value in kept.items() if not _is_plain(value)]:
                kept.pop(key)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run has to know."""
        steps = getattr(self, "steps", None)
        if steps is not None:
            steps.gradients.settle()
        checkpoint["lightning_gen"] = {
            "version": __version__,
            "seed": self.seed,
            "images_seen": self.images_seen,
            "training_seconds": self.training_seconds,
            "scalers": steps.state_dict() if steps is not None else {},
        }
        if self._trainer is not None:
            settle(checkpoint, self.trainer)
            means = epoch_means.gathered(self.trainer) if within_epoch(self.trainer) else None
            checkpoint["lightning_gen"] |= {"epoch_means": means, "rows": recent_rows(self.trainer)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what `on_save_checkpoint` kept."""
        kept = checkpoint.get("lightning_gen", {})
        self._iterations = checkpoint.get("global_step", 0)
        self._seed = kept.get("seed", self._seed)
        self.images_seen = kept.get("images_seen", 0)
        self._seconds = kept.get("training_seconds", 0.0)
        self._scalers = kept.get("scalers")
        self._epoch_means = kept.get("epoch_means")


def trying(trainer: Trainer) -> bool:
    """Tell whether this is a `fast_dev_run`: a few batches to see that everything fits, nothing kept."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _is_plain(value: Any) -> bool:
    """Tell whether a value is data that any reader of a checkpoint may load."""
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))
