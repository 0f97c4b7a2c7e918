"""What `self.log(..., on_epoch=True)` has gathered since the epoch began, kept over a resumption.

Lightning does not save it: the mean of an epoch that was cut in two would be that of its second part. Every process
has gathered of its own batches, so a checkpoint holds what each of them has.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync

Gathered = dict[str, dict[str, Any]]
"""Of each logged value: how it is logged, and what has been gathered."""

_HOW = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
)


def gathered(trainer: Trainer) -> list[Gathered]:
    """Return what each process has gathered in the epoch so far, by rank; all of them have to ask."""
    results = trainer.fit_loop.epoch_loop._results
    # a metric object of the module's own has its state in the module
    mine = {
        key: _plain(kept)
        for key, kept in results.items()
        if kept.is_tensor and kept.meta.on_epoch and not kept.has_reset
    }
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def put_back(trainer: Trainer, before: list[Gathered]) -> None:
    """Let the trainer go on gathering where each process was; before the first batch of a resumed epoch.

    On another number of processes than before, all that was gathered goes to the first one where it is a sum or a
    mean, and every process has the extremes.
    """
    world, rank = trainer.world_size, trainer.global_rank
    shares = before[rank : rank + 1] if len(before) == world else before
    results = trainer.fit_loop.epoch_loop._results
    for kept in shares:
        for key, entry in kept.items():
            if len(before) != world and rank and entry["reduce"] in ("mean", "sum"):
                continue
            if key not in results:
                results[key] = _empty(entry, trainer)
            _add(results[key], entry)
    # else the first value logged by a hook resets all that it has logged
    trainer._logger_connector._first_loop_iter = False


def _plain(kept: _ResultMetric) -> dict[str, Any]:
    meta = kept.meta
    plain = {name: getattr(meta, name) for name in _HOW}
    plain |= {"reduce": meta.reduce_fx.__name__, "sync": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    plain["value"] = kept.value.detach().cpu().clone()
    if meta.is_mean_reduction:
        plain["weight"] = kept.cumulated_batch_size.detach().cpu().clone()
    return plain


def _empty(kept: dict[str, Any], trainer: Trainer) -> _ResultMetric:
    """Make the metric as `self.log` would, which compares the two."""
    meta = _Metadata(**{name: kept[name] for name in _HOW}, reduce_fx=getattr(torch, kept["reduce"]))
    meta.sync = _Sync(_should=kept["sync"], fn=trainer.strategy.reduce, rank_zero_only=kept["rank_zero_only"])
    return _ResultMetric(meta, is_tensor=True)


def _add(metric: _ResultMetric, kept: dict[str, Any]) -> None:
    pair = (metric.value.cpu(), kept["value"])
    metric.value = pair[0] + pair[1]
    if kept["reduce"] in ("max", "min"):
        metric.value = torch.maximum(*pair) if kept["reduce"] == "max" else torch.minimum(*pair)
    if "weight" in kept:
        metric.cumulated_batch_size = metric.cumulated_batch_size.cpu() + kept["weight"]
    metric._update_count = 1
