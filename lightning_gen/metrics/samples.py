"""One pass over the samples: what every metric needs of them, summed or kept batch by batch."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lightning_gen.metrics.distributed import gather_rows, own_batches, total, world
from lightning_gen.metrics.extractors import FeatureExtractor
from lightning_gen.metrics.lenet import correct
from lightning_gen.metrics.protocol import METRICS
from lightning_gen.metrics.reference import Progress, check_count, full_precision
from lightning_gen.metrics.statistics import FeatureStatistics

SampleSource = Callable[[int, int], Tensor]
"""(first index, n) -> images (n, C, H, W) uint8, a function of the indices alone."""

Labels = Tensor | Callable[[int, int], Tensor]
"""Intended class of every sample: (N,) int64, or a function (first index, n) -> (n,)."""


class Setup(Protocol):
    """What the pass needs to know of the evaluator that asks for it."""

    metrics: list[str]
    extractors: dict[str, FeatureExtractor]
    device: torch.device
    batch_size: int


class SampleSums:
    """What one pass over the samples leaves: sums for Frechet distances, rows for KID and IS, hits for accuracy."""

    def __init__(self, evaluator: "Setup", num_samples: int, labels: Labels | None) -> None:
        self.evaluator, self.num_samples, self.labels = evaluator, num_samples, labels
        frechet = {METRICS[metric] for metric in evaluator.metrics if metric in ("fid", "fd-lenet5")}
        self.statistics = {
            kind: FeatureStatistics(evaluator.extractors[kind].dim, evaluator.device) for kind in sorted(frechet)
        }
        wanted = {"kid": "features", "is": "logits"}
        self.rows: dict[str, list[Tensor]] = {wanted[m]: [] for m in evaluator.metrics if m in wanted}
        self.gathered: dict[str, Tensor] = {}
        self.seen, self.correct = 0, 0

    def run(self, source: SampleSource, progress: Progress | None, together: bool = False) -> None:
        """Sample and extract this rank's batches; `together` asks the source as often as every other rank does."""
        batches = own_batches(self.num_samples, self.evaluator.batch_size)
        mine = sum(n for _, n in batches)
        for first, n in batches:
            images = source(first, n)
            if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != n:
                raise ValueError(
                    f"The samples {first} to {first + n - 1} must be uint8 ({n}, C, H, W), got {images.dtype} "
                    f"{tuple(images.shape)}. Convert samples in [-1, 1] with lightning_gen.images.to_uint8."
                )
            with full_precision(self.evaluator.device):
                for kind in self.evaluator.extractors:
                    self._extract(kind, images.to(self.evaluator.device), first)
            self.seen += n
            if progress is not None:
                progress("samples", self.seen, mine)
        size = self.evaluator.batch_size
        if together and len(batches) * world()[1] < -(-self.num_samples // size):
            last = (self.num_samples - 1) // size * size
            source(last, self.num_samples - last)

    def _extract(self, kind: str, images: Tensor, first: int) -> None:
        features, logits = self.evaluator.extractors[kind](images)
        if kind in self.statistics:
            self.statistics[kind].update(features)
        if kind == "inception":
            for key, rows in self.rows.items():
                value = features if key == "features" else logits
                if value is None:
                    raise ValueError(f"'is' needs class scores, and {self.evaluator.extractors[kind].name} has none.")
                rows.append(value.float().cpu())
        if kind == "lenet5" and "class-accuracy" in self.evaluator.metrics:
            self.correct += correct(logits, self._labels(first, len(images)))

    def _labels(self, first: int, n: int) -> Tensor:
        if isinstance(self.labels, Tensor):
            return self.labels[first : first + n]
        labels = self.labels(first, n) if self.labels is not None else None
        if labels is None or labels.shape != (n,):
            raise ValueError(f"Expected labels ({n},) for the samples from {first}, got {labels}.")
        return labels

    def reduce(self) -> None:
        """Bring together what the ranks hold."""
        for statistics in self.statistics.values():
            statistics.all_reduce()
            check_count(statistics.n, self.num_samples)
        self.seen, self.correct = total(self.seen, self.correct)
        check_count(self.seen, self.num_samples)
        for key, rows in self.rows.items():
            gathered = gather_rows(rows, self.num_samples, self.evaluator.batch_size)
            if gathered is not None:
                self.gathered[key] = gathered
