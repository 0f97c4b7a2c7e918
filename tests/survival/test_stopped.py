"""A run that is told to stop saves once, ends in all its processes, and goes on as if it had not been stopped."""

import signal

import pytest
from families import EPOCH, FAMILIES, configuration
from runs import assert_same, run, said

INT, TERM, USR1 = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGUSR1)
HERE = 2 * EPOCH + 2  # where no checkpoint is due


def stop_and_continue(folder, config, place, number, rank, world):
    """Run up to the signal, and on from there; return what was printed before."""
    stop = ["--trainer.callbacks+=kills.SignalAt", f"--trainer.callbacks.place={place}"]
    stop += [f"--trainer.callbacks.iteration={HERE}", f"--trainer.callbacks.number={number}"]
    stop += [f"--trainer.callbacks.rank={rank}"]
    assert run(folder, config, *stop, world=world) == [128 + number] * world, said(folder)
    before = said(folder)
    assert run(folder, config, world=world) == [0] * world, said(folder)
    return before


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nothing happened to, of one process and of two."""
    folders = {}
    for world in (1, 2):
        folders[world] = tmp_path_factory.mktemp(f"straight-{world}")
        assert run(folders[world], configuration(*FAMILIES["gan"]), world=world) == [0] * world
    return folders


@pytest.mark.parametrize(
    ("world", "rank", "number"),
    [(1, 0, INT), (1, 0, TERM), (1, 0, USR1), (2, 0, TERM), (2, 1, USR1), (2, -1, INT), (2, -1, TERM)],
)
def test_whoever_gets_the_signal_all_save_and_stop(world, rank, number, straight, tmp_path):
    before = stop_and_continue(tmp_path, configuration(*FAMILIES["gan"]), "batch", number, rank, world)
    assert before.count("saved run/checkpoints/last.ckpt") == 1
    # heard of at the end of this iteration, or of the next
    heard = next(int(word) for line in before.splitlines() if line.startswith("saved") for word in line.split()[-1:])
    assert heard in (HERE + 1, HERE + 2)
    assert "the same command continues" in before
    assert_same(straight[world], tmp_path)


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 1)])
def test_a_signal_in_a_validation(world, rank, straight, tmp_path):
    """One process stops in it, and repeats it; two finish it first."""
    config = configuration(*FAMILIES["gan"])
    config["trainer"]["val_check_interval"] = EPOCH
    stop = ["--trainer.callbacks+=kills.SignalAt", "--trainer.callbacks.place=validation"]
    stop += [f"--trainer.callbacks.iteration={EPOCH - 1}", f"--trainer.callbacks.rank={rank}"]
    assert run(tmp_path, config, *stop, world=world) == [128 + TERM] * world, said(tmp_path)
    assert run(tmp_path, config, world=world) == [0] * world, said(tmp_path)
    assert_same(straight[world], tmp_path)


def test_gradients_that_are_gathered_are_not_lost(tmp_path):
    """A signal between the batches of one iteration waits for its end."""
    config = configuration(*FAMILIES["diffusion"])
    assert run(tmp_path / "straight", config) == [0]
    before = stop_and_continue(tmp_path / "stopped", config, "batch", TERM, 0, 1)
    assert f"at iteration {HERE + 1}" in before
    assert_same(tmp_path / "straight", tmp_path / "stopped")
