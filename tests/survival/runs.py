"""Runs of the real command line in processes that can be killed: started quickly, looked at afterwards."""

import csv
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from ranks import environment, free_port

from lightning_gen.checkpoints import load_checkpoint

# a process is forked from one that has loaded everything and computed nothing
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["survival_start"])
PATIENCE = 120


def begin(folder: Path, config: dict[str, Any], *args: str, world: int = 1, strategy: str = "ddp") -> list[Any]:
    """Start `lightning-gen fit` in a folder, in as many processes as wanted; return them by rank."""
    import survival_start

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    args = ("fit", "-c", "config.yaml", "--trainer.default_root_dir=run", *args)
    if world > 1:
        args += (f"--trainer.devices={world}", f"--trainer.strategy={strategy}")
    processes = []
    for rank in range(world):
        env = environment(rank, world, port) if world > 1 else {}
        process = CONTEXT.Process(target=survival_start.command, args=(list(args), str(folder), env, rank))
        process.start()
        processes.append(process)
    return processes


def end(processes: list[Any], patience: float = PATIENCE) -> list[int]:
    """Wait for processes; return their exit codes, negative ones for signals. What hangs is killed, and fails."""
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not hanging, f"processes {hanging} did not end"
    return [process.exitcode for process in processes]


def run(
    folder: Path,
    config: dict[str, Any],
    *args: str,
    world: int = 1,
    strategy: str = "ddp",
    patience: float = PATIENCE,
) -> list[int]:
    """Start, and wait."""
    return end(begin(folder, config, *args, world=world, strategy=strategy), patience)


def killed_by(codes: list[int]) -> bool:
    """Whether all of them were killed, or lost the one that was."""
    return -signal.SIGKILL in codes and 0 not in codes


def said(folder: Path, rank: int = 0) -> str:
    """Return what a process printed, over all runs in the folder."""
    return (folder / f"said-{rank}.txt").read_text()


def kept(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """Return what a run ended with, without what no two runs share: times, paths, and who reads the data."""
    content = load_checkpoint(folder / "run" / "checkpoints" / name)
    content["lightning_gen"].pop("training_seconds")
    content.pop("callbacks", None)
    content.pop("loops")
    content["datamodule_hyper_parameters"].pop("num_workers")
    return content


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of the table."""
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points of the curves as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "run" / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)]
        for tag in sorted(accumulator.Tags()["scalars"])
    }


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Name what differs, in any bit, between two nested states."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        return [] if alike else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{path}.{key}" for key in a.keys() ^ b.keys()]
        return missing + [name for key in a.keys() & b.keys() for name in differing(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [name for i, (x, y) in enumerate(zip(a, b, strict=True)) for name in differing(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a!r} and {b!r}"]


def assert_same(straight: Path, survived: Path) -> None:
    """Hold the end of a run that was killed against that of one that was not: state, table and curves."""
    assert differing(kept(straight), kept(survived)) == []
    assert rows(straight) == rows(survived)
    assert events(straight) == events(survived)


def path_for_children() -> None:
    """Let processes find the modules of this folder."""
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.insert(0, here)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
