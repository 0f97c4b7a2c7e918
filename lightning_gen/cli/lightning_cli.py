"""LightningCLI, held to one run folder: it continues the run that is there, and no other."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_gen.checkpoints import INSTANTIATOR, CheckpointError, checked, find_checkpoint
from lightning_gen.cli.arguments import chosen_classes, each_option, nested_nulls
from lightning_gen.cli.failures import UsageError, causes, explain, is_first_process, raised_here, raised_in
from lightning_gen.cli.folder import RunFolder, as_config, differences, dump, epochs_done, flatten, refuse
from lightning_gen.cli.lock import locked
from lightning_gen.cli.own_codec import own_codec, take_codec_weights
from lightning_gen.cli.trainer_parts import SaveRunConfig, check_trainer, trainer_arguments
from lightning_gen.loggers import Logged
from lightning_gen.module import GenerativeModule

SECTIONS = ("model", "data")


@rank_zero_only
def say(text: str) -> None:
    """Tell the person at the terminal, once over all processes."""
    print(text, file=sys.stderr, flush=True)


class GenerativeCLI(LightningCLI):
    """LightningCLI for one command.

    Args:
        command: fit, validate, test or predict.
        args: the arguments after it, short names of configurations replaced by paths.
        config_name: what the run folder is called after.
        implied: where the configuration was taken from that the arguments do not name.
        stack: closes at the end of the command what is opened for it.
    """

    def __init__(
        self,
        command: str,
        args: list[str],
        config_name: str | None = None,
        implied: str | None = None,
        stack: ExitStack | None = None,
    ) -> None:
        self.open = ExitStack() if stack is None else stack
        self.command, self.arguments, self.config_name, self.implied = command, args, config_name, implied
        self.first_step = 0
        super().__init__(
            GenerativeModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"inference_mode": False},
            args=[command, *args],
        )

    # ------------------------------------------------------------------ parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Build the parser of the one command that is run."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Raise errors instead of printing them, and take no beginning of a key for the key."""
        return super().init_parser(**{"exit_on_error": False, "allow_abbrev": False, **kwargs})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; an error carries the keys that there are and the classes chosen, for the search of what was meant."""
        try:
            self.config = parser.parse_args(nested_nulls(args))
        except argparse.ArgumentError as error:
            error.keys = [action.dest for action in self.command_parser._actions]  # type: ignore[attr-defined]
            error.chosen = chosen_classes(self.arguments, *SECTIONS)  # type: ignore[attr-defined]
            raise

    @property
    def command_parser(self) -> LightningArgumentParser:
        """The parser of the command's own arguments."""
        return self._subcommand_parsers[self.command]

    @property
    def settings(self) -> Any:
        """The parsed arguments of the command."""
        return self.config[self.command]

    def _parse_ckpt_path(self) -> None:
        """Decide on the run folder and on the checkpoint, before anything is built."""
        self._settle_folder()
        if self.command != "fit":
            given = self.settings.ckpt_path
            if not given:
                raise UsageError(
                    "--ckpt_path says whose weights to use, a checkpoint or a run folder; without it the model would"
                    f" be an untrained one.{self._is_there()}"
                )
            self._use(find_checkpoint(self.folder.resolve(given)))
        elif not self.settings.trainer.get("fast_dev_run"):
            if is_first_process():
                self.open.enter_context(locked(self.folder.path))
            self._continue()
        elif self.settings.ckpt_path:
            self._continue()

    def _settle_folder(self) -> None:
        trainer = self.settings.trainer
        if trainer.get("default_root_dir") is None:
            model = str(self.settings.model.class_path).rpartition(".")[2]
            trainer["default_root_dir"] = str(Path("runs") / (self.config_name or model))
        self.folder = RunFolder(Path(trainer["default_root_dir"]).expanduser(), tuple(self._other_folders()))

    def _is_there(self) -> str:
        return f" There is --ckpt_path {self.folder.path}." if self.folder.checkpoints() else ""

    def _other_folders(self) -> Iterator[Path]:
        callbacks = self.settings.trainer.get("callbacks") or []
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            folder = (callback.get("init_args") or {}).get("dirpath")
            if folder:
                yield Path(folder)

    # ------------------------------------------------------------------ continuing

    def _continue(self) -> None:
        """Find the checkpoint that this training takes up from, if any, and check that it is the same run."""
        given = self.settings.ckpt_path
        if given:
            path = find_checkpoint(self.folder.resolve(given))
            content, notes = checked(path), list[str]()
        else:
            newest = self.folder.newest()
            if newest is None:
                return
            path, content, notes = newest
        if self.folder.holds(path):
            self._check_same()
        else:
            self._take_model(content, path)
        self.settings["ckpt_path"] = str(path)
        self.first_step = int(content.get("global_step", 0))
        self.checkpoint = content
        for note in notes:
            say(f"{note} It is left alone, and the run continues from an older one.")

    def _check_same(self) -> None:
        if not self.folder.config.is_file():
            return
        old, new = self._read_old(), self._plain(self.settings)
        if self.settings.seed_everything is True:
            # a seed drawn at random was written down by the run
            self.settings["seed_everything"] = new["seed_everything"] = old.get("seed_everything")
        changed = differences(old, new, (*SECTIONS, "seed_everything"))
        if changed:
            refuse(self.folder.path, changed)

    def _read_old(self) -> dict[str, Any]:
        text = self.folder.config.read_text(encoding="utf-8")
        try:
            # arguments that are newer than the run have their defaults there
            return self._plain(self.command_parser.parse_string(text))
        except Exception:
            return dict(yaml.safe_load(text) or {})

    def _plain(self, config: Any) -> dict[str, Any]:
        plain: dict[str, Any] = yaml.safe_load(dump(self.command_parser, config, skip_validation=True))
        return plain

    def _finished(self) -> str | None:
        """Say why the checkpoint's run has nothing left to do, or return None."""
        trainer, content = self.trainer, getattr(self, "checkpoint", None)
        if content is None:
            return None
        epochs = epochs_done(content)
        if 0 <= trainer.max_steps <= self.first_step:
            return f"max_steps={trainer.max_steps}"
        if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
            return f"max_epochs={trainer.max_epochs}"
        for callback in trainer.early_stopping_callbacks:
            state = (content.get("callbacks") or {}).get(callback.state_key)
            if state and state["stopped_epoch"] and state["wait_count"] >= state["patience"]:
                return f"stopped early, {callback.monitor} having been no better for {state['patience']} checks"
        return None

    def _rows(self) -> list[Logged] | None:
        """Return the rows of the table that the checkpoint of this run holds."""
        content, path = getattr(self, "checkpoint", None), self.settings.ckpt_path
        if content is None or not self.folder.holds(Path(path)):
            return None
        rows: list[Logged] | None = (content.get("lightning_gen") or {}).get("rows")
        return rows

    def fit(self, **kwargs: Any) -> None:
        """Train, unless the run is finished."""
        folder = self.folder.path
        if self.settings.ckpt_path:
            why = self._finished()
            if why is not None:
                path = Path(self.settings.ckpt_path)
                say(
                    f"{folder if self.folder.holds(path) else f'The run of {path}'} is finished: {self.first_step}"
                    f" iterations ({why}). Raise the limit"
                    " (--trainer.max_epochs, --trainer.max_steps) to train on, or give another folder"
                    " (--trainer.default_root_dir) for a new run."
                )
                return
            path = Path(self.settings.ckpt_path)
            shown = path.relative_to(folder) if folder in path.parents else path
            say(f"continuing {folder} from iteration {self.first_step} ({shown})")
        self.trainer.fit(**kwargs)
        if not self.settings.trainer.get("fast_dev_run"):
            say(f"run folder: {folder}")

    # ------------------------------------------------------------------ a checkpoint's own model

    def _use(self, path: Path) -> None:
        self.settings["ckpt_path"] = str(path)
        self._take_model(checked(path), path)

    def _take_model(self, content: dict[str, Any], path: Path) -> None:
        """Build the model that the checkpoint describes; say where this overrides what was asked for."""
        model = as_config(content, "hyper_parameters")
        if model is None:
            return
        given = {key: value for key, value in flatten(self._plain(self.settings)).items() if key in self._explicit()}
        class_path, arguments = model["class_path"], model["init_args"]
        described = {"class_path": class_path, "dict_kwargs": arguments}
        try:
            self.config = self.parser.parse_object({self.command: {"model": described}}, self.config)
        except argparse.ArgumentError as error:
            raise CheckpointError(f"The model that {path} describes cannot be built: {error}") from error
        taken = flatten(self._plain(self.settings))
        for key, value in given.items():
            if taken.get(key) != value:
                say(
                    f"lightning-gen {self.command}: warning: {key} is {taken.get(key)!r}, as in the checkpoint {path};"
                    f" the given {value!r} is not used, since the weights belong to the checkpoint's model."
                )

    def _explicit(self) -> set[str]:
        """Keys of the model that a flag or a configuration of the command line gives a value."""
        keys: set[str] = set()
        for arg in self.arguments:
            name = arg.partition("=")[0]
            if name.startswith("--model"):
                name = name[2:].replace(".init_args", "")
                keys |= {name, f"{name}.class_path"}
        for _, value in each_option(self.arguments, "-c", "--config"):
            if self.implied is None:
                content = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
                keys |= set(flatten({"model": content.get("model")}))
        return keys

    # ------------------------------------------------------------------ building

    def instantiate_classes(self) -> None:
        """Build everything; an argument that its class refuses is wrong usage, not a failed run."""
        self.asked = self.config
        kept = own_codec(getattr(self, "checkpoint", None), self.settings)
        if kept is not None:
            arguments = {"class_path": self.settings.model.class_path, "init_args": {"codec": kept}}
            self.config = self.parser.parse_object({self.command: {"model": arguments}}, self.config)
        try:
            super().instantiate_classes()
        except Exception as error:
            # jsonargparse wraps what a constructor raises
            for cause in causes(error):
                if isinstance(cause, MisconfigurationException) or (
                    isinstance(cause, (ValueError, TypeError)) and raised_here(cause)
                ):
                    raise UsageError(str(cause)) from error
                if cause is not error and explain(cause) is not None:
                    raise cause from None
            raise
        if kept is not None:
            take_codec_weights(self.model, self.checkpoint)
        self._describe_data()

    def _describe_data(self) -> None:
        """Let checkpoints name their data, for `evaluate` and for `validate` without a configuration."""
        data, config = self.datamodule, self.settings.get("data")
        if data is None or data.hparams or not config:
            return
        plain = self._plain(self.settings)["data"]
        described = {"_class_path": plain["class_path"], **plain.get("init_args", {}), "_instantiator": INSTANTIATOR}
        data._set_hparams(described)
        data._log_hyperparams = False  # Lightning refuses a `seed` that the model has too

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has."""
        self.config = self.asked  # which the run folder keeps
        given = self._get(self.config_init, "trainer", default={})
        check_trainer(given)
        added = trainer_arguments(given, self.command, self.folder.path, self.first_step, self._rows())
        try:
            return super().instantiate_trainer(**added, **kwargs)
        except (ValueError, TypeError) as error:
            if raised_in(error, "lightning"):
                raise UsageError(f"The trainer cannot be built: {error}") from error
            raise
