"""What a run ended with is in last.ckpt, whatever its length; the one before it is kept until it is."""

import os
import time

import pytest
import torch
from lightning.pytorch import Callback
from tiny import TinyData, same, tiny_diffusion, tiny_gan, trainer, weights

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.checkpoints import AtomicCheckpointIO, CheckpointNotWritten
from lightning_gen.gan.module import GAN


def run(folder, module=None, data=None, saver=None, resume=None, **arguments):
    saver = saver or LastCheckpoint(every_n_steps=3, dirpath=str(folder))
    callbacks = [*arguments.pop("callbacks", []), saver]
    made = trainer(folder, callbacks=callbacks, enable_checkpointing=True, **({"max_epochs": -1} | arguments))
    made.fit(module or tiny_gan(), datamodule=data or TinyData(), ckpt_path=resume)
    return made


def step(path):
    return torch.load(path, weights_only=True)["global_step"]


@pytest.mark.parametrize("steps", [6, 7])
def test_the_end_of_a_run_is_kept(tmp_path, steps):
    module = tiny_gan()
    run(tmp_path, module, max_steps=steps)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == steps
    assert same(kept["state_dict"], weights(module))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["last.ckpt", "previous.ckpt"]
    assert step(tmp_path / "previous.ckpt") == steps - (3 if steps == 6 else 1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_it_is_continued_from(tmp_path):
    last = tmp_path / "last.ckpt"
    for steps in (4, 9):
        run(tmp_path, max_steps=steps, resume=last if last.exists() else None)
        assert step(last) == steps
        assert len(list(tmp_path.glob("*.ckpt"))) == 2


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_a_run_that_ended_within_an_epoch_goes_on_in_it(tmp_path, monkeypatch):
    """With a larger limit, it is the run that had that limit from the start."""
    from lightning_gen.data import DigitsDataModule

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")

    def made():
        return tiny_diffusion(net={"image_shape": (1, 8, 8)})

    def data():
        return DigitsDataModule(batch_size=250)  # five batches an epoch

    whole, first, second = made(), made(), made()
    run(tmp_path / "whole", whole, data(), max_steps=11)
    run(tmp_path / "cut", first, data(), max_steps=7)
    run(tmp_path / "cut", second, data(), max_steps=11, resume=tmp_path / "cut" / "last.ckpt")
    assert same(weights(whole), weights(second))


def test_no_checkpoint_is_made_while_gradients_are_gathered(tmp_path):
    saved = []

    class Noting(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            saved.append(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"])
            super().save_checkpoint(checkpoint, path, storage_options)

    saver = LastCheckpoint(every_n_steps=None, every_minutes=1e-9, dirpath=str(tmp_path))
    run(tmp_path, tiny_gan(accumulate=3), saver=saver, max_steps=2, plugins=[Noting()])
    assert saved == [3, 6]


def test_by_the_clock(tmp_path, monkeypatch):
    """A second an iteration, a checkpoint every three; Lightning's own callback never makes one here."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Tick(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            now[0] += 1.0

    made = []
    saver = LastCheckpoint(every_n_steps=None, every_minutes=3 / 60, dirpath=str(tmp_path))
    monkeypatch.setattr(saver, "save", lambda run: made.append(run.global_step) or LastCheckpoint.save(saver, run))
    run(tmp_path, saver=saver, callbacks=[Tick()], max_steps=8)
    assert made == [3, 6, 8]


class Late(GAN):
    """Count something in the hook that comes last, where people keep averages."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.images_seen += 1000


def test_what_the_module_does_at_the_end_of_a_batch_is_in_it(tmp_path):
    module = tiny_gan(cls=Late)
    run(tmp_path, module, max_steps=3)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["lightning_gen"]["images_seen"] == module.images_seen == 3 * 1008
    assert "on_train_batch_end" not in module.__dict__  # as it was before


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_that_cannot_be_written_leaves_those_before(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(1, "no links here")))

    class Full(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            if checkpoint["global_step"] == 6:
                raise CheckpointNotWritten(28, "the disk is full")
            super().save_checkpoint(checkpoint, path, storage_options)

    with pytest.raises(CheckpointNotWritten):
        run(tmp_path, max_steps=9, plugins=[Full()])
    whole = [path for path in tmp_path.glob("*.ckpt") if step(path) == 3]
    assert whole
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("how", [{"every_n_steps": 0}, {"every_minutes": -1.0}])
def test_intervals_are_above_0(how):
    with pytest.raises(ValueError, match="above 0"):
        LastCheckpoint(**how)


def test_lightnings_own_by_the_clock_is_refused(tmp_path):
    """It would never save: time is looked at under automatic optimization alone."""
    import datetime

    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(dirpath=tmp_path, train_time_interval=datetime.timedelta(minutes=1))
    with pytest.raises(MisconfigurationException, match="LastCheckpoint"):
        run(tmp_path, saver=saver, max_steps=1)
