"""What `sample` and `evaluate` draw from: a model rebuilt from its checkpoint, and its options."""

import hashlib
import importlib
import inspect
import signal
import sys
import threading
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from lightning_gen.checkpoints import find_checkpoint, load_checkpoint, rebuild_module
from lightning_gen.cli.failures import TERMINATED, UsageError, usage
from lightning_gen.errors import did_you_mean
from lightning_gen.images import to_uint8
from lightning_gen.metrics.extractors import file_sha256
from lightning_gen.module import GenerativeModule
from lightning_gen.seeding import SampleStreams


def checkpoint_sha256(path: Path) -> str:
    """Return the SHA-256 of a checkpoint's file, or of the names and sums of a folder's files."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Source:
    """A model as a function from sample indices to images.

    Args:
        options: of the command: ckpt_path, device, seed, weights, imports.
        own: further options of the model's own `sample`.
    """

    def __init__(self, options: Namespace, own: dict[str, Any]) -> None:
        for name in options.imports:
            _import(name)
        self.path = find_checkpoint(options.ckpt_path)
        self.checkpoint = load_checkpoint(self.path)
        self.module = rebuild_module(self.checkpoint, self.path).to(pick_device(options.device))
        self.seed: int = options.seed
        self.how = dict(own)
        if options.weights is not None:
            self.how["weights"] = options.weights
        _check_options(self.module, self.how)
        with usage():
            self.weights = self.module.weights_used(**self.how)
        if len(self.module.sample_shape) != 3 or self.module.sample_shape[0] not in (1, 3):
            raise UsageError(
                f"This model's samples have the shape {self.module.sample_shape}; images (C, H, W) with 1 or 3"
                " channels can be written and scored."
            )

    @property
    def step(self) -> int:
        """Iterations the model was trained for."""
        return int(self.checkpoint.get("global_step", 0))

    def draw(self, indices: list[int], cond: list[int] | None) -> tuple[Tensor, Tensor | None]:
        """Draw the samples of these indices.

        Args:
            indices: of the samples.
            cond: the class of each; None leaves the classes of a model that has some to the model.

        Returns:
            Bytes `(B, C, H, W)` on the CPU, and the classes `(B,)` where they are known.
        """
        with usage():
            return self._draw(indices, cond)

    def _draw(self, indices: list[int], cond: list[int] | None) -> tuple[Tensor, Tensor | None]:
        if cond is not None or self.module.num_classes is None:
            label = None if cond is None else torch.tensor(cond, device=self.module.device)
            images = self.module.sample(len(indices), cond=label, seed=self.seed, offset=indices, **self.how)
            return to_uint8(images).cpu(), None if label is None else label.cpu()
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        stream = _Listening(self.seed, indices, len(indices), self.module.device, dtype)
        stream.classes = self.module.num_classes
        with torch.no_grad():
            images = self.module.draw(stream, len(indices), None, **self.how)
        return to_uint8(images).cpu(), stream.heard

    def tells_classes(self, classes: list[int] | None) -> bool:
        """Whether the class of every sample is known: as asked for, or as the model draws it."""
        return self.module.num_classes is not None and (classes is not None or self.draw([0], None)[1] is not None)


class _Listening(SampleStreams):
    """Streams that remember the classes a model draws for itself: its first draw over so many."""

    classes = 0
    heard: Tensor | None = None

    def categorical(self, probabilities: Tensor) -> Tensor:
        drawn = super().categorical(probabilities)
        if self.heard is None and len(probabilities) == self.classes:
            self.heard = drawn.cpu()
        return drawn


def classes_of(cond: str | None, module: GenerativeModule) -> list[int] | None:
    """Read `--cond`: the classes that samples take in turn, or None.

    Raises:
        UsageError: where it is no class, or one that the model does not have.
    """
    if cond is None:
        return None
    if module.num_classes is None:
        raise UsageError("--cond: this model has no classes.")
    if cond == "each":
        return list(range(module.num_classes))
    try:
        classes = [int(label) for label in cond.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--cond takes a class (3), a list of classes (0,1,2) or `each`; given was '{cond}'."
            f"{did_you_mean(cond, ['each'])}"
        ) from error
    wrong = [label for label in classes if not 0 <= label < module.num_classes]
    if wrong:
        raise UsageError(f"--cond: the classes are 0 to {module.num_classes - 1}; given was {wrong[0]}.")
    return classes


def cond_of(indices: list[int], classes: list[int] | None) -> list[int] | None:
    """Return the class of each sample: sample i takes class i modulo their number."""
    return None if classes is None else [classes[index % len(classes)] for index in indices]


def stop_on_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does, with what is under way written down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"--import {name}: there is no such module in the working folder or installed.") from error
        raise


def pick_device(name: str) -> torch.device:
    """Return the device that `--device` names."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here. Use --device cpu, or leave the option out.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no such device here. Use --device cpu, or leave the option out.")
    return torch.device(name)


def _check_options(module: GenerativeModule, how: dict[str, Any]) -> None:
    parameters = inspect.signature(module.draw).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    allowed = [name for name in parameters if name not in ("stream", "n", "cond")]
    for name in how:
        if name not in allowed:
            has = f"its options are --{', --'.join(allowed)}" if allowed else "it has none of its own"
            raise UsageError(
                f"A {type(module).__name__} has no option --{name} for its samples; {has}.{did_you_mean(name, allowed)}"
            )
