"""What every run has without being asked for it: loggers, progress bar, checkpoints that are written whole."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO

from lightning_gen.callbacks import (
    HeldOutResults,
    IterationBar,
    LastCheckpoint,
    PeakMemory,
    SaveWhenStopped,
    ShareFailure,
)
from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.cli.failures import UsageError
from lightning_gen.cli.folder import dump
from lightning_gen.files import written_whole
from lightning_gen.fsdp2 import FSDP2
from lightning_gen.loggers import Logged, RunCSVLogger


class SaveRunConfig(SaveConfigCallback):
    """Write config.yaml into the run folder when a training run starts."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the whole configuration, so that it starts the same run again."""
        if stage != "fit":
            return
        config = self.config.clone()
        config["ckpt_path"] = None
        with written_whole(Path(trainer.default_root_dir) / "config.yaml") as partial:
            partial.write_text(dump(self.parser, config), encoding="utf-8")


def check_trainer(given: Any) -> None:
    """Refuse what a module that steps by hand has of its own.

    Raises:
        UsageError: says what to give instead.
    """
    for name, plain, own in (
        ("gradient_clip_val", None, "gradient_clip_val"),
        ("accumulate_grad_batches", 1, "accumulate"),
    ):
        value = given.get(name)
        if value not in (None, plain):
            raise UsageError(
                f"The model takes its steps itself: instead of --trainer.{name} give --model.{own} {value}."
            )


def trainer_arguments(
    given: Any, command: str, folder: Path, first_step: int, rows: list[Logged] | None = None
) -> dict[str, Any]:
    """Complete the trainer's callbacks, plugins and loggers.

    Args:
        given: the trainer's arguments as they are configured.
        command: fit, validate, test or predict.
        folder: the run folder.
        first_step: iteration at which training takes up.
        rows: what the checkpoint has of the table's rows of the iteration before.
    """
    callbacks, plugins = _as_list(given.get("callbacks")), _as_list(given.get("plugins"))
    if not _any(plugins, CheckpointIO) and _takes_io(given.get("strategy")):
        plugins.append(AtomicCheckpointIO())
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect() and not _any(plugins, ClusterEnvironment):
        # its way to requeue saves in a signal handler, where another process may be in the middle of a step
        plugins.append(SLURMEnvironment(auto_requeue=False))
    if given.get("fast_dev_run"):
        # a trial leaves nothing behind; Lightning would write last.ckpt, and the real run go on from it
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    callbacks += _missing_callbacks(given, callbacks, command, folder)
    loggers = _loggers(given, command, folder, first_step, rows)
    return {"callbacks": callbacks, "plugins": plugins, "logger": loggers}


def _missing_callbacks(given: Any, callbacks: list[Callback], command: str, folder: Path) -> list[Callback]:
    missing: list[Callback] = [] if _any(callbacks, ShareFailure) else [ShareFailure()]
    if given.get("enable_progress_bar") is not False and not _any(callbacks, ProgressBar):
        missing.append(IterationBar() if command == "fit" else TQDMProgressBar())
    if command == "test" and not _any(callbacks, HeldOutResults):
        missing.append(HeldOutResults())
    if command == "fit" and not _any(callbacks, PeakMemory):
        missing.append(PeakMemory())
    if given.get("enable_checkpointing") is not False and not given.get("fast_dev_run"):
        if command == "fit":
            missing.append(SaveWhenStopped(str(folder / "checkpoints")))
        if not _any(callbacks, Checkpoint):
            missing.append(LastCheckpoint(every_minutes=10))
    return missing


def _loggers(given: Any, command: str, folder: Path, first_step: int, rows: list[Logged] | None) -> list[Logger] | bool:
    logger = given.get("logger")
    if given.get("fast_dev_run"):
        return False
    loggers: list[Logger] = [] if isinstance(logger, bool) else _as_list(logger)
    if command != "fit":
        # scores of a finished run are no rows of its training
        return loggers or False
    if logger in (None, True):
        loggers.append(_tensorboard(folder, first_step, rows))
    if not _any(loggers, RunCSVLogger):
        loggers.insert(0, RunCSVLogger(folder, first_step, rows=rows))
    return loggers


def _tensorboard(folder: Path, first_step: int, rows: list[Logged] | None) -> TensorBoardLogger:
    """Make the logger; what is logged again, or put back from the checkpoint, is not shown twice."""
    purge = first_step if rows is None else first_step - 1
    logger = TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge)
    for logged in rows or []:
        values = {name: value for name, value in logged.items() if name != "step"}
        logger.log_metrics(values, int(logged["step"]))
    return logger


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _any(objects: list[Any], cls: type) -> bool:
    return any(isinstance(one, cls) for one in objects)


def _takes_io(strategy: Any) -> bool:
    """Whether a strategy saves through a CheckpointIO; sharding ones write folders of their own."""
    if isinstance(strategy, FSDP2):
        return True
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name.startswith("fsdp2"):
        return True
    return not any(word in name.lower() for word in ("fsdp", "deepspeed", "modelparallel", "model_parallel"))
