"""`fit`, `validate`, `test` and `predict`: which configuration they run with, and what they leave unsaid."""

import contextlib
import importlib
import logging
import os
import tempfile
import warnings

import yaml

from lightning_gen.checkpoints import find_checkpoint, peek
from lightning_gen.cli import configs
from lightning_gen.cli.arguments import each_option
from lightning_gen.cli.folder import as_config, folder_of
from lightning_gen.cli.lightning_cli import GenerativeCLI
from lightning_gen.quiet import quiet_lightning

# imported, so that their classes are known by their bare names
FAMILIES = ("gan", "autoencoder", "diffusion", "flow")
MODULES = (*(f"{family}.module" for family in FAMILIES), "autoencoder.vae")
PARTS = (*MODULES, *FAMILIES, "codec", "networks", "data", "callbacks", "optimizers", "background")


def run(command: str, args: list[str]) -> int:
    """Run one of the trainer's commands."""
    for part in PARTS:
        importlib.import_module(f"lightning_gen.{part}")
    _quiet()
    args = ["--help" if arg == "--help_all" else arg for arg in args]
    with contextlib.ExitStack() as stack:
        args, names = _find_configs(args)
        implied = None
        if command != "fit" and not names:
            args, implied = _implied_config(args, stack)
        GenerativeCLI(command, args, names[0] if names else None, implied, stack)
    return 0


def _quiet() -> None:
    """Leave out what Lightning says that is of no use here, and nothing else."""
    quiet_lightning()
    # Lightning calls jsonargparse by names that are going to change; so does what is below
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in (
        r".*The dirpath has changed from.*",
        # a run that takes up mid-epoch is exact: the data module's state says where
        r".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if not any(getattr(one, "__name__", "") == "_no_tips" for one in logger.filters):
        logger.addFilter(_no_tips)


def _no_tips(record: logging.LogRecord) -> bool:
    return "Tip:" not in str(record.msg)


def _find_configs(args: list[str]) -> tuple[list[str], list[str]]:
    """Replace short names by the paths of the packaged configurations; return the names too."""
    args, names = list(args), []
    for place, value in list(each_option(args, "-c", "--config")):
        path, name = configs.find(value)
        args[place] = args[place].replace(value, str(path)) if "=" in args[place] else str(path)
        names.append(name)
    return args, names


def _implied_config(args: list[str], stack: contextlib.ExitStack) -> tuple[list[str], str | None]:
    """Take the configuration of a checkpoint's run folder, else what the checkpoint itself says."""
    given = [value for _, value in each_option(args, "--ckpt_path")]
    if not given or given[-1] in ("last", "best"):
        return args, None
    checkpoint = find_checkpoint(given[-1])
    folder = folder_of(checkpoint)
    if folder is not None:
        return ["-c", str(folder / "config.yaml"), *args], str(folder / "config.yaml")
    content = peek(checkpoint)
    config = {"model": as_config(content, "hyper_parameters")}
    config["data"] = as_config(content, "datamodule_hyper_parameters")
    config = {name: value for name, value in config.items() if value}
    if not config:
        return args, None
    file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8"))  # noqa: SIM115
    yaml.safe_dump(config, file)
    file.flush()
    return ["-c", file.name, *args], str(checkpoint)
