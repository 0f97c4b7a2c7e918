"""Optimizers whose defaults a configuration can write down.

A lambda with a tuple inside, or functools.partial, cannot be saved in a config.yaml or a checkpoint, and
a default of that form makes neither loadable. A small class with typed defaults can, and each of its
arguments is a flag (`--model.optimizer_g.lr=1e-4`).

References:
    Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks
    https://arxiv.org/abs/1511.06434
"""

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Adam


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
