"""Advice of Lightning that is wrong for this package, and what makes it so.

A warning that is always there teaches people to read none.
"""

import warnings

UNTRUE = (
    # networks built from a configuration are plain data there, and are kept for the checkpoint to be rebuilt from
    r"Attribute '\w+' is an instance of `nn\.Module`",
    # bytes become floats in the module, whatever the data module is
    r"You have overridden `on_after_batch_transfer` in `LightningModule`",
    # a checkpoint after the step is what everybody wants
    r"Using ModelCheckpoint with manual optimization and every_n_train_steps",
    # averages of weights stay in evaluation mode
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # sets held in memory need no workers
    r".*does not have many workers which may be a bottleneck",
    # every batch has the size that the data module gave it
    r"Trying to infer the `batch_size` from an ambiguous collection",
    # a data set smaller than the logging interval is fine
    r"The number of training batches .* is smaller than the logging interval",
    # a run folder is continued on purpose
    r"Checkpoint directory .* exists and is not empty",
    # srun is there on every machine of a cluster; torchrun, or one process, does without it
    r"The `srun` command is available on your system but is not used",
    # what a network returns is never changed in place here
    r"FSDP2-wrapped module \(.*\) returned a view tensor",
    # Lightning's own call of a deprecated test in torch, and torch-fidelity's scripted resizing
    r".*treespec, LeafSpec.*is deprecated",
    r".*`torch\.jit\.\w+` is deprecated",
)


def quiet_lightning() -> None:
    """Ignore the warnings listed above, for the rest of the process."""
    for message in UNTRUE:
        warnings.filterwarnings("ignore", message=message)
