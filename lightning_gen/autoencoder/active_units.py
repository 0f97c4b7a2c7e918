r"""How many dimensions of the latents tell of the image: those whose mean varies over the images.

Dimension d is active where :math:`\operatorname{Var}_x\, \mathbb E_{q(z \mid x)} z_d > 0.01`.

References:
    Importance Weighted Autoencoders (section 5.3)
    https://arxiv.org/abs/1509.00519
"""

import torch
from torch import Tensor

THRESHOLD = 0.01


class ActiveUnits:
    """Counts the active dimensions of latents that come batch by batch.

    Args:
        dims: length D of a latent.
    """

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self.sums = torch.zeros(2 * dims + 1, dtype=torch.float64)

    def add(self, means: Tensor) -> None:
        """Take the means `(B, D)` of the latents of a batch."""
        means = means.detach().flatten(1).to("cpu", torch.float64)
        count = means.new_tensor([float(len(means))])
        self.sums += torch.cat([means.sum(0), means.square().sum(0), count])

    def count(self, sums: Tensor | None = None) -> int:
        """Return the number of active dimensions.

        Args:
            sums: `sums` added up over all processes; None for those of this one.
        """
        total = self.sums if sums is None else sums
        first, second, n = torch.split(total, [self.dims, self.dims, 1])
        return int((second / n - (first / n).square() > THRESHOLD).sum())


def active_units(means: Tensor) -> int:
    """Return the number of active dimensions of latents with means `(B, D)`."""
    units = ActiveUnits(means[0].numel())
    units.add(means)
    return units.count()
