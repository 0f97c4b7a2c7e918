"""Optimizers whose defaults a configuration can write down.

A lambda with a tuple inside, or functools.partial, cannot be saved in a config.yaml or a checkpoint, and
a default of that form makes neither loadable. A small class with typed defaults can, and each of its
arguments is a flag (`--model.optimizer_g.lr=1e-4`).

Schedules are stepped once an iteration; where a paper counts images, divide by the global batch.

References:
    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
    https://arxiv.org/abs/1511.06434
    Elucidating the Design Space of Diffusion-Based Generative Models
    https://arxiv.org/abs/2206.00364
    Analyzing and Improving the Training Dynamics of Diffusion Models
    https://arxiv.org/abs/2312.02696
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_gen.errors import choose


class GANAdam(Adam):
    """Adam with the settings of DCGAN: a rate of 2e-4 and a first moment that forgets in two steps.

    Args:
        params: what is optimized.
        lr: the learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: weight of the L2 penalty that is added to the gradient.
        fused: one kernel for all parameters; faster, on the CPU too, but refuses clipping under float16.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


class DiffusionAdamW(AdamW):
    """AdamW as diffusion models are trained with: a rate of 2e-4, no weight decay, one kernel for all parameters.

    Args:
        params: what is optimized.
        lr: the learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: share of the weights taken off, times the rate.
        fused: one kernel for all parameters; refuses clipping under float16.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool | None = True,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


class WarmUp(LambdaLR):
    """A rate that rises linearly from 0 over some iterations, then stays or falls.

    Args:
        optimizer: whose rate it is.
        iterations: of the rise; EDM rises over a twentieth of its run.
        decay: "none"; "rsqrt" falls as sqrt(after / i) once i is above `after`; "cosine" falls to 0 at iteration
            `until`; "linear" likewise.
        after: iterations after which "rsqrt" falls.
        until: iteration at which "cosine" and "linear" end.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        iterations: int = 1000,
        decay: Literal["none", "rsqrt", "cosine", "linear"] = "none",
        after: int | None = None,
        until: int | None = None,
    ) -> None:
        choose("decay of WarmUp", decay, dict.fromkeys(("none", "rsqrt", "cosine", "linear")))
        if iterations < 0:
            raise ValueError(f"WarmUp rises over 0 iterations or more; given was {iterations}.")
        if decay == "rsqrt" and (after is None or after < 1):
            raise ValueError("WarmUp with decay='rsqrt' needs `after`, the iterations after which the rate falls.")
        if decay in ("cosine", "linear") and (until is None or until <= iterations):
            raise ValueError(
                f"WarmUp with decay='{decay}' needs `until`, an iteration after the {iterations} of the rise."
            )
        self.iterations, self.decay, self.after, self.until = iterations, decay, after, until
        super().__init__(optimizer, self.factor)

    def factor(self, iteration: int) -> float:
        """Return what the rate is multiplied by for the step after so many iterations."""
        rise = min(1.0, (iteration + 1) / max(self.iterations, 1))
        if self.decay == "rsqrt" and self.after is not None:
            return rise / math.sqrt(max((iteration + 1) / self.after, 1.0))
        if self.until is not None and self.decay in ("cosine", "linear"):
            done = min(max(iteration - self.iterations, 0) / (self.until - self.iterations), 1.0)
            return rise * (0.5 * (1 + math.cos(math.pi * done)) if self.decay == "cosine" else 1 - done)
        return rise


def optimizer_with_schedule(
    network: nn.Module, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None
) -> OptimizerConfig | OptimizerLRSchedulerConfig:
    """Make the optimizer of a network's trainable parameters, and its schedule, as Lightning takes them.

    Raises:
        MisconfigurationException: where nothing is left to train, or the schedule waits for a metric.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise MisconfigurationException(f"Every parameter of the {type(network).__name__} is frozen.")
    made = optimizer(parameters)
    if scheduler is None:
        return {"optimizer": made}
    schedule = scheduler(made)
    if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise MisconfigurationException(
            "Schedules are stepped once an iteration, and ReduceLROnPlateau waits for a metric: use LinearLR,"
            " CosineAnnealingLR, OneCycleLR or another schedule of the iteration."
        )
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
