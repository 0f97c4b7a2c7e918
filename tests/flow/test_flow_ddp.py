"""Two processes train the flow that one trains on their joined batches, whole or in parts, and map noise to images."""

import os

import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from ranks import assert_all_equal_one, run_ranks
from tiny import Joined, tiny_flow, trainer

from lightning_gen.flow.module import NormalizingFlow
from lightning_gen.sharding import whole

CASES = {
    "plain": {"ema_half_lives": [100], "ema_sigma_rels": [0.1]},
    "accumulated": {"accumulate": 2, "gradient_clip_val": 0.05},
    "classes": {"num_classes": 3, "label_dropout": 0.0, "ema_half_lives": [100]},
    "normal noise": {"noise_std": 0.1},
}
STRATEGIES = ["ddp", "fsdp2"]


class Fixed(NormalizingFlow):
    """Noise that is a function of the image, however a batch is split."""

    def _noisy(self, images, stream):
        return images + (self.noise_std or 1 / 255) * torch.sin(37 * images)


def train(name, folder, rank=None, world=1, strategy="ddp"):
    module = tiny_flow(cls=Fixed, **CASES[name]).double()
    settings = {"max_steps": 6, "max_epochs": -1, "precision": "64-true", "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": world, "strategy": strategy, "plugins": [TorchElasticEnvironment()]}
    data = Joined(num_classes=CASES[name].get("num_classes"), rank=rank, world=world)
    trainer(folder, **settings).fit(module, datamodule=data)
    return recorded(module)


def recorded(module):
    """All weights, samples by them and bits of images; of a flow in parts, all processes have to ask."""
    found = {key: value.clone() for key, value in whole(module.state_dict()).items()}
    found["samples"] = module.sample(4, seed=0)
    found["samples of the trained weights"] = module.sample(4, seed=0, weights="raw")
    if not module.noise_std:
        images = torch.linspace(-1, 1, 64, dtype=torch.float64).view(4, 1, 4, 4)
        found["bits"] = module.bits_per_dim(images, None if module.num_classes is None else 1)
    return found


def work(rank, world, folder):
    for strategy in STRATEGIES:
        trained = {name: train(name, folder, rank, world, strategy) for name in CASES}
        os.makedirs(os.path.join(folder, strategy), exist_ok=True)
        torch.save(trained, os.path.join(folder, strategy, f"{world}-{rank}.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flow")
    run_ranks(work, 2, 2, str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(folder, name, strategy):
    assert_all_equal_one(folder / strategy, 2, name, train(name, folder))
