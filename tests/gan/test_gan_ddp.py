"""Two and four processes train the GAN that one trains on their joined batches."""

import copy
import os

import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from noiseless import FixedNoise, FixedWGANGP
from ranks import assert_all_equal_one, run_ranks
from tiny import Joined, TinyData, same, tiny_gan, trainer, weights

from lightning_gen.callbacks import Fidelity, SampleGrid
from lightning_gen.callbacks.fidelity import measure
from lightning_gen.gan import ADA, R1, R2
from lightning_gen.gan.module import GAN
from lightning_gen.metrics import Evaluator

CASES = {
    "penalties": {"penalties": [FixedWGANGP(10.0), R1(1.0, every=2), R2(0.5)], "n_dis": 2},
    "accumulation": {"accumulate": 2, "loss": "hinge", "gradient_clip_val": 0.05},
    "pairs": {"loss": "relativistic_pairing"},
    "classes and averages": {"num_classes": 4, "ema_half_lives": [100]},
    # its transforms draw, its probability does not
    "augmentation": {"augmentation": ADA(images=100, every=2, transforms="")},
}
WORLDS = [2, 4]


class DrawnNoise(GAN):
    """Keep the first latents drawn."""

    def _fakes(self, batch):
        fake, label = super()._fakes(batch)
        if not hasattr(self, "first"):
            self.first = fake.detach().clone()
        return fake, label


def train(name, folder, rank=None, world=1):
    arguments = copy.deepcopy(CASES[name])
    module = tiny_gan(cls=FixedNoise, **arguments).double()
    data = Joined(arguments.get("num_classes"), rank, world)
    settings = {"max_steps": 6, "max_epochs": -1, "precision": "64-true", "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    trainer(folder, **settings).fit(module, datamodule=data)
    return module


def work(rank, world, folder):
    os.environ["LIGHTNING_GEN_CACHE"] = os.path.join(folder, "cache")
    trained = {name: weights(train(name, folder, rank, world)) for name in CASES}
    torch.save(trained, os.path.join(folder, f"{world}-{rank}.pt"))
    os.environ["PL_GLOBAL_SEED"] = "3"
    module = tiny_gan(cls=DrawnNoise)
    ada = tiny_gan(augmentation=ADA(images=100, every=1))
    settings = {"max_steps": 2, "devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    trainer(folder, **settings).fit(module, datamodule=TinyData())
    trainer(folder, **settings).fit(ada, datamodule=TinyData())
    watched = tiny_gan(num_classes=4, norm=True)
    callbacks = [SampleGrid(every_n_steps=1, n=4), Fidelity(["fd-lenet5"], n=24, batch_size=8)]
    run = trainer(folder, **(settings | {"callbacks": callbacks, "limit_val_batches": 1.0, "max_epochs": 1}))
    run.fit(watched, datamodule=TinyData(num_classes=4))
    run.test(watched, datamodule=TinyData(num_classes=4), verbose=False)
    scores = {key: value for key, value in run.callback_metrics.items() if key.startswith("fd-")}
    torch.save({"scores": scores, "weights": weights(watched)}, os.path.join(folder, f"watched-{world}-{rank}.pt"))
    drawn = {"noise": module.first, "p": ada.augmentation.p, "sample": module.sample(4, seed=0)}
    torch.save(drawn, os.path.join(folder, f"drawn-{world}-{rank}.pt"))


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
def test_grids_and_scores_are_one_for_all_processes(folder, world):
    """The score of all processes is that of one, and the files are written once."""
    first, *others = (torch.load(folder / f"watched-{world}-{rank}.pt", weights_only=True) for rank in range(world))
    for other in others:
        assert first["scores"] == other["scores"] != {}
        # running statistics, which each process tracks of its own batches, are the first one's
        assert same(first["weights"], other["weights"])
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000001.png", "0000002.png"]
    alone = tiny_gan(num_classes=4, norm=True)
    alone.load_state_dict(first["weights"])
    evaluator = Evaluator(["fd-lenet5"], batch_size=8, cache=folder / "cache")
    evaluator.set_reference(TinyData().split("test"), name="tiny", split="test")
    (score,) = measure(alone, evaluator, 24)
    assert first["scores"][score.name].item() == pytest.approx(score.value, rel=1e-6)


@pytest.mark.slow
def test_processes_draw_different_noise_and_share_what_they_must(folder, world):
    first, *others = (torch.load(folder / f"drawn-{world}-{rank}.pt", weights_only=True) for rank in range(world))
    for other in others:
        assert not torch.equal(first["noise"], other["noise"])
        assert torch.equal(first["p"], other["p"])
        assert torch.equal(first["sample"], other["sample"])
