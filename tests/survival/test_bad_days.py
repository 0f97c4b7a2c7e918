"""What happens around a run, and is no fault of its own: each ends with a message, and costs nothing."""

import os
import time

import pytest
import torch
from families import EPOCH, EVERY, FAMILIES, configuration, part
from runs import assert_same, begin, end, kept, run, said

from lightning_gen.images import write_png

HERE = EPOCH + 3


def at(kind, **arguments):
    """Write the options of a callback that does something at an iteration."""
    options = [f"--trainer.callbacks+=kills.{kind}", f"--trainer.callbacks.iteration={HERE}"]
    return options + [f"--trainer.callbacks.{name}={value}" for name, value in arguments.items()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Runs that nothing happened to, of one process, of one with two that load, and of two."""
    folders = {}
    for world, workers in ((1, 0), (1, 2), (2, 0)):
        folders[world, workers] = tmp_path_factory.mktemp("straight")
        config = configuration(*FAMILIES["gan"], workers)
        assert run(folders[world, workers], config, world=world) == [0] * world
    return folders


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_tells_the_other_why(rank, straight, tmp_path):
    config = configuration(*FAMILIES["gan"])
    started = time.monotonic()
    codes = run(tmp_path, config, *at("RaiseAt", place="batch", rank=rank), world=2)
    assert time.monotonic() - started < 60
    assert codes == [1, 1], said(tmp_path)
    assert "the seventh seal is broken" in said(tmp_path)
    if rank == 1:
        assert "process 1 of 2: ValueError: the seventh seal is broken" in said(tmp_path)
    assert run(tmp_path, config, world=2) == [0, 0], said(tmp_path)
    assert_same(straight[2, 0], tmp_path)


def test_a_process_that_is_killed_stops_the_other(straight, tmp_path):
    config = configuration(*FAMILIES["gan"])
    started = time.monotonic()
    codes = run(tmp_path, config, *at("KillAt", place="batch", rank=1), world=2)
    assert time.monotonic() - started < 60
    assert codes == [1, -9], said(tmp_path)
    assert "another process of this run has ended" in said(tmp_path)
    assert run(tmp_path, config, world=2) == [0, 0], said(tmp_path)
    assert_same(straight[2, 0], tmp_path)


def test_a_process_that_loads_is_killed(straight, tmp_path):
    config = configuration(*FAMILIES["gan"], workers=2)
    assert run(tmp_path, config, *at("KillWorkerAt", place="batch_end")) == [1]
    assert "run out of memory, and the system has ended it" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert run(tmp_path, config) == [0], said(tmp_path)
    assert_same(straight[1, 2], tmp_path)


def test_images_that_are_gone_in_the_middle_of_a_run(tmp_path):
    for i in range(120):
        image = torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        write_png(tmp_path / "images" / f"{i % 10}" / f"{i}.png", image)
    config = configuration(*FAMILIES["gan"])
    config["data"] = part("ImageFolderDataModule", path=str(tmp_path / "images"), cache="none", batch_size=16)
    assert run(tmp_path / "straight", config) == [0], said(tmp_path / "straight")
    survived = tmp_path / "survived"
    assert run(survived, config, *at("HideAt", folder=tmp_path / "images")) == [1]
    assert "cannot be read" in said(survived)
    assert ".png" in said(survived)
    assert "Traceback" not in said(survived)
    (tmp_path / "images-hidden").rename(tmp_path / "images")
    assert run(survived, config) == [0], said(survived)
    assert_same(tmp_path / "straight", survived)


def test_two_runs_in_one_folder(straight, tmp_path):
    config = configuration(*FAMILIES["gan"])
    first = begin(tmp_path, config)
    until = time.monotonic() + 60
    while not (tmp_path / "run" / ".lock").exists() and time.monotonic() < until:
        time.sleep(0.01)
    first[0].join(0.05)
    assert run(tmp_path, config) == [2]
    assert f"A run is under way in run (process {first[0].pid} on" in said(tmp_path)
    assert end(first) == [0]
    assert not (tmp_path / "run" / ".lock").exists()
    assert_same(straight[1, 0], tmp_path)


def test_a_clock_that_was_set_back(straight, tmp_path):
    """The checkpoint of the most iterations is continued from, not that of the latest date."""
    config = configuration(*FAMILIES["gan"])
    run(tmp_path, config, *at("KillAt", place="batch"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    os.utime(last, (1e9, 1e9))
    assert kept(tmp_path, "previous.ckpt")["global_step"] == EVERY
    assert run(tmp_path, config) == [0]
    assert f"continuing run from iteration {2 * EVERY} " in said(tmp_path)
    assert_same(straight[1, 0], tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, straight, tmp_path):
    config = configuration(*FAMILIES["gan"])
    run(tmp_path, config, *at("KillAt", place="batch"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    last.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    if damage == "missing":
        last.unlink()
    assert run(tmp_path, config) == [0], said(tmp_path)
    assert f"continuing run from iteration {EVERY} (checkpoints/previous.ckpt)" in said(tmp_path)
    if damage != "missing":
        assert "the run continues from an older one" in said(tmp_path)
    assert_same(straight[1, 0], tmp_path)
