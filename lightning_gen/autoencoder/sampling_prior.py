"""What latents of samples are drawn from, fitted to those of a trained VAE.

The latents of training images are not spread as the prior is, and where no training image is a decoder has learned
nothing. Fitting a distribution to them, and drawing from it, needs no further training.

References:
    From Variational to Deterministic Autoencoders (section 4: ex-post density estimation)
    https://arxiv.org/abs/1903.12436
    Diagnosing and Enhancing VAE Models
    https://arxiv.org/abs/1903.05789
"""

from typing import Any

import torch

from lightning_gen.autoencoder.fitting import Fitted, fit_prior
from lightning_gen.autoencoder.priors import Prior
from lightning_gen.autoencoder.vae import VAE
from lightning_gen.seeding import SampleStreams, mix
from lightning_gen.training_images import evenly, training_split

_BATCH = 256


def fit_sampling_prior(
    module: VAE, datamodule: Any, prior: Prior | None = None, *, images: int = 10_000, seed: int = 0, **how: Any
) -> Fitted:
    """Fit a prior to draws of the posterior of training images; `sample` draws from it from then on.

    Args:
        module: a trained model without classes, on its device.
        datamodule: its data, with `split("train")`.
        prior: what is fitted; None for the module's `sampling_prior`.
        images: training images that latents are drawn of, at most, evenly from all.
        seed: of the draws, and of the fit.
        **how: further arguments of `fit_prior`.

    Raises:
        ValueError: where there is no prior to fit, or the model has classes.
    """
    if module.num_classes is not None:
        raise ValueError("The latents of a conditional VAE differ from class to class: one prior for all does not fit.")
    if prior is not None:
        module.take_sampling_prior(prior.to(module.device))
    if module.sampling_prior is None:
        raise ValueError(
            "There is no prior to fit: give one, such as GaussianMixturePrior(latent_dim), or set sampling_prior"
            " (--model.sampling_prior GaussianMixturePrior)."
        )
    drawn = []
    for rows, batch in evenly(training_split(datamodule, "A prior is fitted to training images."), images, _BATCH):
        batch = batch.to(module.device)
        # of other numbers than the latents are drawn by
        stream = SampleStreams(mix(seed, 1), rows, len(rows), module.device, batch.dtype)
        drawn.append(module.encode(module.observed(batch, stream), seed=seed, offset=rows).flatten(1))
    fitted = fit_prior(module.sampling_prior.requires_grad_(True), torch.cat(drawn), seed=seed, **how)
    module.sampling_prior.requires_grad_(False)
    module.sampling_prior_fitted.fill_(True)
    return fitted
