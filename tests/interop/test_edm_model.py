"""Models of EDM's pickles against the paper's formulas (table 1), and through the command line."""

import math
import pickle
import warnings

import pytest
import torch
from edm_nets import EDMPrecond, Persistence, SongUNet, persistent
from torch import nn

from lightning_gen.checkpoints import load_module
from lightning_gen.cli import main
from lightning_gen.diffusion.denoiser import Denoiser
from lightning_gen.diffusion.paths import EDM, VP
from lightning_gen.diffusion.solvers import Heun
from lightning_gen.interop import load_edm
from lightning_gen.networks.denoiser import Condition

SMALL = {
    "img_resolution": 8,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channel_mult_emb": 2,
}


@persistent
class VPPrecond(nn.Module):
    def __init__(self, img_resolution, img_channels, label_dim=0, beta_d=19.9, beta_min=0.1, M=1000, **more):
        super().__init__()
        self.model = SongUNet(
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels,
            label_dim=label_dim,
            **more,
        )


VEPrecond = type("VEPrecond", (VPPrecond,), {})


def saved(path, network):
    with Persistence(path.with_name("executed")) as _, open(path, "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # storages of torch on their way out
        pickle.dump({"ema": network}, file)
    return path


def made(kind, **more):
    torch.manual_seed(0)
    network = kind(**{**SMALL, "img_channels": 3, **more}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1.0)
    return network


def images(module, network, x, sigma, label=None):
    """What ours expects at these noise levels of x = x_0 + sigma noise, and the inner network of the other one."""
    t = module.path.time(sigma)
    level = module.path.at(t)
    cond = None if label is None else Condition(label=label)
    # the same state at our scale
    state = x * level.alpha[:, None, None, None]
    hot = None if label is None else torch.eye(4, dtype=torch.float64)[label]
    return (
        Denoiser(module.net, module.path, module.parameterization)(state, level, cond).x0,
        network.model.double(),
        hot,
    )


@pytest.mark.parametrize("more", [{}, {"label_dim": 4, "augment_dim": 9}, {"sigma_data": 1.0}])
def test_edm(tmp_path, more):
    network = made(EDMPrecond, **more)
    module = load_edm(saved(tmp_path / "net.pkl", network)).double()
    assert isinstance(module.path, EDM)
    assert isinstance(module.solver, Heun)
    assert module.sampling_steps == 18
    assert (module.augmentation is not None) == ("augment_dim" in more)
    x, sigma = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0.01, 0.7, 60.0], dtype=torch.float64)
    label = torch.tensor([0, 3, 1]) if "label_dim" in more else None
    ours, inner, hot = images(module, network, x, sigma, label)
    s, data = sigma[:, None, None, None], more.get("sigma_data", 0.5)
    total = (s**2 + data**2).sqrt()
    expected = data**2 / total**2 * x + s * data / total * inner(x / total, sigma.log() / 4, hot)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("more", [{}, {"beta_d": 10.0, "beta_min": 0.2, "M": 500}])
def test_vp(tmp_path, more):
    network = made(VPPrecond, **more)
    module = load_edm(saved(tmp_path / "net.pkl", network)).double()
    assert isinstance(module.path, VP)
    x, sigma = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0.01, 0.7, 60.0], dtype=torch.float64)
    beta_d, beta_min, m = more.get("beta_d", 19.9), more.get("beta_min", 0.1), more.get("M", 1000)
    sigma = sigma.clamp(max=math.sqrt(math.exp(beta_d / 2 + beta_min) - 1))
    ours, inner, _ = images(module, network, x, sigma)
    t = ((beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt() - beta_min) / beta_d
    s = sigma[:, None, None, None]
    expected = x - s * inner(x / (s**2 + 1).sqrt(), (m - 1) * t)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_mapped_is_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match="preconditioning of EDM that can be mapped 'VEPrecond'; allowed are: EDMPrecond"
    ):
        load_edm(saved(tmp_path / "net.pkl", made(VEPrecond)))
    with pytest.raises(ValueError, match="told 6 numbers of the augmentation; known are the 9"):
        load_edm(saved(tmp_path / "net.pkl", made(EDMPrecond, augment_dim=6)))


def test_through_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "net.pkl", made(EDMPrecond, label_dim=4, augment_dim=9))
    assert main(["convert", "--from", "edm", "net.pkl", "--out", "edm.ckpt"]) == 0, capsys.readouterr().err
    module, again = load_edm("net.pkl"), load_module("edm.ckpt")
    assert torch.equal(again.sample(2, seed=0, steps=3, cond=2), module.sample(2, seed=0, steps=3, cond=2))
    args = ["sample", "--ckpt_path", "edm.ckpt", "--n", "4", "--steps", "2", "--cond", "each", "--out", "grid.png"]
    assert main(args) == 0, capsys.readouterr().err
    assert (tmp_path / "grid.png").is_file()
    (tmp_path / "no.pkl").write_bytes(b"nothing")
    assert main(["convert", "--from", "edm", "no.pkl", "--out", "other.ckpt"]) == 1
    assert "no.pkl is no EDM pickle, or broken" in capsys.readouterr().err
    assert not (tmp_path / "other.ckpt").exists()
