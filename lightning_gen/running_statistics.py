"""Running statistics of batch norm: the same on all processes wherever they are used.

Each process gathers those of its own batches, and a checkpoint holds those of the first. DDP would hand these to all
before a forward pass, but not where gradients are averaged once for several passes, as the steps here do.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_running_statistics(module: nn.Module) -> None:
    """Give all processes the running statistics of the first one; all of them call this together."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            for statistic in (part.running_mean, part.running_var):
                if statistic is not None:
                    torch.distributed.broadcast(statistic, 0)
