"""Autoencoders.

The module is imported when it is first asked for, so that its pure parts come without it and without Lightning.
"""

from typing import TYPE_CHECKING, Any

from lightning_gen.autoencoder.beta_tc import BetaTC
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.info_vae import InfoVAE
from lightning_gen.autoencoder.ladder import Ladder
from lightning_gen.autoencoder.latents import GaussianLatents, LatentModel
from lightning_gen.autoencoder.likelihoods import Bernoulli, Gaussian, Likelihood
from lightning_gen.autoencoder.logistics import DiscretizedLogistic, DiscretizedLogisticMixture
from lightning_gen.autoencoder.objectives import ELBO, IWAE, VariationalObjective
from lightning_gen.autoencoder.priors import Prior, StandardNormal
from lightning_gen.autoencoder.vae_net import VAENet
from lightning_gen.autoencoder.vamp import VampPrior

if TYPE_CHECKING:
    from lightning_gen.autoencoder.vae import VAE

__all__ = [
    "ELBO",
    "IWAE",
    "VAE",
    "Bernoulli",
    "BetaTC",
    "DiagonalGaussian",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "GaussianLatents",
    "InfoVAE",
    "Ladder",
    "LatentModel",
    "Likelihood",
    "Prior",
    "StandardNormal",
    "VAENet",
    "VampPrior",
    "VariationalObjective",
]


def __getattr__(name: str) -> Any:
    if name == "VAE":
        from lightning_gen.autoencoder.vae import VAE

        return VAE
    raise AttributeError(f"module 'lightning_gen.autoencoder' has no attribute '{name}'")
