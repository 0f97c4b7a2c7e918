"""What a module knows of its run, and what of it a checkpoint keeps."""

import inspect
import os
import time
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule

from lightning_gen import __version__, epoch_means
from lightning_gen.loggers import recent_rows
from lightning_gen.place import end_epoch_if_done, settle, within_epoch
from lightning_gen.stepping import Stepping


class RunState(LightningModule):
    """The part of a module that counts, and that goes on where a checkpoint was saved.

    Attributes:
        images_seen: samples trained on so far, over all processes.
        steps: the one place in which optimizers move, while it is trained.
    """

    images_seen: int = 0
    steps: Stepping
    _iterations: int = 0
    _seconds: float = 0.0
    _started: float | None = None
    _seed: int | None = None
    _scalers: dict[int, Any] | None = None
    _epoch_means: list[epoch_means.Gathered] | None = None

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
    def iterations(self) -> int:
        """Iterations this module was trained for, in this run and in the one it was loaded from."""
        running = self._trainer.global_step if self._trainer is not None else 0
        return max(running, self._iterations)

    @property
    def training_seconds(self) -> float:
        """Seconds of training and validation so far, in this run and in the ones it continues."""
        return self._seconds + (time.monotonic() - self._started if self._started is not None else 0.0)

    def saw(self, samples: int) -> int:
        """Count the samples of an iteration; return them over all processes."""
        samples *= self.trainer.world_size
        self.images_seen += samples
        return samples

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_fit_end(self) -> None:
        """Stop the clock, and keep the count for a fit by another trainer."""
        self._seconds, self._started = self.training_seconds, None
        self._iterations = self.iterations

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

    def on_train_start(self) -> None:
        """Go on in the epoch that a checkpoint was saved in, with its means."""
        if self._scalers is not None:
            self.steps.load_state_dict(self._scalers)
            self._scalers = None
        end_epoch_if_done(self.trainer)
        if self._epoch_means is not None:
            epoch_means.put_back(self.trainer, self._epoch_means)
            self._epoch_means = None

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


def _is_plain(value: Any) -> bool:
    """Tell whether a value is data that any reader of a checkpoint may load."""
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))
