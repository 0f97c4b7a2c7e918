"""Scores during training, by the same engine and protocol as the `evaluate` command."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_gen.images import to_uint8
from lightning_gen.metrics import Evaluator, Score
from lightning_gen.module import GenerativeModule, trying
from lightning_gen.results import run_context, write_results

Split = Literal["train", "val", "test"]


class Fidelity(Callback):
    """Measure samples after every validation, and in `Trainer.test`.

    A score is logged under a name that tells its protocol, such as `fid_10k_val`: checkpoints and early
    stopping monitor that name. After `test` the scores go to `results.json` in the run folder. The feature
    networks are no part of the module, so that no checkpoint holds them.

    Args:
        metrics: any of "fid", "kid", "is" (Inception), "fd-lenet5", "class-accuracy" (digits).
        n: number of samples.
        test_n: number of samples in `test`; None for n.
        split: reference of the scores during training.
        test_split: reference of the scores in `test`.
        seed: of the samples.
        batch_size: images drawn and measured at once.
        weights: which weights draw them, as `sample` takes it; None for the module's own choice.
        weights_path: the Inception network's weights, a file or a folder; None searches, then downloads.
    """

    def __init__(
        self,
        metrics: list[str],
        n: int = 10_000,
        split: Split = "val",
        test_split: Split = "test",
        seed: int = 0,
        batch_size: int = 64,
        weights: str | None = None,
        weights_path: str | None = None,
        test_n: int | None = None,
    ) -> None:
        self.metrics, self.n, self.seed, self.batch_size = metrics, n, seed, batch_size
        self.test_n = n if test_n is None else test_n
        self.split, self.test_split = split, test_split
        self.weights, self.weights_path = weights, weights_path
        self._evaluators: dict[str, Evaluator] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the feature networks and the reference before training, so that what is missing is missed early."""
        if stage in ("fit", "validate", "test") and not trying(trainer):
            self._evaluator(trainer, self.test_split if stage == "test" else self.split)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, and log."""
        if not trainer.sanity_checking and not trying(trainer):
            self._measure(trainer, pl_module, self.split, self.n)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log, and write `results.json`."""
        if trying(trainer):
            return
        scores = self._measure(trainer, pl_module, self.test_split, self.test_n)
        # log_dir is agreed on by all processes, so all have to ask
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero and isinstance(pl_module, GenerativeModule):
            write_results(folder / "results.json", scores, run_context(pl_module))

    def _evaluator(self, trainer: Trainer, split: Split) -> Evaluator:
        if split not in self._evaluators:
            data: Any = getattr(trainer, "datamodule", None)
            evaluator = Evaluator(
                self.metrics,
                weights_path=self.weights_path,
                device=trainer.strategy.root_device,
                batch_size=self.batch_size,
            )
            if evaluator.needs_reference:
                if not hasattr(data, "split"):
                    raise MisconfigurationException(
                        f"{', '.join(self.metrics)} compare with a split of the data, so Fidelity needs a data module"
                        " of lightning_gen.data, or one with `name` and `split(name)`."
                    )
                evaluator.set_reference(data.split(split), name=data.name, split=split)
            self._evaluators[split] = evaluator
        return self._evaluators[split]

    def _measure(self, trainer: Trainer, pl_module: LightningModule, split: Split, n: int) -> list[Score]:
        if not isinstance(pl_module, GenerativeModule):
            raise MisconfigurationException(f"Fidelity measures a GenerativeModule, not a {type(pl_module).__name__}.")
        scores = measure(
            pl_module,
            self._evaluator(trainer, split),
            n,
            seed=self.seed,
            weights=self.weights,
        )
        return logged(scores, pl_module)


def logged(scores: list[Score], module: LightningModule) -> list[Score]:
    """Log scores, and return them."""
    for score in scores:
        # every rank has the same value; Lightning shall not average it
        module.log(score.name, torch.tensor(score.value), sync_dist=False, prog_bar=True)
    return scores


def measure(
    module: GenerativeModule,
    evaluator: Evaluator,
    n: int,
    *,
    seed: int = 0,
    weights: str | None = None,
    **how: Any,
) -> list[Score]:
    """Measure a module's samples.

    A model with classes draws them from its own prior, unless "class-accuracy" is asked for: then sample i
    is of class i modulo their number.

    Args:
        module: what draws.
        evaluator: what measures, its reference set.
        n: number of samples.
        seed: of the samples.
        weights: which weights draw, as `sample` takes it.
        **how: further options of `sample`.
    """
    options = how if weights is None else how | {"weights": weights}
    classes = module.num_classes if "class-accuracy" in evaluator.metrics else None
    if "class-accuracy" in evaluator.metrics and classes is None:
        raise ValueError(
            "class-accuracy asks whether samples are of the class they were asked for: this model has none."
        )

    def labels(first: int, count: int) -> Tensor:
        return torch.arange(first, first + count) % (classes or 1)

    def source(first: int, count: int) -> Tensor:
        cond: dict[str, Any] = {"cond": labels(first, count)} if classes is not None else {}
        return to_uint8(module.sample(count, seed=seed, offset=first, **cond, **options))

    scores = evaluator(
        source,
        n,
        seed=seed,
        weights=module.weights_used(**options),
        labels=labels if classes is not None else None,
        together=module.sharded,
    )
    return list(scores.values())
