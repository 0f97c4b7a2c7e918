r"""InfoVAE: the distribution of all latents together is held to the prior, by a kernel's mean discrepancy.

.. math::
    L = -\mathbb E \log p(x \mid z) + (1 - \alpha)\,\mathrm{KL}(q(z \mid x) \,\|\, p(z))
        + (\alpha + \lambda - 1)\,\mathrm{MMD}^2(q(z) \,\|\, p(z))

(eq. 6, its sign turned). :math:`\alpha = 0, \lambda = 1` is the evidence lower bound; :math:`\alpha = 1` is the
MMD-VAE. The discrepancy is the unbiased estimate from the latents of a batch and as many draws of the prior, with a
mean of Gaussian kernels, D being the length of a latent:

.. math:: k(z, z') = \frac1S \sum_s \exp\left( -\frac{\lVert z - z' \rVert^2}{2 s^2 D} \right).

References:
    InfoVAE: Balancing Learning and Inference in Variational Autoencoders
    https://arxiv.org/abs/1706.02262
    A Kernel Two-Sample Test (lemma 6)
    https://jmlr.org/papers/v13/gretton12a.html
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gen.autoencoder.joined import gathered
from lightning_gen.autoencoder.objectives import Setting, Terms, VariationalLosses, VariationalObjective


class InfoVAE(VariationalObjective):
    """The bound with a part of its divergence replaced; the batch is that of all processes.

    Args:
        alpha: part of the divergence of single images that is left out, at most 1.
        lambda_: weight of the divergence of all together.
        bandwidths: of the kernels, in parts of the root of the latents' length.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(
        self, alpha: float = 1.0, lambda_: float = 1000.0, bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0)
    ) -> None:
        super().__init__()
        if alpha > 1 or alpha + lambda_ < 1:
            raise ValueError(
                "InfoVAE takes an alpha of at most 1 and alpha + lambda_ of 1 or more; given were"
                f" {alpha} and {lambda_}."
            )
        if not bandwidths or min(bandwidths) <= 0:
            raise ValueError(f"InfoVAE takes bandwidths above 0; given were {list(bandwidths)}.")
        self.alpha, self.lambda_, self.bandwidths = alpha, lambda_, list(bandwidths)

    def forward(self, terms: Terms, setting: Setting) -> VariationalLosses:
        """Return the losses of a batch; every process has as many images."""
        drawn = setting.model.sample(setting.stream).to(terms.latents.z)
        discrepancy = mean_discrepancy(gathered(terms.latents.z[0]), gathered(drawn), self.bandwidths)
        loss = (1 - self.alpha) * terms.kl - terms.log_px.mean(0)
        loss = loss + (self.alpha + self.lambda_ - 1) * discrepancy
        return VariationalLosses(loss, {"mmd": discrepancy.detach()})


def mean_discrepancy(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Return the unbiased estimate of the squared mean discrepancy of vectors `(M, D)` and `(M', D)`, a scalar.

    Raises:
        ValueError: for fewer than two vectors on a side, of which there is no pair.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A mean discrepancy takes 2 or more latents on each side: {len(x)} and {len(y)} are there.")

    def within(points: Tensor) -> Tensor:
        total = kernel(points, points, bandwidths).sum() - len(points)  # k(z, z) = 1
        return total / (len(points) * (len(points) - 1))

    return within(x) + within(y) - 2 * kernel(x, y, bandwidths).mean()


def kernel(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Return the mean of Gaussian kernels between vectors `(M, D)` and `(M', D)`, `(M, M')`."""
    # from the differences themselves: |x|^2 + |y|^2 - 2 x y has no digits left where the two are close
    squared = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(2) / x.shape[1]
    return torch.stack([torch.exp(-squared / (2 * width**2)) for width in bandwidths]).mean(0)
