"""Diffusion in the latents of a codec: what is learned, what is drawn, what a checkpoint holds, what is refused."""

import pytest
import torch
from tiny import SHAPE, TinyData, TinyDenoiser, TinyImages, tiny_autoencoder, tiny_latent_diffusion, trainer
from tiny import weights as state_of

from lightning_gen.codec import Codec, HasLatents
from lightning_gen.diffusion import Clip, InpaintingMask
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.images import from_uint8
from lightning_gen.seeding import GeneratorStream


def codec(seed=1, **arguments):
    return Codec(tiny_autoencoder(seed=seed).net, **arguments)


def latent_diffusion(of=None, **arguments):
    return tiny_latent_diffusion(codec=of or codec(), **arguments)


def fit(module, folder, steps=2, data=None):
    run = trainer(folder, max_steps=steps, max_epochs=-1)
    run.fit(module, datamodule=data or TinyData())
    return run


def test_training_whitens_the_latents_of_the_training_images(tmp_path):
    module = latent_diffusion()
    fit(module, tmp_path)
    images = from_uint8(TinyData().split("train").images)
    latents = module.codec.encode(images).double()
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(latents.std((0, 2, 3), correction=0), torch.ones(2).double(), rtol=0, atol=1e-6)
    raw = module.codec.network.encode(images)
    torch.testing.assert_close(module.codec.decode(module.codec.encode(images)), module.codec.network.decode(raw))


def test_the_codec_stays_as_it_was(tmp_path):
    module = latent_diffusion()
    before = state_of(module.codec.network)
    fit(module, tmp_path, 3)
    after = state_of(module.codec.network)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not module.codec.training
    assert not any(part.training for part in module.codec.modules())
    assert not any(p.requires_grad for p in module.codec.parameters())


def test_it_learns_what_a_model_of_the_same_tensors_learns(tmp_path, monkeypatch):
    """The step is that of the pixel-space module on whitened latents."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    module = latent_diffusion()
    fit(module, tmp_path, 3)

    class Latents(TinyData):
        shape = (2, 2, 2)

        def train_dataloader(self):
            images = from_uint8(TinyImages(64, seed=0).images)
            latents = module.codec.encode(images)
            return torch.utils.data.DataLoader([{"image": latent} for latent in latents], batch_size=8)

    data = Latents()
    data.shape = (2, 2, 2)
    torch.manual_seed(0)
    plain = Diffusion(TinyDenoiser((2, 2, 2)), sampling_steps=3)
    fit(plain, tmp_path, 3, data)
    for name, value in state_of(plain.net).items():
        # encoded in batches of another size
        torch.testing.assert_close(state_of(module.net)[name], value, rtol=0, atol=1e-6, msg=name)


def test_samples_are_decoded_images(tmp_path):
    module = latent_diffusion()
    fit(module, tmp_path)
    images = module.sample(5, seed=0)
    assert images.shape == (5, *SHAPE)
    assert images.abs().max() <= 1
    assert torch.equal(images, module.sample(5, seed=0))
    assert not torch.equal(images, images[:1].expand_as(images))


def test_a_checkpoint_gives_the_same_images(tmp_path):
    module = latent_diffusion()
    run = fit(module, tmp_path)
    run.save_checkpoint(tmp_path / "run.ckpt")
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    loaded = latent_diffusion(codec(seed=5))
    loaded.load_state_dict(kept)
    assert torch.equal(loaded.sample(4, seed=0), module.sample(4, seed=0))
    assert torch.equal(loaded.codec.std, module.codec.std)


def test_a_picture_to_begin_from_and_a_mask(tmp_path):
    module = latent_diffusion()
    fit(module, tmp_path)
    picture = from_uint8(TinyData().split("val").images[:1])
    kept = torch.ones(1, 1, 4, 4)
    whole = module.sample(2, seed=0, image=picture, mask=kept)
    torch.testing.assert_close(whole, module.codec.decode(module.codec.encode(picture)).expand(2, *SHAPE))
    near = module.sample(2, seed=0, image=picture, strength=0.1)
    assert near.shape == (2, *SHAPE)
    kept[..., 0, 0] = 0  # one pixel of four: the latent pixel is made anew
    assert not torch.equal(module.sample(2, seed=0, image=picture, mask=kept), whole)


def test_a_tile_for_large_latents():
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    whole = codec().decode(codec().encode(images))
    tiled = codec(tile=4).decode(codec().encode(images))
    assert tiled.shape == whole.shape


def test_its_own_scale_where_nothing_is_whitened(tmp_path):
    module = latent_diffusion(codec(whiten=0))
    fit(module, tmp_path)
    assert torch.equal(module.codec.mean, torch.zeros(2, 1, 1))
    assert torch.equal(module.codec.std, torch.ones(2, 1, 1))


def test_a_fingerprint_is_of_the_weights():
    assert codec(1).fingerprint() == codec(1).fingerprint() != codec(2).fingerprint()
    moved = codec(1)
    moved.mean.fill_(3.0)
    assert moved.fingerprint() == codec(1).fingerprint()


def test_an_autoencoder_can_be_a_codec_and_a_diffusion_cannot():
    assert isinstance(tiny_autoencoder(), HasLatents)
    assert not isinstance(latent_diffusion(), HasLatents)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: Diffusion(TinyDenoiser(), codec=codec()),
            r"latents have the shape \(2, 2, 2\), the network is built for \(1, 4, 4\).*\[2, 2, 2\]",
        ),
        (lambda: latent_diffusion(threshold=Clip()), "threshold Clip is made for images"),
        (lambda: latent_diffusion(conditioner=InpaintingMask()), "conditioner InpaintingMask is made for images"),
        (lambda: latent_diffusion(likelihood_steps=5), "likelihood_steps=0"),
        (lambda: codec(whiten=-1), "whiten is a number of images"),
        (
            lambda: latent_diffusion().bits_per_dim(torch.zeros(1, *SHAPE)),
            "the density of latents",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_codec_that_has_collapsed(tmp_path):
    dead = codec()
    with torch.no_grad():
        dead.network.encoder.outer.weight[0].zero_()
    with pytest.raises(ValueError, match=r"Channels \[0\] of the codec's latents are the same"):
        fit(latent_diffusion(dead), tmp_path)


def test_the_statistics_are_those_of_all_batches():
    made = codec()
    latents = torch.randn(10, 2, 2, 2, dtype=torch.float64) * 3 + 1
    made.learn(latents.split(3))
    torch.testing.assert_close(made.mean.flatten().double(), latents.mean((0, 2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(made.std.flatten().double(), latents.std((0, 2, 3), correction=0), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="there are none"):
        made.learn([])


def test_a_stream_is_not_needed():
    made = codec()
    images = torch.rand(2, *SHAPE)
    assert torch.equal(made.raw(images), made.network.encode(images))
    assert not torch.equal(made.raw(images), made.network.encode(images, GeneratorStream(None, 2)))
