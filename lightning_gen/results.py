"""Results on disk: scores with their protocol, and what produced them."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch

from lightning_gen import __version__
from lightning_gen.files import written_whole
from lightning_gen.metrics.score import Score, report
from lightning_gen.module import GenerativeModule


def environment() -> dict[str, Any]:
    """Return versions, hardware and date, as every recorded result states them."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {
        "lightning_gen": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "device": device,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def run_context(module: GenerativeModule) -> dict[str, Any]:
    """Return what was trained, and how far."""
    return {
        "model": type(module).__name__,
        "iterations": module.iterations,
        "images_seen": module.images_seen,
        "training_minutes": round(module.training_seconds / 60, 2),
    }


def write_results(path: Path, scores: Iterable[Score], context: dict[str, Any]) -> None:
    """Write scores, protocol, environment and context as JSON, whole or not at all."""
    content = {"scores": report(scores), **context, "environment": environment()}
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def _commit() -> str | None:
    """Commit of the source tree this package is run from, if it is run from one; "+" where the package differs."""
    folder = Path(__file__).parent
    try:
        found = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return found + "+" * bool(changed) if (folder.parent / ".git").exists() else None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
