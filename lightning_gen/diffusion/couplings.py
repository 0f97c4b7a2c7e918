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
from torch import Tensor, distributed

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
    """The exact optimal assignment of noise to the images of a batch, those of all processes together.

    The host waits for the device once a batch, and the time grows with the third power of the batch: on one
    core some 30 milliseconds for 256 images of 3 x 32 x 32, a second for 1,024. Every process has to call it.

    Args:
        within_class: assign within each class only. Noise that is assigned over all classes depends on the class,
            while sampling a class starts from noise that does not, which costs quality. Without classes it is the
            same.
        on_each_process: assign within each process's share of the batch alone: faster, and another coupling on
            another number of processes.
    """

    def __init__(self, within_class: bool = True, on_each_process: bool = False) -> None:
        self.within_class, self.on_each_process = within_class, on_each_process

    def __call__(
        self, x0: Tensor, noise: Tensor, cond: Condition, stream: RandomStream
    ) -> tuple[Tensor, Tensor, Condition]:
        """Permute the noise."""
        label = cond.label if self.within_class and cond.label is not None else x0.new_zeros(len(x0), dtype=torch.long)
        (images, drawn, label), first = (x0, noise, label), 0
        if not self.on_each_process:
            (images, drawn, label), first = _of_all(x0, noise, label)
        # the squares in the distances are the same for every permutation; what is left is the product
        cost = -(precise(images).flatten(1) @ precise(drawn).flatten(1).mT).cpu()
        # without a cost there is no best pair; the loss will tell of such images
        if not bool(torch.isfinite(cost).all()):
            return x0, noise, cond
        order, label = torch.arange(len(images)), label.cpu()
        for one in sorted(set(label.tolist())):
            rows = (label == one).nonzero().squeeze(1)
            order[rows] = rows[_assign(cost[rows][:, rows])]
        return x0, drawn[order[first : first + len(x0)].to(drawn.device)], cond


def _of_all(*tensors: Tensor) -> tuple[list[Tensor], int]:
    """Return the rows of all processes, which may have different numbers of them, and where this one's begin."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return list(tensors), 0
    world, mine = distributed.get_world_size(), tensors[0].new_tensor([len(tensors[0])], dtype=torch.long)
    counts = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(counts, mine)
    rows = [int(count) for count in counts]
    gathered = []
    for tensor in tensors:
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in rows]
        distributed.all_gather(parts, padded)
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]))
    return gathered, sum(rows[: distributed.get_rank()])


def _assign(cost: Tensor) -> Tensor:
    """Return the column of each row, `(n,)`, in the assignment of least cost."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(columns)
