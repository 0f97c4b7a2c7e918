"""The place in training that a checkpoint holds, written so that a run continued from it is the run itself.

Lightning's loops, saved at the end of a batch, take up with the next one: a validation that was due then is left out,
and so is the end of the epoch with its means. Here the batch is counted as done and the validation as begun, which
takes up with the validation; and an epoch whose batches are all done is ended before the next one begins.
"""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


def settle(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Correct a checkpoint that is being made at the end of a batch, or in the middle of a validation.

    Args:
        checkpoint: as Lightning has dumped it; its "loops" are changed.
        trainer: whose state it is.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    if trainer.validating and trainer.state.fn == TrainerFn.FITTING:
        if not (validation["is_last_batch"] and _all_completed(validation["current"])):
            _begin(validation)
    elif at_end_of_batch(trainer):
        for count in (batches["total"], batches["current"]):
            count["completed"] = count["processed"]
        if validation_is_due(trainer):
            _begin(validation)


def at_end_of_batch(trainer: Trainer) -> bool:
    """Tell whether a batch is done and not yet counted, nor logged: as in `on_train_batch_end`."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return bool(total.completed == total.processed - 1)


def after_each_batch(module: LightningModule, call: Callable[[], None]) -> Callable[[], None]:
    """Have something called when a batch is done with: behind all that callbacks and the module do at its end.

    Callbacks come before the module's own `on_train_batch_end`: what a checkpoint made in one of them leaves out, such
    as an average that a module updates there, a resumed run would never make up for.

    Returns:
        What ends it.
    """
    own = module.on_train_batch_end
    calls = getattr(own, "calls", None)
    if calls is None:
        calls = []

        def both(*arguments: Any) -> None:
            own(*arguments)
            for each in list(both.calls):  # type: ignore[attr-defined]
                each()

        both.calls = calls  # type: ignore[attr-defined]
        module.on_train_batch_end = both  # type: ignore[method-assign, assignment]
    calls.append(call)

    def end() -> None:
        if call in calls:
            calls.remove(call)
        if not calls:
            module.__dict__.pop("on_train_batch_end", None)

    return end


def within_epoch(trainer: Trainer) -> bool:
    """Tell whether an epoch has begun and not yet ended."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed < progress.started)


def validation_is_due(trainer: Trainer) -> bool:
    """Tell whether a validation follows the batch that is being trained on."""
    fetcher = trainer.fit_loop._data_fetcher
    loop = trainer.fit_loop.epoch_loop
    return bool(
        trainer.enable_validation
        and fetcher is not None
        and sum(loop.val_loop.max_batches)
        and loop._should_check_val_fx(fetcher)
    )


def end_epoch_if_done(trainer: Trainer) -> None:
    """Let a resumed epoch of which only the end is missing train on no further batch; called as training starts."""
    loop: Any = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    if not (loop.restarted_on_last and loop._num_ready_batches_reached()):
        return
    if fetcher is None or loop._should_check_val_fx(fetcher):
        return  # a validation comes first, or has been made

    def nothing_left(fetcher: object) -> None:
        del loop.advance  # the class's own is there again
        raise StopIteration

    loop.advance = nothing_left


def _all_completed(count: dict[str, int]) -> bool:
    return count["completed"] == count["ready"]


def _begin(progress: dict[str, Any]) -> None:
    """Write down a validation whose first batch is under way: it is repeated, from that batch on."""
    done = progress["total"]["completed"]
    progress["total"] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
    progress["current"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    progress["is_last_batch"] = False
