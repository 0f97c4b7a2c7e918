"""What each process holds of a network that is trained by several: the table of docs/parallel.md.

    python scripts/parallel_memory.py

Bytes of the tensors themselves, in the third step, before the optimizer moves: a process's peak holds more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from marked_tables import filled, markdown
from torch.distributed.tensor import DTensor

DOCS = Path(__file__).resolve().parents[1] / "docs"
LAYOUTS = (("ddp", 2), ("fsdp2", 2), ("fsdp2", 4))
PARTS = ("weights and averages", "optimizer", "gradients")
STEP = 2


class Held(Callback):
    """Counts the bytes of this process's weights, optimizer and gradients."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Count, in one step."""
        if trainer.global_step != STEP:
            return
        parameters = list(pl_module.parameters())
        states = [value for state in optimizer.state.values() for value in state.values()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.bytes = dict(zip(PARTS, map(bytes_of, (parameters, states, gradients)), strict=True))


def bytes_of(values: Iterable[Any]) -> int:
    """Return the bytes of tensors; of those in parts, of the part that is here."""
    local = (value.to_local() if isinstance(value, DTensor) else value for value in values)
    return sum(value.numel() * value.element_size() for value in local if isinstance(value, torch.Tensor))


def train(strategy: str, out: Path) -> None:
    """Train on this process, one of several, and write what the first one holds."""
    from torch.utils.data import DataLoader

    from lightning_gen import Diffusion
    from lightning_gen.networks import DiT

    net = DiT((4, 32, 32), size="S", num_classes=1000)
    images = [{"image": torch.zeros(4, 32, 32), "label": torch.tensor(0)}] * 64
    held = Held()
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=strategy,
        max_steps=STEP + 1,
        callbacks=[held],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Diffusion(net, ema_half_lives=[1000], label_prior="uniform")
    trainer.fit(module, DataLoader(images, batch_size=1))
    if trainer.is_global_zero:
        parameters = sum(p.numel() for p in module.net.parameters())
        out.write_text(json.dumps({"parameters": parameters, "bytes": held.bytes}))


def main() -> None:
    """Train by every layout, record and write the table; or, as one of the processes, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "parallel_memory.json")
    parser.add_argument("--page", type=Path, default=DOCS / "parallel.md")
    asked = parser.parse_args()
    if asked.strategy is not None:
        train(asked.strategy, asked.out)
        return
    from lightning_gen.results import environment

    rows = {f"{strategy}, {world} processes": measured(strategy, world) for strategy, world in LAYOUTS}
    asked.out.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=2) + "\n")
    asked.page.write_text(filled(asked.page.read_text(encoding="utf-8"), lambda name: table(rows)), encoding="utf-8")
    print(f"{asked.out}\n{asked.page}")


def measured(strategy: str, world: int) -> dict[str, Any]:
    """Train in so many processes; return what the first one held."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "held.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", __file__]
        subprocess.run([*command, "--strategy", strategy, "--out", str(out)], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Write the table."""
    (parameters,) = {row["parameters"] for row in rows.values()}
    written = [
        (name, *(mib(row["bytes"][part]) for part in PARTS), mib(sum(row["bytes"].values())))
        for name, row in rows.items()
    ]
    return markdown((f"{parameters / 1e6:.1f} M parameters", *PARTS, "in all"), written)


def mib(size: int) -> str:
    """Write a number of bytes."""
    return f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    main()
