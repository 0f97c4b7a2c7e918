"""The model of the pictures: rebuilt from its checkpoint, with the data it is scored against."""

from argparse import Namespace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_gen.callbacks.fidelity import measure
from lightning_gen.checkpoints import find_checkpoint, load_checkpoint, rebuild_data, rebuild_module
from lightning_gen.data import load_data
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.images import to_uint8
from lightning_gen.metrics import Evaluator
from lightning_gen.metrics.extractors import file_sha256
from lightning_gen.metrics.score import Score, report
from lightning_gen.results import environment, run_context

ROWS_WITHOUT_CLASSES = 8
MOST_CLASSES = 10


class Model:
    """A trained `Diffusion`.

    Args:
        asked: of the command: checkpoint, device, seed, weights, n, data, data_root, split, batch_size, name.

    Raises:
        ValueError: where the checkpoint holds another family.
        FileNotFoundError: where there is none.
    """

    def __init__(self, asked: Namespace) -> None:
        self.asked = asked
        self.path = find_checkpoint(asked.checkpoint)
        self.checkpoint = load_checkpoint(self.path)
        module = rebuild_module(self.checkpoint, self.path)
        if not isinstance(module, Diffusion):
            raise ValueError(f"{self.path} holds a {type(module).__name__}; these pictures are of a Diffusion.")
        if module.sample_shape[0] not in (1, 3) or module.conditioner is not None:
            raise ValueError("These pictures are of a model that makes images of 1 or 3 channels from noise alone.")
        self.module = module.to(_device(asked.device))
        self.weights = module.weights_used(asked.weights)
        folder = self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent
        inside = folder.resolve().parts[-2:]
        self.shown = "/".join([*inside, *self.path.resolve().parts[len(folder.resolve().parts) :]])
        self.name: str = asked.name or "_".join(inside)

    @property
    def guidable(self) -> bool:
        """Whether there are classes, and a "none" among them."""
        return self.module.num_classes is not None and self.module.net.conditional

    @property
    def classes(self) -> list[int] | None:
        """The classes that are shown, None for a model without."""
        count = self.module.num_classes
        return None if count is None else list(range(min(count, MOST_CLASSES)))

    def draw(self, n: int, cond: Tensor | None = None, **how: Any) -> Tensor:
        """Draw samples 0 ... n - 1, as bytes `(n, C, H, W)` on the CPU."""
        images = self.module.sample(n, cond=cond, seed=self.asked.seed, weights=self.weights, **how)
        return to_uint8(images).cpu()

    def scores(self, **how: Any) -> list[Score]:
        """Score the samples drawn by these options."""
        return measure(self.module, self.evaluator, self.asked.n, seed=self.asked.seed, weights=self.weights, **how)

    @cached_property
    def evaluator(self) -> Evaluator:
        """What scores, its reference set.

        Raises:
            ValueError: where the model does not make digits.
        """
        if self.module.sample_shape[0] != 1:
            raise ValueError(
                "fd-lenet5 is a score of gray digits, and this model makes images of"
                f" {self.module.sample_shape[0]} channels: make `--what trajectory,guidance --n 0`."
            )
        metrics = ["fd-lenet5", *(["class-accuracy"] if self.module.num_classes is not None else [])]
        evaluator = Evaluator(metrics, device=self.module.device, batch_size=self.asked.batch_size)
        data = self._data()
        data.prepare_data()
        if tuple(data.shape) != self.module.sample_shape:
            raise ValueError(
                f"The reference images have the shape {tuple(data.shape)}, the model's {self.module.sample_shape}:"
                " name other --data."
            )
        evaluator.set_reference(data.split(self.asked.split), name=data.name, split=self.asked.split)
        return evaluator

    def _data(self) -> Any:
        root = {} if self.asked.data_root is None else {"root": self.asked.data_root}
        if self.asked.data is not None:
            return load_data(self.asked.data, **root)
        key = "datamodule_hyper_parameters"
        data: Any = rebuild_data({key: {**(self.checkpoint.get(key) or {}), **root}}, self.path)
        if data is None:
            raise ValueError(f"The checkpoint {self.path} does not name its data: say --data digits, or --data mnist.")
        return data

    def context(self) -> dict[str, Any]:
        """Say what was drawn from, by what and where, for the results."""
        return {
            "checkpoint": self.shown,
            "checkpoint_sha256": file_sha256(self.path),
            **run_context(self.module),
            "solver": type(self.module.solver).__name__,
            "grid": type(self.module.grid).__name__,
            "sampling_steps": self.module.sampling_steps,
            "guidance": self.module.guidance.scale,
            "weights": self.weights,
            "seed": self.asked.seed,
            "environment": environment() | {"threads": torch.get_num_threads()},
        }


def reported(scores: list[Score]) -> dict[str, Any]:
    """Return scores under the names that tell their protocol."""
    return report(scores)


def value_of(scores: dict[str, Any], metric: str) -> float:
    """Return the value of the score of a metric, whatever its protocol."""
    return next(float(score["value"]) for name, score in scores.items() if name.startswith(metric))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no GPU here.")
    return torch.device(name)
