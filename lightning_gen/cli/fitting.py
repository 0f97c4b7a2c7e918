"""`lightning-gen convert --from prior`: a VAE whose samples are drawn from a prior fitted to its latents."""

import sys
from typing import Any

from lightning_gen.autoencoder.flow_priors import FlowPrior, GaussianMixturePrior
from lightning_gen.autoencoder.sampling_prior import fit_sampling_prior
from lightning_gen.autoencoder.vae import VAE
from lightning_gen.checkpoint_files import find_checkpoint, load_checkpoint
from lightning_gen.checkpoints import CheckpointError, rebuild_data, rebuild_module, without_training
from lightning_gen.cli.failures import UsageError, usage

PRIORS = {"mixture": GaussianMixturePrior, "flow": FlowPrior}


def with_fitted_prior(run: str, name: str | None, images: int | None) -> dict[str, Any]:
    """Return the checkpoint of a run's VAE with a fitted prior in it.

    Args:
        run: the run folder, or a checkpoint that names its data.
        name: of the prior; None for the model's own, else the mixture.
        images: training images whose latents are fitted; None for 10,000.
    """
    path = find_checkpoint(run)
    content = load_checkpoint(path)
    module = rebuild_module(content, path)
    if not isinstance(module, VAE):
        raise UsageError(f"A prior is fitted to the latents of a VAE; {path} holds a {type(module).__name__}.")
    data = rebuild_data(content, path)
    if data is None:
        raise CheckpointError(f"The checkpoint {path} does not name its data, whose latents the prior is fitted to.")
    hyperparameters = dict(content["hyper_parameters"])
    prior = None
    if name is not None or module.sampling_prior is None:
        kind = PRIORS[name or "mixture"]
        arguments = {"latent_dim": module.net.latent_shape[0]}
        prior = kind(**arguments)
        described = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
        hyperparameters["sampling_prior"] = described
    with usage():
        fitted = fit_sampling_prior(module, data, prior, images=images or 10_000)
    print(
        f"log p(z): {fitted.nats:.3f} nats of the latents it was fitted to, {fitted.held_out:.3f} of others",
        file=sys.stderr,
    )
    return without_training(content) | {"state_dict": module.state_dict(), "hyper_parameters": hyperparameters}
