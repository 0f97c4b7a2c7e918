r"""Fit a prior to the latents of a trained autoencoder.

A mixture of Gaussians is fitted by scikit-learn's expectation maximization; any other prior with parameters by the
likelihood,

.. math:: \max_\theta\; \frac1N \sum_n \log p_\theta(z_n),

until the latents held out have not become likelier for some epochs. What it was then at its best is kept.

References:
    From Variational to Deterministic Autoencoders (density estimation after training)
    https://arxiv.org/abs/1903.12436
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.autoencoder.flow_priors import FlowPrior, GaussianMixturePrior, check_at_least_1
from lightning_gen.autoencoder.priors import Prior
from lightning_gen.errors import RunError


class Fitted(NamedTuple):
    """How well a prior describes latents.

    Attributes:
        nats: mean of log p(z) of the latents it was fitted to.
        held_out: the same of latents held out; of two priors the one with more of it is better.
        epochs: passes over the latents until it was at its best.
    """

    nats: float
    held_out: float
    epochs: int


@torch.inference_mode(False)
@torch.enable_grad()
def fit_prior(
    prior: Prior,
    latents: Tensor,
    *,
    held_out: float = 0.1,
    seed: int = 0,
    lr: float = 1e-3,
    batch_size: int = 256,
    max_epochs: int = 500,
    patience: int = 20,
    clip_norm: float = 5.0,
) -> Fitted:
    """Fit a prior to latents, in place; a frozen one, too, which stays frozen.

    No number is drawn from torch's global generators: the same seed, latents and initial weights give the same prior.

    Args:
        prior: what is fitted.
        latents: of the training images, `(N, D)`.
        held_out: share of the latents that are held out.
        seed: of the split, of the order of latents and of the mixture's start.
        lr: Adam's learning rate.
        batch_size: latents in a step.
        max_epochs: passes over the latents at most.
        patience: epochs without a better likelihood of the latents held out, after which the fit ends.
        clip_norm: bound of the gradient's norm.

    Raises:
        ValueError: for latents or numbers that do not fit, or a prior of which nothing can be fitted.
        RunError: where the likelihood of the latents held out is never finite.
    """
    check_at_least_1(prior, batch_size=batch_size, max_epochs=max_epochs, patience=patience)
    order = torch.Generator().manual_seed(seed)
    train, other = _split(prior, latents, held_out, order)
    if isinstance(prior, GaussianMixturePrior):
        return _fit_mixture(prior, train, other, seed)
    if not any(True for _ in prior.parameters()):
        raise ValueError(
            f"A {type(prior).__name__} has nothing that is fitted: use a GaussianMixturePrior or a FlowPrior."
        )
    if isinstance(prior, FlowPrior):
        prior.standardize(train)
    best = _Best(prior, other)
    with _thawed(prior) as parameters:
        optimizer = torch.optim.Adam(parameters, lr=lr)
        for epoch in range(1, max_epochs + 1):
            for rows in torch.split(torch.randperm(len(train), generator=order), batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = -prior.log_prob(train[rows.to(train.device)]).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimizer.step()
            best.look(epoch)
            if epoch - best.epoch >= patience:
                break
    best.put_back()
    return Fitted(_likelihood(prior, train), best.nats, best.epoch)


@contextmanager
def _thawed(prior: Prior) -> Iterator[list[nn.Parameter]]:
    """Let all parameters be trained; leave them as frozen as they were, and without gradients."""
    parameters = list(prior.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    prior.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter, trained in zip(parameters, before, strict=True):
            parameter.requires_grad_(trained).grad = None


class _Best:
    """What a prior was when the latents held out were likeliest."""

    def __init__(self, prior: Prior, other: Tensor) -> None:
        self.prior, self.other = prior, other
        self.nats, self.epoch = -math.inf, 0
        self.look(0)

    def look(self, epoch: int) -> None:
        nats = _likelihood(self.prior, self.other)
        if nats > self.nats:
            self.nats, self.epoch, self.state = nats, epoch, copy.deepcopy(self.prior.state_dict())

    def put_back(self) -> None:
        if not math.isfinite(self.nats):
            raise RunError(
                f"The latents held out never had a finite likelihood under the {type(self.prior).__name__}: look at the"
                " latents, or lower the learning rate (lr)."
            )
        self.prior.load_state_dict(self.state)


def _split(prior: Prior, latents: Tensor, held_out: float, order: torch.Generator) -> tuple[Tensor, Tensor]:
    """Check latents, and return those to fit to and those held out, in the precision and place of the prior."""
    if latents.ndim != 2 or latents.shape[1] != prior.latent_dim:
        raise ValueError(
            f"{type(prior).__name__} is fitted to latents of shape (N, {prior.latent_dim}), not {tuple(latents.shape)}."
        )
    if not latents.isfinite().all():
        raise ValueError("The latents hold NaN or infinite numbers: the encoder that made them has diverged.")
    few = round(held_out * len(latents))
    if not 0 < held_out < 1 or few < 1 or few == len(latents):
        raise ValueError(
            f"held_out is a share above 0 and below 1 that leaves latents on both sides; given were {held_out} and"
            f" {len(latents)} latents."
        )
    like = next(iter(prior.state_dict().values()), latents)
    rows = torch.randperm(len(latents), generator=order).to(latents.device)
    shuffled = latents.detach()[rows].to(like)
    return shuffled[few:], shuffled[:few]


def _fit_mixture(prior: GaussianMixturePrior, train: Tensor, other: Tensor, seed: int) -> Fitted:
    from sklearn.mixture import GaussianMixture

    if len(train) < prior.components:
        raise ValueError(
            f"A mixture of {prior.components} Gaussians needs as many latents; {len(train)} are left to fit to."
        )
    mixture = GaussianMixture(prior.components, covariance_type="full", random_state=seed, max_iter=500)
    mixture.fit(train.double().cpu().numpy())
    covariances = torch.from_numpy(mixture.covariances_)
    prior.weights.copy_(torch.from_numpy(mixture.weights_))
    prior.means.copy_(torch.from_numpy(mixture.means_))
    prior.scale_trils.copy_(torch.linalg.cholesky(covariances))
    return Fitted(_likelihood(prior, train), _likelihood(prior, other), int(mixture.n_iter_))


@torch.no_grad()
def _likelihood(prior: Prior, latents: Tensor) -> float:
    """Return the mean of log p(z) of latents, in nats."""
    return float(torch.cat([prior.log_prob(part) for part in torch.split(latents, 4096)]).double().mean())
