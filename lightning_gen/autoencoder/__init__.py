"""Autoencoders."""

from lightning_gen.autoencoder.fitting import Fitted, fit_prior
from lightning_gen.autoencoder.flow_priors import FlowPrior, GaussianMixturePrior
from lightning_gen.autoencoder.posterior_flows import AutoregressivePosterior, PosteriorFlow
from lightning_gen.autoencoder.priors import Prior, StandardNormal

__all__ = [
    "AutoregressivePosterior",
    "Fitted",
    "FlowPrior",
    "GaussianMixturePrior",
    "PosteriorFlow",
    "Prior",
    "StandardNormal",
    "fit_prior",
]
