"""The strategy of sharded networks, `fsdp2`: all processes share the data, and checkpoints are whole or not there.

A checkpoint is one file, put together by the first process, which everything reads; or, where no process can hold the
network, a folder that each process writes its parts to (`fsdp2_distributed_checkpoints`). Both continue on any number
of processes, with or without this strategy.
"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from lightning_gen.checkpoint_files import AtomicCheckpointIO, load_checkpoint, raise_not_written
from lightning_gen.checkpoint_folders import discard, is_checkpoint_folder, load_parts, written_together
from lightning_gen.sharding import in_parts, share_statistics


class FSDP2(ModelParallelStrategy):
    """Networks, averages and optimizers in as many parts as there are processes.

    Args:
        distributed_checkpoints: whether each process writes its parts, to a folder that all of them see; else the
            first one puts them together and writes one file.
        process_group_backend: "nccl", "gloo"; None for what the device usually goes with.
        timeout: after which a process that waits for another one gives up.
    """

    def __init__(
        self,
        distributed_checkpoints: bool = False,
        process_group_backend: str | None = None,
        timeout: datetime.timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=distributed_checkpoints,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._checkpoint_io = AtomicCheckpointIO()

    def setup_environment(self) -> None:
        """Let every process have a share of the data; Lightning would give those of a machine the same."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ------------------------------------------------------------------ saving

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the weights, whole or in parts, and the first process's running statistics."""
        if self.model is not None:
            share_statistics(self.model)
        return super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, all processes together; what stood there before is left until it is whole.

        Raises:
            CheckpointNotWritten: where it cannot be written.
        """
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            try:
                with written_together(path, self.is_global_zero, self.barrier) as partial:
                    super().save_checkpoint(checkpoint, partial, storage_options)
            except (CheckpointException, OSError) as error:
                failures = error.failures.values() if isinstance(error, CheckpointException) else ()
                for cause in (*(failure[0] for failure in failures), error):
                    raise_not_written(cause, path)
                raise
            return
        if self.is_global_zero and path.is_dir():
            discard(path)
        Strategy.save_checkpoint(self, checkpoint, path, storage_options)

    # ------------------------------------------------------------------ loading

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any number of processes: weights and optimizers are taken here, the rest returned.

        Raises:
            CheckpointError: where it is damaged, or no checkpoint.
        """
        path, model = Path(self.broadcast(checkpoint_path)), self.model
        if model is None or self.lightning_module is None:
            raise RuntimeError("A checkpoint was to be loaded before there is a model.")
        strict = self.lightning_module.strict_loading
        if is_checkpoint_folder(path):
            return load_parts(path, model, self.optimizers, strict)
        checkpoint = load_checkpoint(path, mmap=True)
        state, own = checkpoint.pop("state_dict"), model.state_dict()
        parts = {name: in_parts(value, own[name]) if name in own else value for name, value in state.items()}
        model.load_state_dict(parts, strict=strict)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            load_optimizer(optimizer, saved)
        return checkpoint


def load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give an optimizer of sharded weights a state that was saved whole: parameter by parameter, in their order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    if len(keys) != len(parameters):
        raise ValueError(f"The checkpoint's optimizer moves {len(keys)} parameters, this one {len(parameters)}.")
    numbers = {key: number for number, key in enumerate(keys)}
    state = {
        numbers[key]: {name: in_parts(value, parameters[numbers[key]]) for name, value in entry.items()}
        for key, entry in saved["state"].items()
    }
    groups = [group | {"params": [numbers[key] for key in group["params"]]} for group in saved["param_groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def register() -> None:
    """Let `Trainer(strategy="fsdp2")` find it."""
    for name, folders in (("fsdp2", False), ("fsdp2_distributed_checkpoints", True)):
        StrategyRegistry.register(
            name, FSDP2, description=FSDP2.__doc__, override=True, distributed_checkpoints=folders
        )
