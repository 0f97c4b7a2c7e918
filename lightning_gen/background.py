"""Checkpoints written while training goes on: it waits for a copy in memory, and not for the disk.

Safe in the ways that the other writing is: a file is whole or not there, an older one is removed only once the newer
one is on the disk, and what could not be written ends the run, at the next checkpoint or at its end. A process that is
killed while one is being written continues from the one before.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_gen.checkpoint_files import AtomicCheckpointIO


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Copies what is to be saved into memory, and writes it on a thread of its own, one checkpoint at a time.

    It takes as much memory of the machine as a checkpoint has bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy, and begin to write; waits for the checkpoint before.

        Raises:
            CheckpointNotWritten: where the checkpoint before could not be written.
        """
        self.wait()
        write = super().save_checkpoint
        copied = pytree.tree_map_only(Tensor, _copied, checkpoint)
        self._do(lambda: write(copied, path, storage_options))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint once what is being written is on the disk, and not at all where it cannot be written."""
        before, remove = self._last, super().remove_checkpoint

        def after() -> None:
            if before is not None:
                before.result()
            remove(path)

        self._do(after)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Read a checkpoint, after what is being written."""
        self.wait()
        return super().load_checkpoint(path, *arguments, **named)

    def wait(self) -> None:
        """Wait until all is on the disk.

        Raises:
            CheckpointNotWritten: where it could not be written.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def teardown(self) -> None:
        """Wait, at the end of a run."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _do(self, work: Callable[[], None]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._last = self._pool.submit(work)


def _copied(value: Tensor) -> Tensor:
    """Copy a tensor into the machine's memory, where the next step does not change it."""
    return value.detach().to("cpu", copy=True)


def wait_for_writing(io: Any) -> None:
    """Wait for the checkpoints that a CheckpointIO of this package is writing.

    Raises:
        CheckpointNotWritten: where one could not be written.
    """
    if isinstance(io, BackgroundCheckpointIO):
        io.wait()
