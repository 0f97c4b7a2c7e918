"""Two processes train the autoencoder, its codebook and its discriminator as one does on their joined batches."""

import os

import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from ranks import assert_all_equal_one, run_ranks
from tiny import Joined, tiny_autoencoder, trainer, weights

from lightning_gen.autoencoder import GaussianBottleneck, VectorQuantizer


class Sure(GaussianBottleneck):
    """Takes the means, for processes draw other noise."""

    def forward(self, features, stream=None):
        return super().forward(features)


def averaged():
    return VectorQuantizer(3, 8, ema_decay=0.9, restart_below=0.2)


CASES = {
    "kl": (lambda: Sure(2, 0.1), {"ema_half_lives": [100]}),
    "vqgan": (averaged, {"adversarial": True, "ema_half_lives": [100]}),
    "vqgan, from the third iteration on": (averaged, {"adversarial": True, "discriminator_start": 2}),
    "vq, accumulated": (lambda: VectorQuantizer(3, 8), {"accumulate": 2, "gradient_clip_val": 0.01}),
}


def train(name, folder, rank=None, world=1):
    make, arguments = CASES[name]
    torch.manual_seed(0)
    module = tiny_autoencoder(make(), **arguments).double()
    settings = {"max_steps": 6, "max_epochs": -1, "precision": "64-true", "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    trainer(folder, **settings).fit(module, datamodule=Joined(rank=rank, world=world))
    return module


def work(rank, world, folder):
    trained = {name: weights(train(name, folder, rank, world)) for name in CASES}
    torch.save(trained, os.path.join(folder, f"{world}-{rank}.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ddp")
    run_ranks(work, 2, 2, str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one(folder, name, tmp_path):
    assert_all_equal_one(folder, 2, name, weights(train(name, tmp_path)))
