"""Snapshots of averages in a run: when, where, after a resumed run, and put together."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from tiny import TinyData, tiny_gan, trainer

from lightning_gen.callbacks import EMASnapshots
from lightning_gen.ema import Averages
from lightning_gen.gan import GAN
from lightning_gen.posthoc import find_snapshots, reconstruct


class PowerGAN(GAN):
    """A GAN that keeps averages with power-function profiles."""

    def __init__(self, generator, discriminator, sigma_rels=(0.05, 0.1), **arguments):
        super().__init__(generator, discriminator, **arguments)
        self.generator_ema = Averages(generator, [100], sigma_rels=sigma_rels)


class OneBatch(TinyData):
    """The same batch again and again, so that where a resumed run starts to read does not matter."""

    def split(self, name):
        images = super().split(name)
        images.images = images.images[:8].repeat(len(images) // 8, 1, 1, 1)
        return images


def run(folder, module=None, callback=None, steps=20, ckpt_path=None, **arguments):
    module = module if module is not None else tiny_gan(norm=True, cls=PowerGAN, sigma_rels=(0.05, 0.1, 0.075))
    callbacks = [callback if callback is not None else EMASnapshots(40)]
    fitted = trainer(folder, max_steps=steps, callbacks=callbacks, **arguments)
    fitted.fit(module, datamodule=OneBatch(n=2000), ckpt_path=ckpt_path)
    return module, fitted


def times(folder):
    return sorted({snapshot.images for snapshot in find_snapshots(folder)})


def test_one_every_so_many_images_and_one_at_the_end(tmp_path):
    """Batches of 8: the first iteration that goes past a multiple of 50."""
    run(tmp_path, callback=EMASnapshots(50), steps=21)
    assert times(tmp_path) == [56, 104, 152, 168]
    found = find_snapshots(tmp_path / "ema")
    assert {snapshot.sigma_rel for snapshot in found} == {0.05, 0.075, 0.1}
    assert {snapshot.network for snapshot in found} == {"generator_ema"}


def test_a_snapshot_is_the_average(tmp_path):
    module, _ = run(tmp_path)
    last = find_snapshots(tmp_path)[-1]
    assert (last.images, last.sigma_rel) == (160, 0.1)
    expected = module.generator_ema["power-0.100"].network.state_dict()
    loaded = last.load()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert last.buffers == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_run_that_ends_with_a_snapshot_writes_it_once(tmp_path, monkeypatch):
    from lightning_gen.callbacks import ema_snapshots

    written = []
    monkeypatch.setattr(ema_snapshots, "write_snapshot", lambda *args, **kwargs: written.append(args[2:4]))
    run(tmp_path)
    assert sorted(written) == [(images, width) for images in (40, 80, 120, 160) for width in (0.05, 0.075, 0.1)]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_resumed_run_has_the_snapshots_of_one_that_never_stopped(tmp_path):
    run(tmp_path / "whole")
    _, stopped = run(tmp_path / "parts", steps=12)
    stopped.save_checkpoint(tmp_path / "middle.ckpt")
    run(tmp_path / "parts", steps=20, ckpt_path=str(tmp_path / "middle.ckpt"))
    assert times(tmp_path / "whole") == [40, 80, 120, 160]
    # the one at which the first part ended
    assert times(tmp_path / "parts") == [40, 80, 96, 120, 160]
    whole, parts = (
        {(s.images, s.sigma_rel): s.load() for s in find_snapshots(tmp_path / name)} for name in ("whole", "parts")
    )
    for key, state in whole.items():
        assert [name for name in state if not torch.equal(parts[key][name], state[name])] == [], key


def test_an_average_that_was_tracked_beside_is_put_together(tmp_path):
    module, _ = run(tmp_path, callback=EMASnapshots(40), steps=100)
    direct = module.generator_ema["power-0.075"].network.state_dict()
    stored = [snapshot for snapshot in find_snapshots(tmp_path) if snapshot.sigma_rel != 0.075]
    made = reconstruct(stored, sigma_rel=0.075)
    raw = module.generator.state_dict()
    for name, value in made.items():
        if name in stored[0].buffers:
            assert torch.equal(value, raw[name])
        else:
            assert (value - direct[name]).norm() < 2e-2 * (raw[name] - direct[name]).norm(), name


def test_it_goes_where_it_is_told(tmp_path):
    run(tmp_path, callback=EMASnapshots(1000, dirpath=str(tmp_path / "there")))
    assert times(tmp_path / "there") == [160]
    assert not (tmp_path / "ema").exists()


def test_a_trial_writes_nothing(tmp_path):
    run(tmp_path, fast_dev_run=True)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    from lightning.pytorch import Trainer

    monkeypatch.setattr(Trainer, "is_global_zero", False)
    run(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_modules_without_such_averages_are_refused(tmp_path):
    for module in (tiny_gan(), tiny_gan(ema_half_lives=[100])):
        with pytest.raises(MisconfigurationException, match="ema_sigma_rels"):
            run(tmp_path, module)
    with pytest.raises(ValueError, match="1 or more"):
        EMASnapshots(0)
