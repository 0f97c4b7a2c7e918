"""A run of sharded networks, killed or stopped: as any other, with a checkpoint that is a file, or a folder."""

import functools
import os
import signal

import pytest
import runs
import torch
from families import EPOCH, EVERY, SHAPE, configuration, diffusion, part
from runs import assert_same, kept, killed_by, said

from lightning_gen import load_module
from lightning_gen.checkpoints import checkpoints_in, find_checkpoint

FILE, FOLDER = "fsdp2", "fsdp2_distributed_checkpoints"
CONFIG = configuration(
    diffusion(net=part("DiT", image_shape=SHAPE, width=16, depth=2, heads=2, num_classes=10), accumulate=1),
    max_steps=3 * EVERY,
    limit_val_batches=1,
    num_sanity_val_steps=0,
    callbacks=[part("LastCheckpoint", every_n_steps=EVERY)],
)

# every layer is an exchange, and the processes of a busy machine wait for each other
run = functools.partial(runs.run, patience=240)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing happened to, of each kind."""
    folders = {}
    for strategy in (FILE, FOLDER):
        folders[strategy] = tmp_path_factory.mktemp(strategy)
        codes = run(folders[strategy], CONFIG, world=2, strategy=strategy)
        assert codes == [0, 0], said(folders[strategy])
    return folders


@pytest.mark.slow
def test_a_folder_holds_what_a_file_does(straight):
    """Whatever reads the one reads the other: the model, and the newest of a run folder."""
    assert (straight[FOLDER] / "run" / "checkpoints" / "last.ckpt").is_dir()
    assert (straight[FOLDER] / "run" / "checkpoints" / "previous.ckpt").is_dir()
    assert_same(straight[FILE], straight[FOLDER])
    modules = [load_module(straight[strategy] / "run") for strategy in (FILE, FOLDER)]
    assert modules[0].images_seen == modules[1].images_seen > 0
    assert torch.equal(modules[0].sample(2, seed=0), modules[1].sample(2, seed=0))
    for strategy in (FILE, FOLDER):
        folder = straight[strategy] / "run"
        assert find_checkpoint(folder).name == "last.ckpt"
        assert [found.path.name for found in checkpoints_in(folder)] == ["last.ckpt", "previous.ckpt"]
        assert "peak resident memory: " in said(straight[strategy])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FILE, FOLDER])
def test_killed_while_a_checkpoint_is_written(strategy, straight, tmp_path):
    """What is half written has no name yet; the run goes on from the one before."""
    iteration = 2 * EVERY - 1
    kill = ["--trainer.callbacks+=kills.KillAt", "--trainer.callbacks.place=writing"]
    kill += [f"--trainer.callbacks.iteration={iteration}"]
    assert killed_by(run(tmp_path, CONFIG, *kill, world=2, strategy=strategy)), said(tmp_path)
    left = os.listdir(tmp_path / "run" / "checkpoints")
    assert any(name.endswith(".partial") for name in left)
    assert find_checkpoint(tmp_path / "run").name == ("previous.ckpt" if strategy == FOLDER else "last.ckpt")
    assert run(tmp_path, CONFIG, world=2, strategy=strategy) == [0, 0], said(tmp_path)
    assert f"from iteration {EVERY} " in said(tmp_path)
    assert_same(straight[strategy], tmp_path)


@pytest.mark.slow
def test_stopped(straight, tmp_path):
    """One process is told; both save their parts and stop."""
    number = int(signal.SIGTERM)
    stop = ["--trainer.callbacks+=kills.SignalAt", "--trainer.callbacks.place=batch", "--trainer.callbacks.rank=1"]
    stop += [f"--trainer.callbacks.iteration={EPOCH + 2}", f"--trainer.callbacks.number={number}"]
    assert run(tmp_path, CONFIG, *stop, world=2, strategy=FOLDER) == [128 + number] * 2, said(tmp_path)
    assert said(tmp_path).count("saved run/checkpoints/last.ckpt") == 1
    assert run(tmp_path, CONFIG, world=2, strategy=FOLDER) == [0, 0], said(tmp_path)
    assert_same(straight[FOLDER], tmp_path)


@pytest.mark.slow
def test_a_folder_goes_on_as_a_file_on_one_process(straight, tmp_path):
    """The newest is a folder, and the run's next checkpoints are files in its place."""
    from shutil import copytree

    copytree(straight[FOLDER], tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, CONFIG, "--trainer.max_steps=14") == [0], said(tmp_path)
    assert kept(tmp_path)["global_step"] == 14
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
