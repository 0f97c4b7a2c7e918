"""An autoencoder, its cached latents and a diffusion model of them, by the command line alone."""

import shutil

import pytest
import torch
from conftest import QUIET
from PIL import Image

from lightning_gen.checkpoints import load_module
from lightning_gen.codec import Codec, TrainedCodec

SHAPE = "[1, 8, 8]"
FIRST = ["--model=Autoencoder", "--model.encoder=tiny.TinyImageEncoder", f"--model.encoder.image_shape={SHAPE}"]
FIRST += ["--model.decoder=tiny.TinyImageDecoder", f"--model.decoder.image_shape={SHAPE}"]
FIRST += ["--model.bottleneck=GaussianBottleneck", "--model.bottleneck.channels=2", "--model.ema_half_lives=[100]"]
DATA = ["--data=DigitsDataModule", "--data.batch_size=64"]
SECOND = ["--model=Diffusion", "--model.net=UNet", "--model.net.image_shape=[2, 4, 4]", "--model.net.channels=8"]
SECOND += ["--model.net.channel_multipliers=[1]", "--model.net.blocks=1", "--model.sampling_steps=2"]
CODEC = ["--model.codec=TrainedCodec", "--model.codec.checkpoint=runs/first"]
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=5",
    "--trainer.max_epochs=-1",
    "--trainer.limit_val_batches=1",
]
SHORT += [*QUIET, "--trainer.log_every_n_steps=1"]


@pytest.fixture
def first(here, run):
    code, _, err = run("fit", *FIRST, *DATA, *SHORT, "--trainer.default_root_dir=runs/first")
    assert code == 0, err
    return here / "runs" / "first"


@pytest.fixture
def second(first, run):
    code, _, err = run("fit", *SECOND, *CODEC, *DATA, *SHORT, "--trainer.default_root_dir=runs/second")
    assert code == 0, err
    return first.parent / "second"


def test_one_checkpoint_holds_all_that_sampling_needs(first, second, run):
    whole = load_module(second)
    of_first = load_module(first)
    assert type(whole.codec) is Codec
    assert torch.equal(
        whole.codec.network.decoder.outer.weight, of_first.net_ema["ema-100"].network.decoder.outer.weight
    )
    images = whole.sample(3, seed=0)
    shutil.rmtree(first)
    assert torch.equal(load_module(second).sample(3, seed=0), images)
    code, _, err = run("sample", "--ckpt_path", second, "--n", 4, "--out", "grid.png", "--format", "grid")
    assert code == 0, err
    code, out, err = run(
        "evaluate", "--ckpt_path", second, "--data", "digits", "--metrics", "fd-lenet5", "--n", 64, "--out", "r.json"
    )
    assert code == 0, err
    assert "fd-lenet5" in out


def test_the_same_command_continues_it(second, run):
    more = [arg.replace("max_steps=5", "max_steps=8") for arg in SHORT]
    code, _, err = run("fit", *SECOND, *CODEC, *DATA, *more, "--trainer.default_root_dir=runs/second")
    assert code == 0, err
    assert "continu" in err
    assert load_module(second).iterations == 8


@pytest.mark.parametrize("codec", ["gone", "another"])
def test_a_run_continues_with_the_codec_it_has(first, second, run, codec):
    """The codec's own run may be removed, or trained anew."""
    before = load_module(second)
    shutil.rmtree(first)
    if codec == "another":
        code, _, err = run("fit", *FIRST, *DATA, *SHORT, "--trainer.default_root_dir=runs/first", "--seed_everything=7")
        assert code == 0, err
    more = [arg.replace("max_steps=5", "max_steps=8") for arg in SHORT]
    again = ["fit", *SECOND, *CODEC, *DATA, *more, "--trainer.default_root_dir=runs/second"]
    code, _, err = run(*again)
    assert code == 0, err
    assert "from iteration 5" in err
    after = load_module(second)
    assert after.iterations == 8
    for name, value in before.codec.state_dict().items():
        assert torch.equal(after.codec.state_dict()[name], value), name
    # what was asked for is what the run folder says
    assert "runs/first" in (second / "config.yaml").read_text()
    code, _, err = run(*again)
    assert "is finished" in err


def test_cached_latents(first, run, here):
    code, out, err = run("latents", "runs/first", "digits", "cache", "--shard_mb", "0.02")
    assert code == 0, err
    assert "2 x 4 x 4, codec " in out
    assert TrainedCodec("runs/first").fingerprint() in out
    data = ["--data=LatentsDataModule", "--data.path=cache", "--data.images=DigitsDataModule"]
    code, _, err = run("fit", *SECOND, *CODEC, *data, *SHORT, "--trainer.default_root_dir=runs/cached")
    assert code == 0, err
    assert load_module(here / "runs" / "cached").sample(2, seed=0).shape == (2, 1, 8, 8)
    flipped = [*data, "--data.images.flip=true"]
    code, _, err = run("fit", *SECOND, *CODEC, *flipped, *SHORT, "--trainer.default_root_dir=runs/flipped")
    assert code != 0
    assert "latents ... --flip" in err
    code, out, err = run("latents", "runs/first", "digits", "mirrored", "--flip")
    assert code == 0, err
    assert "mirrored: 1" in out
    flipped[1] = "--data.path=mirrored"
    code, _, err = run("fit", *SECOND, *CODEC, *flipped, *SHORT, "--trainer.default_root_dir=runs/flipped")
    assert code == 0, err
    raw = [*CODEC, "--model.codec.weights=raw"]
    code, _, err = run("fit", *SECOND, *raw, *data, *SHORT, "--trainer.default_root_dir=runs/other")
    assert code != 0
    assert "made by another codec" in err


@pytest.mark.filterwarnings("ignore:Skipped 1 of:UserWarning")
def test_broken_files_are_left_out_where_that_is_asked_for(first, here, run):
    (here / "mine").mkdir()
    for number in range(12):
        pixels = torch.randint(0, 256, (8, 8), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(here / "mine" / f"{number:02}.png")
    (here / "mine" / "06.png").write_bytes(b"no picture")
    args = ["latents", "runs/first", "mine", "cache", "--data_size", "8"]
    code, _, err = run(*args)
    assert code != 0
    assert "06.png" in err
    shutil.rmtree(here / "cache", ignore_errors=True)
    code, out, err = run(*args, "--on_error", "skip")
    assert code == 0, err
    assert sum(int(line.split(": ")[1].split()[0]) for line in out.splitlines() if " latents in " in line) == 11


def test_a_checkpoint_of_another_class(first, second, run):
    codec = ["--model.codec=TrainedCodec", "--model.codec.checkpoint=runs/second"]
    code, _, err = run("fit", *SECOND, *codec, *DATA, *SHORT, "--trainer.default_root_dir=runs/third")
    assert code != 0
    assert "The codec is an Autoencoder or a VAE; " in err
    assert "holds a Diffusion" in err


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["latents"], "Give a codec"),
        (["latents", "nowhere", "digits", "out"], "nowhere"),
        (["latents", "a", "b", "c", "--dtype", "int8"], "dtype"),
    ],
)
def test_what_is_wrong_is_said(here, run, args, match):
    code, _, err = run(*args)
    assert code == 2 or code == 1
    assert match in err
