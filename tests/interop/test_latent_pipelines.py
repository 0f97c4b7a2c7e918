"""Pipelines of latents against diffusers: tiny networks with random weights, in float64."""

import json

import pytest
import torch
from test_interop_folders import (
    TABLE,
    Fed,
    exact,
    our_dit,
    our_unet,
    randomized,
    rewritten,
    same,
    their_dit,
    their_unet,
)

from lightning_gen.autoencoder import Bernoulli, GaussianBottleneck, GaussianLatents, VAENet, VectorQuantizer
from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.checkpoint_files import AtomicCheckpointIO
from lightning_gen.checkpoints import load_module
from lightning_gen.codec import Codec
from lightning_gen.diffusion import DDPM, Leading
from lightning_gen.interop import load_diffusers, save_diffusers
from lightning_gen.networks import MLPDecoder, MLPEncoder
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests")
__all__ = ["exact"]  # a fixture

pytestmark = [
    # of numpy 2, where diffusers turns a tensor into an array
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 2,
    "sample_size": 64,
}
NETWORKS = {"channels": 8, "channel_multipliers": [1, 2], "blocks": 1, "norm_groups": 4}
MEAN, STD = [0.4, -1.3], [0.7, 2.1]


def their_vae(seed=5, kind="AutoencoderKL", **changes):
    return randomized(getattr(diffusers, kind)(**{**VAE, **changes}), seed)


def our_codec(size, quantized=False, quant_conv=False, seed=6):
    shape, more = (3, size, size), {"quant_channels": 2} if quantized else {}
    network = AutoencoderNet(
        ConvolutionalEncoder(shape, out_channels=2 if quantized else 4, quant_conv=quant_conv, **NETWORKS, **more),
        VectorQuantizer(2, 8) if quantized else GaussianBottleneck(2),
        ConvolutionalDecoder(shape, in_channels=2, post_quant_conv=quant_conv, **NETWORKS, **more),
    )
    codec = Codec(randomized(network, seed)).double()
    codec.take(torch.tensor(MEAN).double(), torch.tensor(STD).double())
    return codec


def images_of(module, steps, cond=None, **how):
    """Draw from the noise that the pipelines draw from."""
    first = 1 / module.grid.points(steps, module.path)[0].sigma
    with torch.no_grad():
        return module.draw(Fed(2, first, 3), 2, cond, steps=steps, **how) / 2 + 0.5


def theirs_of(pipeline, **how):
    pipeline.set_progress_bar_config(disable=True)
    seeded = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 10}
    return pipeline(**seeded, **how).images


def ldm(folder):
    from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond

    made = pipeline_latent_diffusion_uncond.LDMPipeline.from_pretrained(folder)
    made.unet.double()
    made.vqvae.double()
    return made


def drawn_by_ldm(folder):
    images = theirs_of(ldm(folder), batch_size=2, output_type="np")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------- from diffusers


@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_a_dit_pipeline_is_read_whole(tmp_path, exact, guidance):
    exact(diffusers.DDIMScheduler)
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=False)
    pipeline = diffusers.DiTPipeline(their_dit(), their_vae(scaling_factor=0.3), scheduler)
    pipeline.save_pretrained(tmp_path)
    module = load_diffusers(tmp_path)
    assert module.codec.latent_shape == (2, 4, 4)
    assert module.sample_shape == (3, 8, 8)  # of the transformer, whatever the autoencoder's sample_size is
    images = theirs_of(pipeline, class_labels=[3, 999], guidance_scale=guidance, output_type="pt")
    same(images_of(module, 10, cond=[3, 999], guidance=guidance), images)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_a_pipeline_of_a_unet_is_read_whole(tmp_path, exact, kind):
    exact(diffusers.DDIMScheduler)
    their_unet().save_pretrained(tmp_path / "unet")
    diffusers.DDIMScheduler(**TABLE, clip_sample=False).save_pretrained(tmp_path / "scheduler")
    their_vae(kind=kind, scaling_factor=0.3).save_pretrained(tmp_path / "vqvae")
    index = {name: ["diffusers", type_] for name, type_ in (("unet", "UNet2DModel"), ("vqvae", kind))}
    index |= {"_class_name": "LDMPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    module = load_diffusers(tmp_path)
    same(images_of(module, 10), drawn_by_ldm(tmp_path))
    # its checkpoint needs the folder no more
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "model.ckpt")
    again = load_module(tmp_path / "model.ckpt")
    assert torch.equal(again.codec.std, module.codec.std)
    assert torch.equal(again.double().sample(2, seed=0, steps=5), module.sample(2, seed=0, steps=5))


def test_an_autoencoder_of_other_latents_is_refused(tmp_path):
    their_unet().save_pretrained(tmp_path / "unet")
    diffusers.DDIMScheduler(**TABLE).save_pretrained(tmp_path / "scheduler")
    their_vae(latent_channels=3).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"makes latents \(3, 8, 8\), the network beside it takes \(2, 8, 8\)"):
        load_diffusers(tmp_path)


def test_an_autoencoder_that_cannot_be_mapped_is_named(tmp_path):
    save_diffusers(our_unet(codec=our_codec(16)), tmp_path / "out")
    rewritten(tmp_path / "out/vqvae/config.json", _class_name="AutoencoderTiny")
    with pytest.raises(ValueError, match="AutoencoderTiny"):
        load_diffusers(tmp_path / "out")


# ---------------------------------------------------------------------- to diffusers


@pytest.mark.parametrize("quant_conv", [False, True])
def test_the_autoencoder_that_goes_out_has_whitened_latents(tmp_path, exact, quant_conv):
    exact(diffusers.DDIMScheduler)
    module = our_unet(codec=our_codec(16, quant_conv=quant_conv))
    save_diffusers(module, tmp_path / "out")
    theirs, report = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out/vqvae", output_loading_info=True)
    assert not any(report.values())
    assert theirs.dtype == torch.float64
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    latents, described = module.codec.encode(x), theirs.encode(x).latent_dist
    same(described.mean, latents)
    ours = module.codec.network.encoder(x).chunk(2, dim=1)[1]
    same(described.logvar, ours - 2 * torch.tensor(STD).double().log().view(1, 2, 1, 1))
    same(theirs.decode(latents).sample.clamp(-1, 1), module.codec.decode(latents))
    same(images_of(module, 10), drawn_by_ldm(tmp_path / "out"))


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_dit_of_latents_goes_out_as_a_pipeline(tmp_path, exact, guidance):
    exact(diffusers.DDIMScheduler)
    module = our_dit(codec=our_codec(8))
    save_diffusers(module, tmp_path / "out")
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    pipeline.transformer.double()
    pipeline.vae.double()
    images = theirs_of(pipeline, class_labels=[0, 7], guidance_scale=guidance, output_type="pt")
    same(images_of(module, 10, cond=[0, 7], guidance=guidance), torch.as_tensor(images))


@pytest.mark.parametrize("kind", ["unet", "dit", "few classes", "learned variance"])
def test_out_and_in_again_draws_the_same(tmp_path, kind):
    made = {
        "unet": lambda: our_unet(codec=our_codec(16)),
        "dit": lambda: our_dit(codec=our_codec(8)),
        "few classes": lambda: our_dit(codec=our_codec(8), net={"num_classes": 3}),
        "learned variance": lambda: our_dit(
            codec=our_codec(8), net={"learned_variance": True}, solver=DDPM("learned"), grid=Leading()
        ),
    }
    module, cond = made[kind](), None if kind == "unet" else 1
    save_diffusers(module, tmp_path / "out")
    assert (tmp_path / "out/model_index.json").exists() == (kind in ("unet", "dit"))
    again = load_diffusers(tmp_path / "out")
    assert bool(again.codec.whitened)
    same(again.sample(2, cond=cond, seed=0, steps=5), module.sample(2, cond=cond, seed=0, steps=5))


def test_a_quantized_codec_has_one_factor(tmp_path):
    module = our_unet(codec=our_codec(16, quantized=True, quant_conv=True))
    with pytest.raises(ValueError, match="A VQModel has one scale for all channels"):
        save_diffusers(module, tmp_path / "out")
    module.codec.take(torch.zeros(2), torch.full((2,), 0.5))
    save_diffusers(module, tmp_path / "out")
    same(load_diffusers(tmp_path / "out").sample(2, seed=0, steps=5), module.sample(2, seed=0, steps=5))


def test_a_codec_that_diffusers_has_not(tmp_path):
    net = VAENet(MLPEncoder([4], (1, 2, 2)), MLPDecoder([4], (1, 2, 2)), GaussianLatents(2), Bernoulli())
    module = our_unet(net={"image_shape": [2, 1, 1], "channel_multipliers": [1]}, codec=Codec(net))
    with pytest.raises(ValueError, match="A codec with a VAENet has no counterpart"):
        save_diffusers(module, tmp_path / "out")
    assert not any(tmp_path.iterdir())
