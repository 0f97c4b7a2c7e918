r"""The total correlation of the latents, weighted: beta-TCVAE.

The divergence of the evidence lower bound, averaged over the N images n of the data, falls into three,

.. math::
    \mathbb E_n \mathrm{KL}(q(z \mid n) \,\|\, p(z)) = \underbrace{\mathrm{KL}(q(z, n) \,\|\, q(z) p(n))}_{\text{mutual
    information}} + \underbrace{\mathrm{KL}(q(z) \,\|\, \textstyle\prod_j q(z_j))}_{\text{total correlation}} +
    \underbrace{\textstyle\sum_j \mathrm{KL}(q(z_j) \,\|\, p(z_j))}_{\text{of each dimension}},

weighted by :math:`\alpha, \beta, \gamma`. The density of all images together is estimated from the M of a batch,

.. math:: \log q(z) \approx \log \frac{1}{NM} \sum_{m=1}^M q(z \mid n_m),

or with the weights of stratified sampling: 1/N for the image that z is drawn for, (N - M + 1) / (N (M - 1)) for one
other, 1 / (M - 1) for the rest. The latter is unbiased for q(z).

References:
    Isolating Sources of Disentanglement in Variational Autoencoders (eq. 2 to 4, appendix C)
    https://arxiv.org/abs/1802.04942
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.joined import gathered
from lightning_gen.autoencoder.latents import GaussianLatents, LatentModel
from lightning_gen.autoencoder.objectives import Setting, Terms, VariationalLosses, VariationalObjective
from lightning_gen.errors import choose
from lightning_gen.metrics.distributed import world


class BetaTC(VariationalObjective):
    """The bound with its divergence in three parts; the batch is that of all processes.

    Args:
        alpha: weight of the mutual information.
        beta: weight of the total correlation.
        gamma: weight of the divergences of single dimensions.
        estimator: "weighted" or "stratified".
        data_size: number N of training images; None for that of the data module.

    Raises:
        ValueError: for numbers out of range or another estimator.
    """

    needs_data_size = True

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        estimator: Literal["weighted", "stratified"] = "weighted",
        data_size: int | None = None,
    ) -> None:
        super().__init__()
        choose("estimator of BetaTC", estimator, dict.fromkeys(("weighted", "stratified")))
        if min(alpha, beta, gamma) < 0 or (data_size is not None and data_size < 1):
            raise ValueError(
                f"BetaTC takes weights of 0 or more and a data_size of 1 or more; given were {alpha}, {beta}, {gamma}"
                f" and {data_size}."
            )
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.estimator, self.data_size = estimator, data_size

    def check(self, model: LatentModel) -> None:
        """Refuse a flow and a ladder, whose densities at other images' latents are not told."""
        if not isinstance(model, GaussianLatents) or model.flow is not None:
            raise ValueError("BetaTC is of one layer of Gaussian latents: leave posterior_flow and ladder out.")

    def forward(self, terms: Terms, setting: Setting) -> VariationalLosses:
        """Return the losses of a batch; every process has as many images."""
        posterior, latents = terms.latents.posterior, terms.latents
        size = self.data_size or setting.data_size
        if posterior is None or size < 1:
            raise ValueError("BetaTC needs the posterior of each image and the number of training images.")
        everyone = DiagonalGaussian(gathered(posterior.mean), gathered(posterior.logvar))
        each = densities(latents.z[0], everyone)
        rank, processes = world()
        weights = log_weights(self.estimator, len(each), len(everyone.mean), size, rank, processes).to(each)
        log_qz = torch.logsumexp(each.sum(2) + weights, dim=1)
        log_product = torch.logsumexp(each + weights.unsqueeze(2), dim=1).sum(1)
        information = latents.log_q[0] - log_qz
        correlation, single = log_qz - log_product, log_product - latents.log_p[0]
        divergence = self.alpha * information + self.beta * correlation + self.gamma * single
        logs = {
            "mutual_information": information.detach().mean(),
            "total_correlation": correlation.detach().mean(),
            "dimension_kl": single.detach().mean(),
        }
        return VariationalLosses(divergence - terms.log_px[0], logs)


def densities(z: Tensor, posteriors: DiagonalGaussian) -> Tensor:
    """Return log q(z_d | x) of latents `(B, D)` under the posteriors of M images, in nats, `(B, M, D)`."""
    count, dims = posteriors.mean.shape
    single = DiagonalGaussian(posteriors.mean.reshape(-1, 1), posteriors.logvar.reshape(-1, 1))
    repeated = z.unsqueeze(1).expand(-1, count, -1).reshape(len(z), count * dims, 1)
    return single.log_prob(repeated).view(len(z), count, dims)


def log_weights(estimator: str, rows: int, batch: int, data_size: int, rank: int = 0, world: int = 1) -> Tensor:
    """Return the logarithms of what the posteriors of a batch count in the density of all, float64 `(rows, batch)`.

    Args:
        estimator: "weighted" or "stratified".
        rows: latents of this process; row i is of image i * world + rank of the batch.
        batch: images M of the batch.
        data_size: images N of the data.
        rank: this process.
        world: number of processes.
    """
    if estimator == "weighted" or batch == 1:
        return torch.full((rows, batch), -math.log(data_size * batch), dtype=torch.float64)
    others = batch - 1
    weights = torch.full((rows, batch), 1 / others, dtype=torch.float64)
    row = torch.arange(rows)
    own = row * world + rank
    weights[row, own] = 1 / data_size
    weights[row, (own + 1) % batch] = max(data_size - others, 0) / (data_size * others)
    return weights.log()
