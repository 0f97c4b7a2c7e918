"""Checkpoints that are written while training goes on: whole, in order, as safe as those that are waited for."""

import threading
import time

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import TinyData, same, tiny_gan, trainer, weights

from lightning_gen import background
from lightning_gen.background import BackgroundCheckpointIO
from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.checkpoint_files import CheckpointNotWritten, load_checkpoint


@pytest.fixture
def slow(monkeypatch):
    """Let every write wait until it is told to go on."""
    gate, written = threading.Event(), background.AtomicCheckpointIO.save_checkpoint

    def waits(self, checkpoint, path, storage_options=None):
        assert gate.wait(30)
        written(self, checkpoint, path, storage_options)

    monkeypatch.setattr(background.AtomicCheckpointIO, "save_checkpoint", waits)
    return gate


def content(value):
    return {"state_dict": {"w": torch.full((3,), value)}, "nested": [{"t": torch.full((2,), value)}], "global_step": 1}


def test_what_is_written_is_what_was_saved_whatever_happens_meanwhile(tmp_path, slow):
    io, saved = BackgroundCheckpointIO(), content(1.0)
    io.save_checkpoint(saved, tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()
    saved["state_dict"]["w"].fill_(2.0)  # the next step
    saved["nested"][0]["t"].fill_(2.0)
    slow.set()
    io.wait()
    kept = load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(kept["state_dict"]["w"], torch.ones(3))
    assert torch.equal(kept["nested"][0]["t"], torch.ones(2))
    io.teardown()


def test_an_older_one_is_removed_after_the_newer_one_is_written(tmp_path, slow):
    io = BackgroundCheckpointIO()
    slow.set()
    io.save_checkpoint(content(1.0), tmp_path / "old.ckpt")
    io.wait()
    slow.clear()
    io.save_checkpoint(content(2.0), tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    time.sleep(0.05)
    assert (tmp_path / "old.ckpt").exists()
    slow.set()
    io.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]


def test_an_older_one_stays_where_the_newer_one_cannot_be_written(tmp_path):
    io = BackgroundCheckpointIO()
    io.save_checkpoint(content(1.0), tmp_path / "old.ckpt")
    (tmp_path / "file").write_text("in the way")
    io.save_checkpoint(content(2.0), tmp_path / "file" / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    with pytest.raises(CheckpointNotWritten):
        io.wait()
    io.teardown()
    assert (tmp_path / "old.ckpt").exists()


def run(folder, io, **arguments):
    saver = LastCheckpoint(every_n_steps=2, dirpath=str(folder))
    best = ModelCheckpoint(folder, filename="best-{step}", monitor="loss_d", every_n_train_steps=2, save_top_k=1)
    module = tiny_gan()
    settings = {"callbacks": [best, saver], "plugins": [io], "enable_checkpointing": True, "max_epochs": -1}
    made = trainer(folder, **settings, **({"max_steps": 7} | arguments))
    made.fit(module, datamodule=TinyData())
    return module


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_leaves_the_same_files(tmp_path, monkeypatch):
    """A write that is slower than two iterations included."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    written = background.AtomicCheckpointIO.save_checkpoint

    def takes_long(self, *arguments, **named):
        time.sleep(0.1)
        written(self, *arguments, **named)

    monkeypatch.setattr(background.AtomicCheckpointIO, "save_checkpoint", takes_long)
    left = {}
    for name, io in (("waited", background.AtomicCheckpointIO()), ("background", BackgroundCheckpointIO())):
        (tmp_path / name).mkdir()
        module = run(tmp_path / name, io)
        left[name] = {path.name: load_checkpoint(path) for path in sorted((tmp_path / name).glob("*.ckpt"))}
        assert same(left[name]["last.ckpt"]["state_dict"], weights(module))
    assert left["waited"].keys() == left["background"].keys()
    for name, kept in left["waited"].items():
        other = left["background"][name]
        assert same(kept["state_dict"], other["state_dict"])
        assert kept["global_step"] == other["global_step"]
        assert str(kept["optimizer_states"]) == str(other["optimizer_states"])
    assert not any("checkpoints" in thread.name for thread in threading.enumerate())


def test_a_run_ends_where_a_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    writes = []
    written = background.AtomicCheckpointIO.save_checkpoint

    def full(self, checkpoint, path, storage_options=None):
        writes.append(checkpoint["global_step"])
        if len(writes) > 1:
            raise CheckpointNotWritten(28, "the disk is full")
        written(self, checkpoint, path, storage_options)

    monkeypatch.setattr(background.AtomicCheckpointIO, "save_checkpoint", full)
    io = BackgroundCheckpointIO()
    saver = LastCheckpoint(every_n_steps=2, dirpath=str(tmp_path))
    made = trainer(tmp_path, callbacks=[saver], plugins=[io], enable_checkpointing=True, max_epochs=-1, max_steps=9)
    with pytest.raises(CheckpointNotWritten, match="the disk is full"):
        made.fit(tiny_gan(), datamodule=TinyData())
    assert writes == [2, 4]
    assert load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2
