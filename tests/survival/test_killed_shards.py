"""A run that reads shards, killed in the middle of an epoch, ends with the same bits as one that was not."""

import functools

import numpy as np
import pytest
from families import EPOCH, EVERY, FAMILIES, configuration, part
from PIL import Image
from runs import differing, kept, killed_by, rows, run, said

from lightning_gen.data import DigitsDataModule, ImageFolderDataModule
from lightning_gen.data.shards.writing import ShardWriter

pytest.importorskip("webdataset")
BATCH, STEPS = 16, 2 * EPOCH


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Digits in shards of unequal size: six batches to train on and a rest."""
    root = tmp_path_factory.mktemp("shards")
    digits = DigitsDataModule(seed=0)
    for split, count in (("train", EPOCH * BATCH + 5), ("val", 40), ("test", 8)):
        for number, image in zip(range(count), digits.split(split), strict=False):
            path = root / "digits" / split / str(int(image["label"])) / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image["image"][0])).save(path)
    ShardWriter(ImageFolderDataModule(str(root / "digits")), str(root / "out"), shard_mb=0.02).write()
    assert len(list((root / "out").glob("train-*.tar"))) > 6
    return root / "out"


def config_of(shards, workers=0):
    """A run whose epochs end where the shards do."""
    model, batches = FAMILIES["gan"]
    saving = part("LastCheckpoint", every_n_steps=EVERY)
    whole = {"limit_train_batches": 1.0, "limit_val_batches": 0, "max_steps": STEPS}
    config = configuration(model, batches, **whole, callbacks=[saving])
    reading = {"path": str(shards), "batch_size": BATCH, "num_workers": workers, "window": 3, "lanes": 2}
    return config | {"data": part("ShardsDataModule", **reading)}


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    """Runs that nothing happened to, each made when it is first asked for."""

    @functools.cache
    def made(world=1):
        folder = tmp_path_factory.mktemp(f"straight-{world}")
        assert run(folder, config_of(shards), world=world) == [0] * world, said(folder)
        return folder

    return made


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 2)])
def test_killed_in_the_middle_of_an_epoch(workers, world, shards, straight, tmp_path):
    """Workers read for the run that is killed and not for the other: they change nothing either."""
    config = config_of(shards, workers)
    kill = ["--trainer.callbacks+=kills.KillAt", "--trainer.callbacks.place=batch"]
    kill += [f"--trainer.callbacks.iteration={EPOCH + 3}"]
    assert killed_by(run(tmp_path, config, *kill, world=world)), said(tmp_path)
    assert run(tmp_path, config, world=world) == [0] * world, said(tmp_path)
    assert f"continuing run from iteration {2 * EVERY}" in said(tmp_path)
    assert differing(kept(straight(world)), kept(tmp_path)) == []
    assert rows(straight(world)) == rows(tmp_path)
    assert [row["step"] for row in rows(tmp_path) if row["loss_g"]] == [str(step) for step in range(STEPS)]
