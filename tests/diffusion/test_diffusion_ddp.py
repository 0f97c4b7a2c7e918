"""Two and four processes train the network that one trains on their joined batches."""

import copy
import os

import pytest
import torch
from fixed_objective import Fixed
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from ranks import assert_all_equal_one, run_ranks
from tiny import Joined, TinyData, tiny_autoencoder, tiny_diffusion, trainer, weights

from lightning_gen.codec import Codec
from lightning_gen.diffusion import DiscreteVP, Importance, LearnedUncertainty, MinibatchOT, Uniform
from lightning_gen.diffusion.module import Diffusion

CASES = {
    "averages": {"ema_half_lives": [100], "ema_sigma_rels": [0.1]},
    "accumulation": {"accumulate": 2, "gradient_clip_val": 0.05},
    "learned variance": {"path": DiscreteVP(10), "net": {"learned_variance": True}},
    "learned times": {"times": Importance(history=2, buckets=4), "ema_half_lives": [100]},
    "learned weights": {"weighting": LearnedUncertainty()},
    "optimal transport": {"coupling": MinibatchOT()},
    "latents": {"codec": Codec(tiny_autoencoder(seed=1).net), "net": {"image_shape": (2, 2, 2)}},
}
WORLDS = [2, 4]


class Watched(Diffusion):
    """Keep the first noisy batch's times, and let the second batch of one process be NaN."""

    def _losses(self, network, batch, stream, training=False):
        losses = super()._losses(network, batch, stream, training)
        if not hasattr(self, "first"):
            self.first = losses.t.clone()
        if self.batch_number == 1 and self.global_rank == 1:
            losses.total = losses.total * torch.nan
        return losses


def train(name, folder, rank=None, world=1):
    module = tiny_diffusion(objective=Fixed(), **copy.deepcopy(CASES[name])).double()
    settings = {"max_steps": 6, "max_epochs": -1, "precision": "64-true", "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    trainer(folder, **settings).fit(module, datamodule=Joined(rank=rank, world=world))
    return module


def work(rank, world, folder):
    trained = {name: weights(train(name, folder, rank, world)) for name in CASES}
    torch.save(trained, os.path.join(folder, f"{world}-{rank}.pt"))
    os.environ["PL_GLOBAL_SEED"] = "3"
    settings = {"max_steps": 4, "devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    learning = tiny_diffusion(cls=Watched, times=Importance(history=1, buckets=4), on_nonfinite="skip")
    trainer(folder, **settings).fit(learning, datamodule=TinyData(n=128))
    strata = tiny_diffusion(cls=Watched, times=Uniform(stratified=True), on_nonfinite="skip")
    trainer(folder, **settings).fit(strata, datamodule=TinyData(n=128))
    told = {
        "t": strata.first,
        "losses": learning.times.losses,
        "skipped": torch.tensor(learning.skipped_batches),
        "sample": learning.sample(4, seed=0),
    }
    torch.save(told, os.path.join(folder, f"told-{world}-{rank}.pt"))


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, world):
    path = tmp_path_factory.mktemp("ddp")
    run_ranks(work, world, world, str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_processes_equal_one(folder, world, name):
    assert_all_equal_one(folder, world, name, weights(train(name, folder)))


@pytest.mark.slow
def test_processes_share_what_they_must_and_draw_their_own_times(folder, world):
    first, *others = (torch.load(folder / f"told-{world}-{rank}.pt", weights_only=True) for rank in range(world))
    for other in others:
        for key in ("losses", "skipped", "sample"):
            assert torch.equal(first[key], other[key]), key
    assert first["skipped"] == 1
    assert first["losses"].count_nonzero() > 0
    # one time in each of the strata of the joined batch
    n = 8 * world
    strata = (torch.cat([first["t"], *(other["t"] for other in others)]) * n).ceil().sort().values
    assert torch.equal(strata, torch.arange(1.0, n + 1, dtype=torch.float64))
