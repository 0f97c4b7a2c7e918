"""What the base class does for every family."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from tiny import TinyData, TinyImages, tiny_gan, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_gen.gan.module import GAN
from lightning_gen.images import from_uint8


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_bytes_become_floats_of_the_modules_precision(tmp_path, precision, dtype):
    seen = []

    class Watch(GAN):
        def training_step(self, batch, batch_idx):
            seen.append(batch["image"])
            super().training_step(batch, batch_idx)

    trainer(tmp_path, max_steps=1, precision=precision).fit(tiny_gan(cls=Watch), datamodule=TinyData())
    assert seen[0].dtype == dtype
    assert torch.equal(seen[0], from_uint8(TinyImages(8).images).to(dtype))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_batches_that_are_no_dicts_are_refused(tmp_path):
    pairs = DataLoader(TensorDataset(torch.zeros(8, 1, 4, 4), torch.zeros(8)), batch_size=4)
    with pytest.raises(MisconfigurationException, match=r"dicts such as .*gave a list"):
        trainer(tmp_path, max_steps=1).fit(tiny_gan(), pairs)


def test_hyperparameters_are_plain_data():
    module = tiny_gan(loss="hinge", n_dis=3, ema_half_lives=[10], optimizer_g=lambda p: torch.optim.SGD(p, lr=0.1))
    assert module.hparams["n_dis"] == 3
    assert module.hparams["loss"] == "hinge"
    assert not {"generator", "discriminator", "optimizer_g"} & set(module.hparams)


def test_a_module_built_in_python_loads_with_its_networks(tmp_path):
    module = tiny_gan(n_dis=2, ema_half_lives=[10])
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, datamodule=TinyData())
    run.save_checkpoint(tmp_path / "run.ckpt")
    parts = {"generator": tiny_gan(seed=1).generator, "discriminator": tiny_gan(seed=1).discriminator}
    loaded = GAN.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True, **parts)
    assert loaded.n_dis == 2
    assert loaded.iterations == 2
    assert loaded.images_seen == 16
    assert loaded.training_seconds == pytest.approx(module.training_seconds, abs=1.0)
    assert torch.equal(loaded.sample(4, seed=0), module.sample(4, seed=0))


def test_a_run_without_a_seed_keeps_the_one_it_began_with(tmp_path):
    module = tiny_gan()
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, datamodule=TinyData())
    run.save_checkpoint(tmp_path / "run.ckpt")
    torch.manual_seed(987)
    resumed = tiny_gan(seed=5)
    resumed.on_load_checkpoint(torch.load(tmp_path / "run.ckpt", weights_only=True))
    assert resumed.seed == module.seed


def test_a_given_seed_wins(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    assert tiny_gan().seed == 42


def test_iterations_are_seeded_by_rank_and_number(tmp_path):
    """The same latents whatever was drawn before, and others in every iteration."""
    drawn = []

    class Watch(GAN):
        def _fakes(self, batch):
            drawn.append(torch.rand(1).item())
            return super()._fakes(batch)

    for noise in (3, 1000):
        torch.rand(noise)
        module = tiny_gan(cls=Watch)
        module._seed = 11
        trainer(tmp_path, max_steps=4).fit(module, datamodule=TinyData())
    assert drawn[:8] == drawn[8:]
    assert len(set(drawn)) == 8


@pytest.mark.parametrize("options", [{"find_unused_parameters": False}, {"static_graph": True}])
def test_a_strategy_that_cannot_train_it_is_refused(options):
    module = tiny_gan()
    module._trainer = type("Stub", (), {"strategy": DDPStrategy(**options), "datamodule": None})()
    with pytest.raises(MisconfigurationException, match="ddp_find_unused_parameters_true"):
        module.setup("fit")


def test_plain_ddp_is_told_of_unused_parameters():
    module = tiny_gan()
    strategy = DDPStrategy()
    module._trainer = type("Stub", (), {"strategy": strategy, "datamodule": None})()
    module.setup("fit")
    assert strategy._ddp_kwargs["find_unused_parameters"] is True
