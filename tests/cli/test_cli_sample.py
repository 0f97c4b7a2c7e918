"""`sample`: files, continued where they were stopped."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.checkpoints import load_module
from lightning_gen.cli import sampling
from lightning_gen.images import to_uint8


@pytest.fixture
def plain(here, fit):
    """A run of the toy without classes."""
    assert fit()[0] == 0
    return here / "runs" / "Toy"


def read_image(path):
    """Bytes (C, H, W)."""
    with Image.open(path) as image:
        array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def images_of(folder):
    return torch.stack([read_image(path) for path in sorted(folder.glob("*.png"))])


def expected(folder, n, **how):
    return to_uint8(load_module(folder).sample(n, seed=0, **how))


def test_png(plain, run):
    code, out, err = run("sample", "--ckpt_path", plain, "--n", 10, "--out", "s", "--batch_size", 4)
    assert code == 0, err
    assert out.splitlines()[-1] == "s"
    # one sample may differ in rounding by the batch it was drawn in, not its bytes here
    torch.testing.assert_close(images_of(plain.parents[1] / "s"), expected(plain, 10), rtol=0, atol=1)
    record = json.loads((plain.parents[1] / "s/samples.json").read_text())
    assert record["seed"] == 0
    assert record["weights"] == "raw"
    assert record["iterations"] == 10
    assert record["n"] == 10
    assert len(record["checkpoint_sha256"]) == 64
    assert "labels" not in record


def test_npz(trained, run):
    args = ("sample", "--ckpt_path", trained, "--n", 10, "--cond", "each", "--batch_size", 3, "--out", "s.npz")
    code, _, err = run(*args)
    assert code == 0, err
    with np.load("s.npz") as archive:
        assert set(archive.files) == {"arr_0", "label"}
        images, labels = archive["arr_0"], archive["label"]
    assert images.dtype == np.uint8
    assert images.shape == (10, 4, 4, 1)
    assert labels.tolist() == [i % 3 for i in range(10)]
    wanted = expected(trained, 10, cond=torch.from_numpy(labels))
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), wanted, rtol=0, atol=1)
    assert sorted(p.name for p in trained.parents[1].iterdir()) == ["runs", "s.npz", "s.npz.json"]
    # once more: it is there
    code, _, err = run(*args)
    assert code == 0
    assert "there already" in err


def test_formats_agree_and_default_places_are_in_the_run_folder(plain, run):
    outs = {}
    for kind in ("png", "npz", "grid"):
        code, out, err = run("sample", "--ckpt_path", plain, "--n", 4, "--format", kind)
        assert code == 0, err
        outs[kind] = out.splitlines()[-1]
        assert outs[kind].startswith("runs/Toy/samples/0000010_raw_seed0") or str(plain) in outs[kind]
    with np.load(outs["npz"]) as archive:
        array = torch.from_numpy(archive["arr_0"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(array, images_of(plain.parents[1] / outs["png"]))
    grid = read_image(outs["grid"])
    assert grid.shape[0] == 1
    assert min(grid.shape[1:]) >= 256


def test_needs_only_the_checkpoint(plain, run):
    shutil.copy(plain / "checkpoints/last.ckpt", "alone.ckpt")
    shutil.rmtree("runs")
    code, out, err = run("sample", "--ckpt_path", "alone.ckpt", "--n", 2)
    assert code == 0, err
    assert out.strip() == "samples/0000010_raw_seed0"


@pytest.mark.parametrize("out", ["s", "s.npz"])
def test_stopped_and_continued(trained, run, monkeypatch, out):
    """What was drawn before Ctrl-C is kept; the rest is the same as without it."""
    args = ["sample", "--ckpt_path", trained, "--n", 10, "--batch_size", 2]
    draw, drawn = sampling.Source.draw, []

    def stopping(self, indices, cond):
        if indices[0] >= 4:
            raise KeyboardInterrupt
        return draw(self, indices, cond)

    def counting(self, indices, cond):
        drawn.extend(indices)
        return draw(self, indices, cond)

    monkeypatch.setattr(sampling.Source, "draw", stopping)
    code, _, err = run(*args, "--out", out)
    assert code == 130
    assert "the same command continues" in err
    monkeypatch.setattr(sampling.Source, "draw", counting)
    assert run(*args, "--out", out)[0] == 0
    # sample 0 is drawn to see whether the model tells its classes
    assert drawn == [0, *range(4, 10)]
    straight = "straight" + out[1:]
    assert run(*args, "--out", straight)[0] == 0
    base = trained.parents[1]
    if out == "s":
        torch.testing.assert_close(images_of(base / out), images_of(base / straight), rtol=0, atol=0)
        first, second = (json.loads((base / name / "samples.json").read_text()) for name in (out, straight))
    else:
        with np.load(out) as a, np.load(straight) as b:
            np.testing.assert_array_equal(a["arr_0"], b["arr_0"])
        first, second = (json.loads((base / f"{name}.json").read_text()) for name in (out, straight))
    assert first == second


def test_more_samples_later(plain, run):
    assert run("sample", "--ckpt_path", plain, "--n", 3, "--out", "s")[0] == 0
    assert run("sample", "--ckpt_path", plain, "--n", 6, "--out", "s")[0] == 0
    torch.testing.assert_close(images_of(plain.parents[1] / "s"), expected(plain, 6), rtol=0, atol=1)
    code, _, err = run("sample", "--ckpt_path", plain, "--n", 2, "--out", "s")
    assert code == 2
    assert "holds 6 samples, and 2 are asked for" in err


@pytest.mark.parametrize("out", ["s", "s.npz"])
@pytest.mark.parametrize(("change", "key"), [(["--seed", 1], "seed"), (["--truncation", 0.5], "options")])
def test_samples_of_something_else_are_not_mixed(plain, run, change, key, out):
    args = ["sample", "--ckpt_path", plain, "--n", 3, "--out", out]
    assert run(*args)[0] == 0
    code, _, err = run(*args, *change)
    assert code == 2
    assert f"something else: {key} is" in err
    assert "Choose another --out" in err


def test_another_checkpoint_is_not_mixed(plain, run, fit):
    args = ["sample", "--ckpt_path", plain, "--n", 3, "--out", "s"]
    assert run(*args)[0] == 0
    assert fit("--trainer.max_epochs=3")[0] == 0
    code, _, err = run(*args)
    assert code == 2
    assert "checkpoint_sha256" in err


def test_images_of_unknown_origin_are_left_alone(plain, run, here):
    (here / "s").mkdir()
    (here / "s/000000.png").write_bytes(b"mine")
    code, _, err = run("sample", "--ckpt_path", plain, "--out", "s")
    assert code == 2
    assert "unknown origin" in err
    assert (here / "s/000000.png").read_bytes() == b"mine"


def test_classes(trained, run, here):
    for cond, labels in [("2", [2] * 5), ("0,1", [0, 1, 0, 1, 0]), ("each", [0, 1, 2, 0, 1])]:
        assert run("sample", "--ckpt_path", trained, "--n", 5, "--cond", cond, "--out", f"s{cond}")[0] == 0
        assert json.loads((here / f"s{cond}" / "samples.json").read_text())["labels"] == labels
        # the toy writes its class into the first pixel
        pixel = images_of(here / f"s{cond}")[:, 0, 0, 0].float() / 127.5 - 1
        torch.testing.assert_close(pixel, torch.tensor(labels) / 10, rtol=0, atol=0.01)


def test_classes_that_a_gan_draws_itself_are_recorded(here, run):
    tiny = ["--model.generator.channels=4", "--model.discriminator.channels=4", "--trainer.callbacks=[]"]
    code, _, err = run("fit", "-c", "gan/digits", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false", *tiny)
    assert code == 0, err
    assert run("sample", "--ckpt_path", "runs/gan/digits", "--n", 20, "--out", "s")[0] == 0
    labels = json.loads((here / "s/samples.json").read_text())["labels"]
    module = load_module("runs/gan/digits")
    torch.testing.assert_close(images_of(here / "s"), to_uint8(module.sample(20, seed=0)), rtol=0, atol=1)
    again = module.sample(20, seed=0, cond=torch.tensor(labels))
    torch.testing.assert_close(images_of(here / "s"), to_uint8(again), rtol=0, atol=1)
    assert len(set(labels)) > 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--cond", "3"], "the classes are 0 to 2; given was 3"),
        (["--cond", "-1"], "given was -1"),
        (["--cond", "eech"], "Did you mean 'each'?"),
        (["--steps", "5"], "has no option --steps for its samples; its options are --truncation"),
        (["--truncaton", "5"], "Did you mean 'truncation'?"),
        (["--weights", "ema"], "no option --weights"),
        (["--sede", "1"], "Did you mean --seed?"),
        (["--format", "gif"], "invalid choice: 'gif'"),
        (["--n", "0"], "1 or more"),
        (["--format", "npz", "--out", "x.png"], "--out x.png names something else"),
        (["--import", "no_such_module"], "there is no such module"),
        (["stray"], "'stray' is not understood"),
    ],
)
def test_wrong_options(trained, run, args, said):
    code, _, err = run("sample", "--ckpt_path", trained, *args)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err


def test_cond_of_a_model_without_classes(plain, run):
    code, _, err = run("sample", "--ckpt_path", plain, "--cond", "1")
    assert code == 2
    assert "this model has no classes" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(plain, run):
    code, _, err = run("sample", "--ckpt_path", plain, "--device", "cuda")
    assert code == 2
    assert "no CUDA device" in err


def test_missing_and_damaged_checkpoints(plain, run, here):
    code, _, err = run("sample", "--ckpt_path", "nothing")
    assert code == 1
    assert "There is no checkpoint or run folder nothing" in err
    (here / "empty").mkdir()
    assert "holds no checkpoint" in run("sample", "--ckpt_path", "empty")[2]
    path = plain / "checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    code, _, err = run("sample", "--ckpt_path", path)
    assert code == 1
    assert "is cut short" in err


def test_classes_of_ones_own_are_imported_on_request(plain, run, monkeypatch):
    module = sys.modules["toy"]
    monkeypatch.delitem(sys.modules, "toy")
    code, _, err = run("sample", "--ckpt_path", plain, "--n", 1)
    assert code == 1
    assert "--import toy" in err
    monkeypatch.setattr("importlib.import_module", lambda name: sys.modules.setdefault(name, module))
    assert run("sample", "--ckpt_path", plain, "--n", 1, "--import", "toy")[0] == 0


def test_full_disk(plain, run, monkeypatch):
    import errno

    from lightning_gen.cli import sample_files

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample_files, "write_png", refuse)
    code, _, err = run("sample", "--ckpt_path", plain, "--n", 2, "--out", "s")
    assert code == 1
    assert "The disk is full" in err
    assert "the same command continues" in err
