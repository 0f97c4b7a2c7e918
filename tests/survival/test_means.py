"""Means over an epoch in which a run was killed are those of the whole epoch, to the last bit."""

import pytest
import torch
from lightning.pytorch import Callback
from ranks import run_ranks
from tiny import Joined, TinyData, tiny_gan, trainer

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.epoch_means import gathered
from lightning_gen.gan.module import GAN

KEYS = ["mean", "late", "sum", "max", "min"]


class Logging(GAN):
    """Log in every way that Lightning reduces over an epoch."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        value = torch.rand((), generator=torch.Generator().manual_seed(10 * self.batch_number + self.global_rank))
        self.log("mean", value, on_step=False, on_epoch=True, batch_size=1 + batch_idx, sync_dist=True)
        if batch_idx > 4:  # not yet there when the run is cut
            self.log("late", value, on_step=True, on_epoch=True)
        for how in ("sum", "max", "min"):
            self.log(how, value, on_step=False, on_epoch=True, reduce_fx=how)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("mean", self.batch_number / 7, on_step=False, on_epoch=True)


class Stop(Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.batch:
            raise InterruptedError


class Keep(Callback):
    """Keep what the epochs came to."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        metrics = trainer.fit_loop.epoch_loop._results
        means = {key: metric.compute().item() for key, metric in metrics.items() if metric.meta.on_epoch}
        self.epochs.append(means)


def epochs(folder, stop=None, resume=None, rank=None, **arguments):
    module = tiny_gan(cls=Logging)
    keep = Keep()
    callbacks = [LastCheckpoint(every_n_steps=4, dirpath=str(folder)), keep]
    callbacks += [Stop(stop)] if stop is not None else []
    settings = {"max_epochs": 2, "callbacks": callbacks, "enable_checkpointing": True, "use_distributed_sampler": False}
    data = Joined(rank=rank) if rank is not None else TinyData()
    run = trainer(folder, **(settings | arguments))
    if stop is None:
        run.fit(module, datamodule=data, ckpt_path=resume)
    else:
        with pytest.raises(InterruptedError):
            run.fit(module, datamodule=data)
    return keep.epochs


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
@pytest.mark.parametrize("stop", [5, 9, 12])
def test_an_epoch_in_two_parts_has_the_means_of_one(stop, tmp_path, monkeypatch):
    """In the middle of the first epoch of eight batches, and at the beginning and in the middle of the second."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    whole = epochs(tmp_path / "whole")
    assert len(whole) == 2
    assert {key.split(".")[1] for key in whole[0]} >= set(KEYS)
    before = epochs(tmp_path / "cut", stop=stop)
    after = epochs(tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt")
    # the second part may have the end of the first epoch again, from a checkpoint at its end
    assert (before + after)[-1] == whole[-1]
    assert after[-len(whole) :] == whole[-len(after) :]


def test_what_is_not_gathered_over_the_epoch_is_not_kept(tmp_path):
    module = tiny_gan()
    saver = LastCheckpoint(every_n_steps=1, dirpath=str(tmp_path))
    run = trainer(tmp_path, max_steps=1, callbacks=[saver], enable_checkpointing=True)
    run.fit(module, datamodule=TinyData())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["lightning_gen"]["epoch_means"] == [{}]
    assert gathered(run) == [{}]


def work(rank, folder):
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    def two():
        return {"devices": 2, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}

    whole = epochs(folder / "whole", rank=rank, **two())
    epochs(folder / "cut", stop=21, rank=rank, **two())
    after = epochs(folder / "cut", resume=folder / "cut" / "last.ckpt", rank=rank, **two())
    torch.save({"whole": whole, "after": after}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_each_process_goes_on_with_its_own(tmp_path):
    run_ranks(work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for kept in (first, second):
        assert kept["after"] == kept["whole"][-1:]
    assert first["whole"] != second["whole"]  # "sum" and "max" are each one's own
