"""Run a function in several processes that train together, as torchrun would start them."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from lightning.fabric.utilities.rank_zero import rank_zero_only

# a process is forked from one that has loaded these, and computed nothing
LOADED = ["gan.module", "diffusion.module", "autoencoder.vae", "data", "callbacks", "networks", "metrics", "optimizers"]
mp.get_context("forkserver").set_forkserver_preload(
    [*(f"lightning_gen.{name}" for name in LOADED), "lightning.pytorch.strategies.ddp", "torch.distributed.fsdp"]
)


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in `world` processes; an error in one is raised here."""
    started = (function, world, free_port(), arguments)
    mp.start_processes(_start, started, nprocs=world, start_method="forkserver")


def free_port() -> int:
    """Return a port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a process of its place."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }


def _start(rank: int, function: Callable[..., Any], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= environment(rank, world, port)
    torch.set_num_threads(1)
    # read from the environment as it was when this was loaded
    rank_zero_only.rank = rank
    function(rank, *arguments)


def assert_all_equal_one(folder, world: int, name: str, alone: dict[str, torch.Tensor]) -> None:
    """Hold the weights that processes saved in `{world}-{rank}.pt` against those of one, in float64."""
    first, *others = (torch.load(folder / f"{world}-{rank}.pt", weights_only=True)[name] for rank in range(world))
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        for other in others:
            assert torch.equal(first[key], other[key]), key
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
