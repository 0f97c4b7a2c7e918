"""Which classes a conditional generator is asked for: those given, or drawn from a prior."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gen.seeding import RandomStream

NO_LABELS = (
    "This model is conditional and its data has no labels: use data with classes (a folder with one subfolder a"
    " class), or networks with num_classes=null and conditioning=none."
)


def label_of(batch: Mapping[str, Tensor], num_classes: int | None) -> Tensor | None:
    """Return the labels of a batch, or None for a model without classes.

    Raises:
        ValueError: where the model has classes and the batch no labels.
    """
    if num_classes is None:
        return None
    if "label" not in batch:
        raise ValueError(NO_LABELS)
    return batch["label"]


class ClassPrior(nn.Module):
    """The distribution of classes that fakes are made of, kept in the checkpoint.

    Args:
        num_classes: K; None for a model without classes.
        kind: "data" for the frequencies of the training split, "uniform" for equal ones.
    """

    probabilities: Tensor

    def __init__(self, num_classes: int | None, kind: Literal["data", "uniform"] = "data") -> None:
        super().__init__()
        self.num_classes, self.kind = num_classes, kind
        uniform = torch.full((num_classes or 0,), 1.0 / max(num_classes or 0, 1))
        self.register_buffer("probabilities", uniform)

    def learn(self, datamodule: Any) -> None:
        """Take the frequencies of a data module's `class_counts` `(K,)`.

        Raises:
            ValueError: where the counts are needed and there are none, or they are of other classes.
        """
        if self.num_classes is None or self.kind == "uniform":
            return
        counts = getattr(datamodule, "class_counts", None)
        if counts is None:
            if hasattr(datamodule, "class_counts"):
                raise ValueError(NO_LABELS)
            raise ValueError(
                "label_prior='data' draws classes as frequent as in the training data, whose class counts are not"
                " known: use a data module with class_counts, or label_prior='uniform'."
            )
        if len(counts) != self.num_classes:
            raise ValueError(
                f"The model has {self.num_classes} classes, the data {len(counts)}: set num_classes of both networks to"
                f" {len(counts)}."
            )
        self.probabilities.copy_(counts / counts.sum())

    def labels(self, stream: RandomStream, n: int, cond: int | Sequence[int] | Tensor | None = None) -> Tensor | None:
        """Return the classes `(n,)` int64 of n samples, or None for a model without classes.

        Args:
            stream: draws classes where none are given.
            n: number of samples.
            cond: the class of all samples, or of each.

        Raises:
            ValueError: where the classes given are too many, too few or out of range, or the model has none.
        """
        if self.num_classes is None:
            if cond is not None:
                raise ValueError("This model has no classes; cond was given.")
            return None
        if cond is None:
            return stream.categorical(self.probabilities)
        label = torch.as_tensor(cond, device=self.probabilities.device)
        if label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(f"cond is a class or a list of classes, as integers; given was {label.dtype}.")
        if label.ndim == 0:
            label = label.expand(n)
        if label.shape != (n,):
            raise ValueError(f"cond is one class or {n} of them; given was a tensor of shape {tuple(label.shape)}.")
        if n and not 0 <= int(label.min()) <= int(label.max()) < self.num_classes:
            raise ValueError(
                f"The classes are 0 to {self.num_classes - 1}; given were {int(label.min())} to {int(label.max())}."
            )
        return label.long()
