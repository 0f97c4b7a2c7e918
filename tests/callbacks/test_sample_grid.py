"""Grids of the same samples at the iterations asked for, on disk and in loggers."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tiny import TinyData, tiny_gan, trainer
from torch import nn

from lightning_gen.callbacks import IterationBar, SampleGrid
from lightning_gen.callbacks.sample_grid import draw_grid
from lightning_gen.images import enlarge, image_grid, to_uint8


@pytest.mark.parametrize("n_dis", [1, 3])
def test_grids_are_drawn_every_so_many_iterations_and_at_the_end(tmp_path, n_dis):
    run = trainer(tmp_path, max_steps=7, max_epochs=-1, callbacks=[SampleGrid(every_n_steps=3, n=9)])
    run.fit(tiny_gan(n_dis=n_dis), datamodule=TinyData())
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["0000003.png", "0000006.png", "0000007.png"]


def test_a_grid_shows_the_samples_of_the_seed(tmp_path):
    run = trainer(tmp_path, max_steps=2, callbacks=[SampleGrid(every_n_steps=2, n=9, seed=5)])
    module = tiny_gan()
    run.fit(module, datamodule=TinyData())
    shown = np.asarray(Image.open(tmp_path / "samples" / "0000002.png"))
    expected = enlarge(image_grid(to_uint8(module.sample(9, seed=5)), columns=3))[0]
    assert np.array_equal(shown, expected.numpy())


def test_classes_stand_in_columns():
    module = tiny_gan(num_classes=4)
    grid = draw_grid(module, 16, seed=0)
    images = to_uint8(module.sample(16, seed=0, cond=torch.arange(16) % 4))
    assert torch.equal(grid, enlarge(image_grid(images, columns=4)))


def test_loggers_that_take_pictures_get_them(tmp_path):
    loggers = [CSVLogger(tmp_path, name="", version=""), TensorBoardLogger(tmp_path, name="", version="tb")]
    run = trainer(tmp_path, max_steps=2, logger=loggers, callbacks=[SampleGrid(every_n_steps=1, n=4)])
    run.fit(tiny_gan(), datamodule=TinyData())
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = events.EventAccumulator(str(tmp_path / "tb"))
    log.Reload()
    assert [event.step for event in log.Images("samples")] == [1, 2]


def test_a_module_without_images_is_refused():
    with pytest.raises(TypeError, match="GenerativeModule"):
        draw_grid(nn.Linear(1, 1), 4, 0)
    with pytest.raises(ValueError, match="1 or more"):
        SampleGrid(every_n_steps=0)


@pytest.mark.parametrize(("n_dis", "arguments", "total"), [(1, {"max_steps": 5}, 5), (2, {"max_epochs": 3}, 12)])
def test_the_bar_counts_iterations(tmp_path, n_dis, arguments, total):
    bar = IterationBar()
    run = trainer(tmp_path, callbacks=[bar], enable_progress_bar=True, **arguments)
    run.fit(tiny_gan(n_dis=n_dis), datamodule=TinyData())
    assert bar._bar.total == bar._bar.n == run.global_step == total
