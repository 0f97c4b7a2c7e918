"""Whole autoencoders of diffusers: read as an `Autoencoder`, written from one, a codec, by the command line too."""

import pytest
import torch
from test_interop_autoencoder import ATTENTION, SMALL
from tiny import tiny_autoencoder

from lightning_gen.autoencoder import GaussianBottleneck, VectorQuantizer
from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.cli import main
from lightning_gen.codec import TrainedCodec
from lightning_gen.interop import load_diffusers, save_diffusers
from lightning_gen.networks import ConvolutionalDecoder, ConvolutionalEncoder

diffusers = pytest.importorskip("diffusers")

KINDS = {
    "AutoencoderKL": lambda: diffusers.AutoencoderKL(**{**SMALL, **ATTENTION}),
    "VQModel": lambda: diffusers.VQModel(**SMALL, num_vq_embeddings=11),
}
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@pytest.fixture(params=KINDS)
def theirs(request, tmp_path):
    torch.manual_seed(0)
    model = KINDS[request.param]().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "theirs")
    return model


def of(model, images):
    """Encode and decode by diffusers, by the likeliest latents."""
    with torch.no_grad():
        encoded = model.encode(images)
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return latents, model.decode(latents).sample


def test_a_folder_read(theirs, tmp_path):
    ours = load_diffusers(tmp_path / "theirs")
    assert isinstance(ours, Autoencoder)
    assert ours.dtype == torch.float64
    latents, images = of(theirs, IMAGES)
    torch.testing.assert_close(ours.encode(IMAGES), latents, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.reconstruct(IMAGES), images.clamp(-1, 1), rtol=0, atol=1e-10)


def test_a_folder_written(theirs, tmp_path):
    ours = load_diffusers(tmp_path / "theirs")
    save_diffusers(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", torch_dtype=torch.float64).eval()
    for first, second in zip(of(theirs, IMAGES), of(again, IMAGES), strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=1e-12)


def test_the_command_makes_a_codec_of_it_and_back(theirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    theirs.float().save_pretrained(tmp_path / "theirs")
    assert main(["convert", "--from", "diffusers", "theirs", "--out", "codec.ckpt"]) == 0
    codec = TrainedCodec("codec.ckpt")
    latents, images = of(theirs, IMAGES.float())
    torch.testing.assert_close(codec.raw(IMAGES.float()), latents, rtol=0, atol=1e-4)
    torch.testing.assert_close(codec.decode(latents), images.clamp(-1, 1), rtol=0, atol=1e-4)
    assert main(["convert", "--to", "diffusers", "--ckpt_path", "codec.ckpt", "--out", "back"]) == 0
    again = type(theirs).from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(of(again, IMAGES.float())[1], images, rtol=0, atol=1e-5)
    assert "codec.ckpt" in capsys.readouterr().out


def test_what_diffusers_has_nothing_like(tmp_path):
    with pytest.raises(ValueError, match="TinyImageEncoder is no network of diffusers"):
        save_diffusers(tiny_autoencoder(), tmp_path / "x")
    small = {"image_shape": (3, 16, 16), "channels": 8, "channel_multipliers": (1, 1), "blocks": 1, "norm_groups": 4}
    codes = VectorQuantizer(3, 5, normalized=True)
    module = Autoencoder(
        ConvolutionalEncoder(out_channels=3, **small), ConvolutionalDecoder(in_channels=3, **small), codes
    )
    with pytest.raises(ValueError, match="nothing like this VectorQuantizer"):
        save_diffusers(module, tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    kl = Autoencoder(
        ConvolutionalEncoder(out_channels=6, **small),
        ConvolutionalDecoder(in_channels=3, **small),
        GaussianBottleneck(3),
    )
    with pytest.raises(FileExistsError, match="is there already"):
        save_diffusers(kl, tmp_path / "full")
    assert not (tmp_path / "x").exists()
