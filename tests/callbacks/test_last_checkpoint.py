"""What a run ended with is in last.ckpt, whatever its length."""

import pytest
import torch
from tiny import TinyData, same, tiny_gan, trainer, weights

from lightning_gen.callbacks import LastCheckpoint


@pytest.mark.parametrize("steps", [6, 7])
def test_the_end_of_a_run_is_kept(tmp_path, steps):
    saver = LastCheckpoint(every_n_steps=3, dirpath=str(tmp_path))
    module = tiny_gan()
    run = trainer(tmp_path, max_steps=steps, max_epochs=-1, callbacks=[saver], enable_checkpointing=True)
    run.fit(module, datamodule=TinyData())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == steps
    assert same(kept["state_dict"], weights(module))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["last.ckpt", "step=6.ckpt"]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_it_is_continued_from(tmp_path):
    for steps in (4, 9):
        saver = LastCheckpoint(every_n_steps=3, dirpath=str(tmp_path))
        run = trainer(tmp_path, max_steps=steps, max_epochs=-1, callbacks=[saver], enable_checkpointing=True)
        last = tmp_path / "last.ckpt"
        run.fit(tiny_gan(), datamodule=TinyData(), ckpt_path=last if last.exists() else None)
        assert torch.load(last, weights_only=True)["global_step"] == steps
        assert len(list(tmp_path.glob("*.ckpt"))) == 2
