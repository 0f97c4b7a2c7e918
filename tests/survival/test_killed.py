"""A run that was killed, wherever and however often, ends with the same bits as one that was not."""

import functools
import os
import random
import signal
import time

import pytest
from families import EPOCH, EVERY, FAMILIES, STEPS, configuration
from runs import assert_same, begin, end, kept, killed_by, rows, run, said

PLACES = ["batch", "half", "batch_end", "saved", "validation", "validation_end", "epoch_end", "writing"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nothing happened to, each made when it is first asked for."""

    @functools.cache
    def made(family, workers=0, world=1):
        folder = tmp_path_factory.mktemp(f"{family}-{workers}-{world}")
        model, batches = FAMILIES[family]
        assert run(folder, configuration(model, batches, workers), world=world) == [0] * world, said(folder)
        return folder

    return made


def kill_and_continue(folder, config, place, iteration, world=1):
    """Run up to the kill, and on from there."""
    kind = "kills.KillHalfway" if place == "half" else "kills.KillAt"
    kill = [f"--trainer.callbacks+={kind}", f"--trainer.callbacks.place={place}"]
    kill += [f"--trainer.callbacks.iteration={iteration}"]
    codes = run(folder, config, *kill, world=world)
    assert killed_by(codes), said(folder)
    assert run(folder, config, world=world) == [0] * world, said(folder)


def test_the_runs_have_what_is_to_survive(straight):
    """Otherwise the comparisons below would say little."""
    content = kept(straight("gan"))
    assert content["global_step"] == STEPS
    names = content["state_dict"].keys()
    for part in ("running_mean", "_u", "tally", "generator_ema", "augmentation.p"):
        assert any(part in name for name in names), part
    assert 0 < content["state_dict"]["augmentation.p"] < 1
    assert content["lr_schedulers"]
    table = rows(straight("gan"))
    assert [row["step"] for row in table if row["loss_g"]] == [str(step) for step in range(STEPS)]
    measured = next(name for name in table[0] if name.startswith("fd-lenet5"))
    assert [int(row["step"]) for row in table if row[measured]] == list(range(EPOCH - 1, STEPS, EPOCH))


@pytest.mark.parametrize("place", PLACES)
def test_killed_at_a_place(place, straight, tmp_path):
    """The last iteration of the second epoch, behind which there are a checkpoint and a validation."""
    iteration = 2 * EPOCH - 1
    assert (iteration + 1) % EVERY == 0
    model, batches = FAMILIES["gan"]
    kill_and_continue(tmp_path, configuration(model, batches), place, iteration)
    assert_same(straight("gan"), tmp_path)
    if place in ("saved", "validation", "validation_end", "epoch_end"):
        assert f"continuing run from iteration {iteration + 1}" in said(tmp_path)


@pytest.mark.parametrize(("family", "workers"), [*((family, 0) for family in FAMILIES), ("gan", 2), ("diffusion", 2)])
def test_killed_in_the_middle_of_an_epoch(family, workers, straight, tmp_path):
    model, batches = FAMILIES[family]
    kill_and_continue(tmp_path, configuration(model, batches, workers), "batch", EPOCH + 3)
    assert f"continuing run from iteration {2 * EVERY}" in said(tmp_path)
    assert_same(straight(family), tmp_path)


@pytest.mark.parametrize(("family", "place"), [("gan", "batch"), ("gan", "saved"), ("diffusion", "validation")])
def test_two_processes_killed(family, place, straight, tmp_path):
    model, batches = FAMILIES[family]
    kill_and_continue(tmp_path, configuration(model, batches), place, 2 * EPOCH - 1, world=2)
    assert_same(straight(family, world=2), tmp_path)


@pytest.mark.parametrize(("family", "world"), [("gan", 1), ("diffusion", 2)])
def test_killed_at_random_again_and_again(family, world, straight, tmp_path):
    """At up to five moments that are nowhere in particular, more work being done each time."""
    model, batches = FAMILIES[family]
    config = configuration(model, batches)
    whole = straight(family, world=world)
    moments = random.Random(f"{family}{world}")
    killed = 0
    while killed < 5:
        processes = begin(tmp_path, config, world=world)
        table = tmp_path / "run" / "metrics.csv"
        seen = table.stat().st_mtime_ns if table.exists() else 0
        until = time.monotonic() + 120
        # from when it trains on
        while processes[0].is_alive() and time.monotonic() < until:
            if table.exists() and table.stat().st_mtime_ns != seen:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.6))
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        codes = end(processes)
        if codes == [0] * world:
            break
        killed += 1
    assert killed > 0
    assert run(tmp_path, config, world=world) == [0] * world, said(tmp_path)
    assert_same(whole, tmp_path)
