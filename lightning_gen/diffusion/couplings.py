r"""Which noise goes with which image of a batch.

Independent pairs are the definition of a diffusion. With minibatch optimal transport the noise is permuted so that

.. math:: \sum_i \lVert x_i - \varepsilon_{\pi(i)} \rVert^2

is the least of all permutations: paths from noise to images then cross less, and solvers need fewer steps. A
permutation uses every image and every noise once. The images stay where they are, and so do their classes, vectors
and pictures.

References:
    Improving and generalizing flow-based generative models with minibatch optimal transport
    https://arxiv.org/abs/2302.00482
    Multisample Flow Matching: Straightening Flows with Minibatch Couplings
    https://arxiv.org/abs/2304.14772
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_gen.diffusion.paths import precise
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import RandomStream


class Coupling(ABC):
    """Base class of the couplings."""

    @abstractmethod
    def __call__(
        self, x0: Tensor, noise: Tensor, cond: Condition, stream: RandomStream
    ) -> tuple[Tensor, Tensor, Condition]:
        """Pair images with noise.

        Args:
            x0: images, `(B, C, H, W)`.
            noise: standard normal, of the same shape.
            cond: what the images are, row by row.
            stream: all random numbers.

        Returns:
            Images, noise and conditions, row by row.
        """


class Independent(Coupling):
    """Pairs as they were drawn."""

    def __call__(
        self, x0: Tensor, noise: Tensor, cond: Condition, stream: RandomStream
    ) -> tuple[Tensor, Tensor, Condition]:
        """Return what was given."""
        return x0, noise, cond


class MinibatchOT(Coupling):
    """The exact optimal assignment of noise to the images of a batch, on each process by itself.

    The host waits for the device once a batch, and the time grows with the third power of the batch: on one
    core some 30 milliseconds for 256 images of 3 x 32 x 32, a second for 1,024.

    Args:
        within_class: assign within each class only. Noise that is assigned over all classes depends on the class,
            while sampling a class starts from noise that does not, which costs quality. Without classes it is the
            same.
    """

    def __init__(self, within_class: bool = True) -> None:
        self.within_class = within_class

    def __call__(
        self, x0: Tensor, noise: Tensor, cond: Condition, stream: RandomStream
    ) -> tuple[Tensor, Tensor, Condition]:
        """Permute the noise."""
        # the squares in the distances are the same for every permutation; what is left is the product
        cost = -(precise(x0).flatten(1) @ precise(noise).flatten(1).mT).cpu()
        # without a cost there is no best pair; the loss will tell of such images
        if not bool(torch.isfinite(cost).all()):
            return x0, noise, cond
        label = cond.label.cpu() if self.within_class and cond.label is not None else torch.zeros(len(x0))
        order = torch.arange(len(x0))
        for one in sorted(set(label.tolist())):
            rows = (label == one).nonzero().squeeze(1)
            order[rows] = rows[_assign(cost[rows][:, rows])]
        return x0, noise[order.to(noise.device)], cond


def _assign(cost: Tensor) -> Tensor:
    """Return the column of each row, `(n,)`, in the assignment of least cost."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(columns)
