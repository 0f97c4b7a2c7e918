"""`evaluate`: scores with their protocol."""

import json

import numpy as np
import pytest
import torch

from lightning_gen.checkpoints import load_module
from lightning_gen.data import DigitsDataModule
from lightning_gen.images import to_uint8, write_png
from lightning_gen.metrics import Evaluator


@pytest.fixture
def cache(here, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(here / "cache"))


@pytest.fixture
def digits(here, run, cache):
    """A GAN of one iteration on the digits."""
    tiny = ["--model.generator.channels=4", "--model.discriminator.channels=4", "--trainer.callbacks=[]"]
    code, _, err = run("fit", "-c", "gan/digits", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false", *tiny)
    assert code == 0, err
    return here / "runs/gan/digits"


def test_checkpoint(digits, run):
    args = ["evaluate", "--ckpt_path", digits, "--n", 100, "--metrics", "fd-lenet5,class-accuracy"]
    code, out, err = run(*args)
    assert code == 0, err
    assert "reference: digits (named by the checkpoint), split test, images 1x8x8" in out
    report = json.loads((digits / "results.json").read_text())
    assert {"scores", "command", "seconds", "environment", "checkpoint_sha256"} <= set(report)
    names = list(report["scores"])
    assert len(names) == 2
    score = report["scores"][names[0]]
    assert score["protocol"]["dataset"] == "digits"
    assert score["protocol"]["split"] == "test"
    assert score["protocol"]["num_samples"] == 100
    assert score["protocol"]["weights"] == "ema-10000"
    assert report["iterations"] == 1
    for name in names:
        assert name in out
    assert "ema-10000 weights, seed 0" in out

    # the same by hand
    module, data = load_module(digits), DigitsDataModule()
    evaluator = Evaluator(["fd-lenet5"], cache="other")
    evaluator.set_reference(data.split("test"), name="digits", split="test")
    labels = torch.arange(100) % 10
    scores = evaluator(
        lambda first, n: to_uint8(module.sample(n, seed=0, offset=first, cond=labels[first : first + n])), 100
    )
    assert score["value"] == pytest.approx(scores["fd-lenet5"].value, rel=1e-4)


def test_named_data_weights_and_split(digits, run, here):
    args = ["evaluate", "--ckpt_path", digits, "--n", 50, "--data", "digits", "--split", "train"]
    code, out, err = run(*args, "--weights", "raw", "--seed", 3, "--out", "here.json")
    assert code == 0, err
    assert "reference: digits (--data digits), split train" in out
    (score,) = json.loads((here / "here.json").read_text())["scores"].values()
    assert score["protocol"]["weights"] == "raw"
    assert score["protocol"]["seed"] == 3
    assert score["protocol"]["split"] == "train"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_files(here, run, cache, kind):
    data = DigitsDataModule()
    images = data.split("val").images
    labels = data.split("val").labels
    if kind == "npz":
        np.savez("s.npz", arr_0=images.permute(0, 2, 3, 1).numpy(), label=labels.numpy())
    else:
        for index, image in enumerate(images):
            write_png(here / "s" / f"{index:06d}.png", image)
        (here / "s/samples.json").write_text(json.dumps({"labels": labels.tolist()}))
    samples = "s.npz" if kind == "npz" else "s"
    args = ["evaluate", "--samples", samples, "--data", "digits", "--metrics", "fd-lenet5,class-accuracy"]
    code, _, err = run(*args)
    assert code == 0, err
    scores = json.loads((here / "results.json").read_text())["scores"]
    accuracy = next(value for name, value in scores.items() if name.startswith("class-accuracy"))
    assert accuracy["value"] > 0.8  # real digits
    assert accuracy["protocol"]["num_samples"] == len(images)
    assert accuracy["protocol"]["weights"] == "files"


def test_shapes_must_agree(digits, run):
    code, _, err = run("evaluate", "--ckpt_path", digits, "--data", "digits", "--data_size", 16, "--n", 20)
    assert code == 2
    assert "1x8x8" in err
    assert "1x16x16" in err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--data", "mnst"], 2, "Did you mean 'mnist'"),
        (["--metrics", "fidd"], 2, "Did you mean 'fid'"),
        (["--data", "mnist", "--data_root", "nowhere_at_all"], 1, "is not complete in"),
        (["--split", "all"], 2, "invalid choice: 'all'"),
        (["--metrics", "fid", "--weights_path", "nothing.pth"], 1, "nothing.pth"),
        (["--weights", "emma"], 2, "There are no weights 'emma'"),
        (["--seed", "-1"], 2, "a seed is 0 or more"),
        (["--splt", "test"], 2, "Did you mean --split?"),
    ],
)
def test_wrong_options(digits, run, monkeypatch, args, code, said):
    from torchvision.datasets import MNIST

    def no_network(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(MNIST, "download", no_network)
    got, _, err = run("evaluate", "--ckpt_path", digits, "--n", 20, *args)
    assert got == code, err
    assert said in err
    assert "Traceback" not in err


def test_checkpoint_that_names_no_data(digits, run, here):
    path = digits / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    del content["datamodule_hyper_parameters"]
    torch.save(content, here / "x.ckpt")
    code, _, err = run("evaluate", "--ckpt_path", "x.ckpt", "--n", 20)
    assert code == 1
    assert "does not name its data" in err
    assert "--data digits | mnist" in err


def test_files_that_are_no_images(here, run, cache):
    np.savez("s.npz", arr_0=np.zeros((3, 8, 8)))
    code, _, err = run("evaluate", "--samples", "s.npz", "--data", "digits")
    assert code == 2
    assert "uint8 (N, H, W, C)" in err
    (here / "bad.npz").write_bytes(b"no")
    code, _, err = run("evaluate", "--samples", "bad.npz", "--data", "digits")
    assert code == 2
    assert "cannot be read as an npz" in err
    code, _, err = run("evaluate", "--samples", "nowhere", "--data", "digits")
    assert code == 1
    assert "nowhere" in err


def test_model_without_classes_has_no_accuracy(here, run, fit, cache):
    assert fit()[0] == 0
    code, _, err = run("evaluate", "--ckpt_path", "runs/Toy", "--n", 20, "--metrics", "class-accuracy")
    assert code == 2
    assert "class-accuracy asks" in err
