"""Autoencoders of images, variational, quantized and adversarial.

The modules are imported when they are first asked for, so that the pure parts come without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_gen.autoencoder.adaptive import adaptive_weight
from lightning_gen.autoencoder.beta_tc import BetaTC
from lightning_gen.autoencoder.bottlenecks import Bottled, Bottleneck, GaussianBottleneck
from lightning_gen.autoencoder.fitting import Fitted, fit_prior
from lightning_gen.autoencoder.flow_priors import FlowPrior, GaussianMixturePrior
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.info_vae import InfoVAE
from lightning_gen.autoencoder.ladder import Ladder
from lightning_gen.autoencoder.latents import GaussianLatents, LatentModel
from lightning_gen.autoencoder.likelihoods import Bernoulli, Gaussian, Likelihood
from lightning_gen.autoencoder.logistics import DiscretizedLogistic, DiscretizedLogisticMixture
from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.autoencoder.objectives import ELBO, IWAE, VariationalObjective
from lightning_gen.autoencoder.posterior_flows import AutoregressivePosterior, PosteriorFlow
from lightning_gen.autoencoder.priors import Prior, StandardNormal
from lightning_gen.autoencoder.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    TwoLevelQuantizer,
    VectorQuantizer,
)
from lightning_gen.autoencoder.vae_net import VAENet
from lightning_gen.autoencoder.vamp import VampPrior

if TYPE_CHECKING:
    from lightning_gen.autoencoder.module import Autoencoder
    from lightning_gen.autoencoder.vae import VAE

__all__ = [
    "ELBO",
    "IWAE",
    "VAE",
    "Autoencoder",
    "AutoencoderNet",
    "AutoregressivePosterior",
    "Bernoulli",
    "BetaTC",
    "Bottled",
    "Bottleneck",
    "DiagonalGaussian",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "FiniteScalarQuantizer",
    "Fitted",
    "FlowPrior",
    "Gaussian",
    "GaussianBottleneck",
    "GaussianLatents",
    "GaussianMixturePrior",
    "InfoVAE",
    "Ladder",
    "LatentModel",
    "Likelihood",
    "LookupFreeQuantizer",
    "PosteriorFlow",
    "Prior",
    "Quantizer",
    "ResidualQuantizer",
    "StandardNormal",
    "TwoLevelQuantizer",
    "VAENet",
    "VampPrior",
    "VariationalObjective",
    "VectorQuantizer",
    "adaptive_weight",
    "fit_prior",
]

_MODULES = {"Autoencoder": "module", "VAE": "vae"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"lightning_gen.autoencoder.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lightning_gen.autoencoder' has no attribute '{name}'")
