"""Shortcuts through what Lightning does for every batch and that a small network waits for.

docs/performance.md says what each is worth.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.profilers import PassThroughProfiler

_NOTHING = nullcontext()


class NoProfiler(PassThroughProfiler):
    """Lightning's default profiler, without a generator made and closed around every hook."""

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        """Return a block that does nothing."""
        return _NOTHING


def drop_stale_scalars(trainer: Any) -> None:
    """Forget scalars that were logged for one iteration only, once that iteration is over.

    Lightning keeps them to the end of the epoch and goes through them after every batch; those that the
    progress bar shows it copies from the device each time, which makes a GPU wait. Loggers and the bar have
    them by then, and reading `callback_metrics` hands them to what monitors them. Means over the epoch stay.
    """
    results = trainer.fit_loop.epoch_loop._results
    stale = [key for key, kept in results.items() if not kept.meta.on_epoch] if results else []
    if stale:
        _ = trainer.callback_metrics
        for key in stale:
            del results[key]
