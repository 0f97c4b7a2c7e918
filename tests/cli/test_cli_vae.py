"""A VAE by the command line: its traversals, a prior fitted to its latents, and as the codec of a latent model."""

import pytest
import torch
from conftest import QUIET

from lightning_gen.autoencoder import FlowPrior, GaussianMixturePrior
from lightning_gen.checkpoints import load_module
from lightning_gen.codec import TrainedCodec

NETWORKS = [
    f"--model.{name}.{argument}"
    for name in ("encoder", "decoder")
    for argument in ("image_shape=[1, 8, 8]", "hidden=[16]")
]
MODEL = ["--model=VAE", "--model.encoder=MLPEncoder", "--model.decoder=MLPDecoder", *NETWORKS, "--model.latent_dim=3"]
DATA = ["--data=DigitsDataModule", "--data.batch_size=64"]
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=8",
    "--trainer.max_epochs=-1",
    "--trainer.limit_val_batches=1",
]
SHORT += [*QUIET, "--trainer.log_every_n_steps=1", "--trainer.default_root_dir=runs/vae"]


@pytest.fixture
def vae(here, run):
    code, _, err = run(
        "fit", *MODEL, *DATA, *SHORT, "--trainer.callbacks+=TraversalGrid", "--trainer.callbacks.steps=5"
    )
    assert code == 0, err
    return here / "runs" / "vae"


def test_traversals_are_drawn(vae):
    assert [path.name for path in (vae / "traversals").iterdir()] == ["0000008.png"]


@pytest.mark.parametrize(("name", "kind"), [(None, GaussianMixturePrior), ("flow", FlowPrior)])
def test_samples_from_a_fitted_prior(vae, run, name, kind):
    args = [] if name is None else ["--prior", name]
    code, _, err = run("convert", "--from", "prior", "runs/vae", *args, "--images", 300, "--out", "fitted.ckpt")
    assert code == 0, err
    assert "log p(z)" in err
    fitted, before = load_module("fitted.ckpt"), load_module(vae)
    assert isinstance(fitted.sampling_prior, kind)
    assert bool(fitted.sampling_prior_fitted)
    assert all(
        torch.equal(value, fitted.state_dict()[key])
        for key, value in before.net.state_dict().items()
        for key in [f"net.{key}"]
    )
    assert not torch.equal(fitted.sample(4, seed=0), before.sample(4, seed=0))
    code, _, err = run("sample", "--ckpt_path", "fitted.ckpt", "--n", 4, "--out", "grid.png", "--format", "grid")
    assert code == 0, err


def test_a_run_continues_compiled(vae, run, monkeypatch):
    """How networks are computed is not what is trained: a machine with a compiler takes over from one without."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: compiled.append(net))
    longer = [argument.replace("max_steps=8", "max_steps=10") for argument in SHORT]
    traversals = ["--trainer.callbacks+=TraversalGrid", "--trainer.callbacks.steps=5"]
    code, _, err = run("fit", *MODEL, "--model.compile_network=true", *DATA, *longer, *traversals)
    assert code == 0, err
    assert "from iteration 8" in err
    assert len(compiled) == 1


def test_a_vae_is_a_codec(vae, run):
    codec = TrainedCodec("runs/vae")
    module = load_module(vae)
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    assert codec.latent_shape == (3, 1, 1)
    assert torch.equal(codec.raw(images), module.encode(images))
    assert torch.equal(codec.decode(codec.raw(images)), module.reconstruct(images))
    assert codec.described()["init_args"]["network"]["init_args"]["latents"]["init_args"]["latent_dim"] == 3
    code, out, err = run("latents", "runs/vae", "digits", "cache")
    assert code == 0, err
    assert "3 x 1 x 1" in out


def test_latent_diffusion_of_a_vae_is_one_checkpoint(vae, run):
    second = ["--model=Diffusion", "--model.net=tiny.TinyDenoiser", "--model.net.image_shape=[3, 1, 1]"]
    second += ["--model.codec=TrainedCodec", "--model.codec.checkpoint=runs/vae", "--model.sampling_steps=2"]
    short = [arg.replace("runs/vae", "runs/second") for arg in SHORT]
    code, _, err = run("fit", *second, *DATA, *short)
    assert code == 0, err
    module = load_module(vae.parent / "second")
    assert torch.equal(module.codec.network.decoder(torch.zeros(1, 3)), load_module(vae).net.decoder(torch.zeros(1, 3)))
    assert module.sample(2, seed=0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--from", "diffusers", "x", "--prior", "flow"], "--prior says what is fitted"),
        (["--from", "edm", "x", "--images", "3"], "--images is about averages"),
        (["--from", "prior", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said(here, run, args, match):
    code, _, err = run("convert", *args, "--out", "m.ckpt")
    assert code in (1, 2)
    assert match in err


def test_a_prior_of_what_is_no_vae(here, run, trained):
    code, _, err = run("convert", "--from", "prior", "runs/Toy", "--out", "m.ckpt")
    assert code == 2
    assert "fitted to the latents of a VAE" in err
