"""`convert`: a checkpoint out of a folder of diffusers and the folder again; diffusers itself is never imported."""

import json
import sys

import pytest
import torch
from conftest import QUIET
from safetensors.torch import load_file

from lightning_gen.checkpoints import load_module
from lightning_gen.diffusion import DDPM, Clip, DiscreteVP, Leading, Linspace, V
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.interop import load_diffusers, save_diffusers
from lightning_gen.networks.unet import UNet
from lightning_gen.posthoc import find_snapshots, reconstruct

NET = {"image_shape": [1, 8, 8], "channels": 8, "channel_multipliers": [1, 2], "blocks": 1, "norm_groups": 4}
NET |= {"norm_group_width": 1}


@pytest.fixture(autouse=True)
def _without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)


@pytest.fixture
def folder(here):
    """A folder of diffusers in the working folder."""
    torch.manual_seed(0)
    net = UNet(**NET, num_classes=3, null_class=True)
    torch.nn.init.normal_(net.output.weight, std=0.1)
    module = Diffusion(net, DiscreteVP(20), V(), solver=DDPM(), grid=Leading(), threshold=Clip(), sampling_steps=5)
    save_diffusers(module, here / "theirs")
    return here / "theirs"


@pytest.fixture
def checkpoint(folder, run):
    code, out, err = run("convert", "--from", "diffusers", "theirs", "--out", "model.ckpt")
    assert code == 0, err
    assert out == "model.ckpt\n"
    assert err == ""
    return folder.parent / "model.ckpt"


def test_a_checkpoint_that_loads_alone(folder, checkpoint):
    ours, theirs = load_module(checkpoint), load_diffusers(folder)
    for name in ("path", "parameterization", "grid", "solver", "threshold"):
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    assert ours.path.steps == 20
    assert ours.sampling_steps == 5
    assert torch.equal(ours.sample(3, seed=0, cond=1), theirs.sample(3, seed=0, cond=1))
    assert ours.images_seen == 0


def test_sampling_from_it(checkpoint, run):
    args = ("--n", 6, "--cond", "each", "--steps", 4, "--solver", "ddim", "--guidance", 2)
    code, _, err = run("sample", "--ckpt_path", checkpoint, *args, "--out", "grid.png")
    assert code == 0, err
    assert (checkpoint.parent / "grid.png").is_file()


def test_scoring_it(checkpoint, run):
    args = ("--data", "digits", "--metrics", "fd-lenet5", "--n", 32, "--batch_size", 16)
    code, out, err = run("evaluate", "--ckpt_path", checkpoint, *args)
    assert code == 0, err
    assert "fd-lenet5" in out


def test_training_from_it(checkpoint, run):
    flags = [f"--model.net.{key}={json.dumps(value)}" for key, value in NET.items()]
    code, _, err = run(
        "fit", "--model=Diffusion", "--model.net=UNet", *flags, "--model.net.num_classes=3",
        "--model.path=DiscreteVP", "--model.path.steps=20", "--model.sampling_steps=4",
        f"--model.init_weights={checkpoint}", "--model.label_prior=uniform", "--data=ToyData", "--data.size=8",
        "--trainer.accelerator=cpu", "--trainer.max_steps=1", "--model.optimizer=DiffusionAdamW",
        "--model.optimizer.lr=1e-9", *QUIET,
    )  # fmt: skip
    assert code == 0, err
    trained = load_module(checkpoint.parent / "runs/Diffusion")
    start = load_module(checkpoint)
    for name, value in start.net.state_dict().items():
        torch.testing.assert_close(trained.net.state_dict()[name], value, rtol=0, atol=1e-6)


def test_and_out_again(folder, checkpoint, run):
    code, out, err = run("convert", "--to", "diffusers", "--ckpt_path", checkpoint, "--out", "again")
    assert code == 0, err
    assert out == "again\n"
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 3
    for path in files:
        assert (folder / path).read_bytes() == (folder.parent / "again" / path).read_bytes(), path


def test_weights_by_name(checkpoint, run):
    code, _, err = run("convert", "--to", "diffusers", "--ckpt_path", checkpoint, "--weights", "raw", "--out", "raw")
    assert code == 0, err
    assert "conv_in.bias" in load_file("raw/unet/diffusion_pytorch_model.safetensors")
    code, _, err = run("convert", "--to", "diffusers", "--ckpt_path", checkpoint, "--weights", "ema", "--out", "ema")
    assert code == 2
    assert "weights" in err
    assert not (checkpoint.parent / "ema").exists()


def test_what_is_nearly_the_same_is_refused_or_told_of(folder, run):
    scheduler = folder / "scheduler/scheduler_config.json"
    content = json.loads(scheduler.read_text()) | {"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}
    scheduler.write_text(json.dumps(content))
    code, _, err = run("convert", "--from", "diffusers", "theirs", "--out", "model.ckpt")
    assert code == 1
    assert "DDIMScheduler with timestep_spacing='linspace' cannot be mapped" in err
    assert "Traceback" not in err
    code, _, err = run("convert", "--from", "diffusers", "theirs", "--nearest", "--out", "model.ckpt")
    assert code == 0, err
    assert err.count("note: DDIMScheduler with timestep_spacing='linspace'") == 1
    assert type(load_module("model.ckpt").grid) is Linspace
    code, _, err = run("convert", "--to", "diffusers", "--ckpt_path", "model.ckpt", "--out", "again")
    assert code == 1
    assert "the grid Linspace" in err


def test_the_last_class_may_stand_for_none(folder, run):
    config = folder / "unet/config.json"
    content = json.loads(config.read_text())
    del content["_null_class"]
    config.write_text(json.dumps(content))
    for flags, classes in (((), 4), (("--null_class",), 3)):
        code, _, err = run("convert", "--from", "diffusers", "theirs", *flags, "--out", f"{classes}.ckpt")
        assert code == 0, err
        assert load_module(f"{classes}.ckpt").num_classes == classes


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "either --from FORMAT PATH, or --to FORMAT"),
        (["--from", "difusers", "x", "--out", "y.ckpt"], "given was 'difusers'. Did you mean 'diffusers'?"),
        (["--from", "diffusers", "x"], "--out says where to write"),
        (["--from", "diffusers"], "--from"),
        (["--to", "diffusers", "--out", "y"], "--ckpt_path names what goes --to"),
        (["--from", "edm", "x", "--ckpt_path", "z", "--out", "y.ckpt"], "--ckpt_path names what goes --to"),
        (["--from", "edm", "x", "--weights", "ema", "--out", "y.ckpt"], "--weights says which weights go --to"),
        (["--from", "edm", "x", "--null_class", "--out", "y.ckpt"], "--null_class is about a U-Net --from diffusers"),
        (["--from", "ema", "x", "--out", "y.ckpt"], "--sigma_rel says how wide"),
        (["--from", "ema", "x", "--sigma_rel", "wide", "--out", "y.ckpt"], "--sigma_rel"),
        (["--from", "edm", "x", "--sigma_rel", "0.1", "--out", "y.ckpt"], "is about averages, --from ema"),
        (["--from", "edm", "x", "--outt", "y.ckpt"], "Did you mean --out?"),
        (["--from", "diffusers", "theirs", "--out", "y"], "checkpoints are called *.ckpt"),
        (["--from", "diffusers", "theirs", "--out", "there.ckpt"], "is there already"),
        (["--to", "diffusers", "--ckpt_path", "x.ckpt", "--out", "theirs"], "is there already"),
    ],
)
def test_wrong_usage(folder, run, args, said):
    (folder.parent / "there.ckpt").write_text("")
    code, _, err = run("convert", *args)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err


def test_what_is_not_there_or_no_diffusion(folder, trained, run):
    code, _, err = run("convert", "--from", "diffusers", "nowhere", "--out", "y.ckpt")
    assert code == 1
    assert "There is no folder nowhere" in err
    code, _, err = run("convert", "--to", "diffusers", "--ckpt_path", trained, "--out", "y")
    assert code == 2
    assert "holds a Toy; a Diffusion or an Autoencoder can go out" in err
    assert "Traceback" not in err


@pytest.fixture
def averaged(here, run):
    """A run that has kept snapshots of two averages."""
    args = ["--model=Diffusion", "--model.net=UNet", "--model.ema_sigma_rels=[0.05,0.1]", "--data=DigitsDataModule"]
    args += [f"--model.net.{key}={value}" for key, value in NET.items()]
    args += ["--trainer.max_steps=6", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"]
    args += ["--trainer.callbacks=EMASnapshots", "--trainer.callbacks.every_n_images=128", *QUIET]
    code, _, err = run("fit", *args)
    assert code == 0, err
    return here / "runs" / "Diffusion"


def test_an_average_of_another_width(averaged, run):
    code, out, err = run("convert", "--from", "ema", averaged, "--sigma_rel", 0.07, "--out", "wider.ckpt")
    assert code == 0, err
    assert out == "wider.ckpt\n"
    module, before = load_module("wider.ckpt"), load_module(averaged)
    expected = reconstruct(find_snapshots(averaged), sigma_rel=0.07)
    for name, value in module.net.state_dict().items():
        assert torch.equal(value, expected[name])
    assert module.images_seen == before.images_seen == 6 * 64
    # drawn from whatever is asked for, it is this average
    assert torch.equal(module.sample(2, seed=0, steps=2), module.sample(2, seed=0, steps=2, weights="raw"))
    assert not torch.equal(module.sample(2, seed=0, steps=2), before.sample(2, seed=0, steps=2))


def test_averages_that_cannot_be_made(averaged, trained, run):
    for path, more, said, expected in (
        (averaged, ["--sigma_rel", 0.5], "at most 0.2887", 2),
        (averaged, ["--sigma_rel", 0.1, "--images", 10**9], "lies between snapshots", 2),
        (trained, ["--sigma_rel", 0.1], "has no snapshots of averages", 1),
    ):
        code, _, err = run("convert", "--from", "ema", path, *more, "--out", "x.ckpt")
        assert code == expected, err
        assert said in err
        assert "Traceback" not in err
