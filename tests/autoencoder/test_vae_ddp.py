"""Two processes train the variational autoencoder that one trains on their joined batches."""

import copy
import os

import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from ranks import assert_all_equal_one, run_ranks
from tiny import Joined, TinyData, tiny_vae, trainer, weights

from lightning_gen.autoencoder import ELBO, IWAE, BetaTC, Gaussian, InfoVAE, VampPrior
from lightning_gen.autoencoder.vae import VAE

CASES = {
    "averages": {"ema_half_lives": [100], "likelihood": Gaussian(0.5, "scalar"), "binarize": "static"},
    "accumulation": {"accumulate": 2, "gradient_clip_val": 0.05, "num_classes": 4},
    "free bits": {"objective": ELBO(free_bits=0.05), "ladder": ([3, 2], [8, 6], "tanh")},
    "draws": {"objective": IWAE(3), "prior": VampPrior(3, 4)},
    "total correlation": {"objective": BetaTC()},
    "stratified": {"objective": BetaTC(estimator="stratified")},
    "mean discrepancy": {"objective": InfoVAE(0.5, 20.0)},
}
WORLD = 2


class ImageNoise:
    """Noise that is a function of the image: it is the same whichever process has it."""

    dtype = torch.float64

    def __init__(self, images):
        self.images = images.flatten(1)

    def normal(self, *shape):
        size = torch.Size(shape).numel()
        mixing = torch.linspace(-1, 1, self.images.shape[1] * size, dtype=torch.float64).view(-1, size)
        return (self.images @ mixing.sin()).view(-1, *shape)


class FixedNoise(VAE):
    def _training_stream(self, images):
        return ImageNoise(images)


def train(name, folder, rank=None, world=1):
    arguments = copy.deepcopy(CASES[name])
    module = tiny_vae(cls=FixedNoise, **arguments).double()
    settings = {"max_steps": 6, "max_epochs": -1, "precision": "64-true", "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    run = trainer(folder, **settings)
    run.fit(module, datamodule=Joined(arguments.get("num_classes"), rank, world))
    logged = {f"logged {key}": value.double().cpu() for key, value in run.callback_metrics.items()}
    return weights(module) | logged


class Seen(VAE):
    """Keep the first draws of latents."""

    def _terms(self, net, x, label, stream, samples):
        features, terms = super()._terms(net, x, label, stream, samples)
        if self.training and not hasattr(self, "first"):
            self.first = terms.latents.z.detach().clone()
        return features, terms


def work(rank, world, folder):
    trained = {name: train(name, folder, rank, world) for name in CASES}
    torch.save(trained, os.path.join(folder, f"{world}-{rank}.pt"))
    os.environ["PL_GLOBAL_SEED"] = "3"
    settings = {"max_steps": 2, "devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    module = tiny_vae(cls=Seen)
    trainer(folder, **settings).fit(module, datamodule=TinyData())
    logged = trainer(folder, limit_val_batches=1.0, **settings).validate(
        module, datamodule=TinyData(n=20, batch_size=4), verbose=False
    )[0]
    told = {"z": module.first, "sample": module.sample(4, seed=0), **weights(module.net)}
    told |= {name: torch.tensor(value) for name, value in logged.items()}
    torch.save(told, os.path.join(folder, f"told-{rank}.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ddp")
    run_ranks(work, WORLD, WORLD, str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one(folder, name):
    """Weights, averages and what was logged of the joined batch."""
    assert_all_equal_one(folder, WORLD, name, train(name, folder))


@pytest.mark.slow
def test_processes_draw_their_own_latents_and_agree_on_the_rest(folder, tmp_path):
    first, second = (torch.load(folder / f"told-{rank}.pt", weights_only=True) for rank in range(WORLD))
    assert not torch.equal(first.pop("z"), second.pop("z"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    module = tiny_vae()
    module.net.load_state_dict({name: first[name] for name in module.net.state_dict()})
    logged = trainer(tmp_path, limit_val_batches=1.0).validate(
        module, datamodule=TinyData(n=20, batch_size=4), verbose=False
    )[0]
    for name, value in logged.items():
        assert first[name].item() == pytest.approx(value, rel=1e-5), name
