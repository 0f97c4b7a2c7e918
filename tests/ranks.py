"""Run a function in several processes that train together, as torchrun would start them."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in `world` processes; an error in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, (function, world, port, arguments), nprocs=world)


def _start(rank: int, function: Callable[..., Any], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.set_num_threads(1)
    function(rank, *arguments)


def assert_two_equal_one(folder, name: str, alone: dict[str, torch.Tensor]) -> None:
    """Hold the weights that two processes saved in `0.pt` and `1.pt` against those of one, in float64."""
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True)[name] for rank in (0, 1))
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-12)
