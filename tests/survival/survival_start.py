"""What a process of `runs.py` is forked from, and what it does."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

# loaded once, for all processes
for _name in ("cli.train", "gan.module", "diffusion.module", "data", "callbacks", "metrics", "networks", "optimizers"):
    importlib.import_module(f"lightning_gen.{_name}")
importlib.import_module("torch.utils.tensorboard")
importlib.import_module("lightning.pytorch.strategies.ddp")


def command(args: list[str], folder: str, environment: dict[str, str], rank: int) -> Any:
    """Run one command in a folder; what it prints goes to a file there."""
    os.chdir(folder)
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ |= environment
    out = os.open(Path(folder) / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    # read from the environment as it was when this was loaded: every process would write the curves
    rank_zero_only.rank = rank
    from lightning_gen.cli import main

    code = main(args)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
