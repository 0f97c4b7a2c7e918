"""Cached latents: written, cut off and continued, read in the place of images, refused where they do not fit."""

import json

import pytest
import torch
from tiny import TinyDenoiser, tiny_autoencoder, trainer
from tiny import weights as state_of

from lightning_gen.codec import Codec
from lightning_gen.data import DigitsDataModule, LatentsDataModule
from lightning_gen.data.latent_index import LATENTS, PLAN
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.errors import MissingData, RunError
from lightning_gen.images import from_uint8
from lightning_gen.latent_cache import LatentWriter


class Encoders:
    """Autoencoders of 8 x 8 digits."""

    def __new__(cls, seed=1):
        from tiny import TinyImageDecoder, TinyImageEncoder

        from lightning_gen.autoencoder import GaussianBottleneck
        from lightning_gen.autoencoder.net import AutoencoderNet

        torch.manual_seed(seed)
        shape = (1, 8, 8)
        return Codec(AutoencoderNet(TinyImageEncoder(shape), GaussianBottleneck(2), TinyImageDecoder(shape)))


def digits(**arguments):
    return DigitsDataModule(**({"batch_size": 16} | arguments))


def write(out, seed=1, **arguments):
    return LatentWriter(Encoders(seed), digits(), out, **({"shard_mb": 0.01} | arguments)).write()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "latents"
    write(out)
    return out


@pytest.fixture(scope="module")
def flipped_cache(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "flipped"
    write(out, flip=True)
    return out


def test_they_are_the_latents_of_the_images_in_their_order(cache):
    data, codec = LatentsDataModule(str(cache), digits()), Encoders()
    images = data.split("train")
    read = data._training_set()
    assert len(read) == len(images)
    rows = torch.tensor([3, 1200, 0, 700])
    batch, pictures = read.batch(rows), images.batch(rows)
    torch.testing.assert_close(batch["latent"], codec.raw(from_uint8(pictures["image"])), rtol=0, atol=1e-6)
    assert torch.equal(batch["label"], pictures["label"])
    whole = torch.cat([codec.raw(from_uint8(images.batch(torch.arange(len(images)))["image"]))]).double()
    mean, std = data.latent_statistics
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)), rtol=0, atol=1e-6)
    torch.testing.assert_close(std, whole.std((0, 2, 3), correction=0), rtol=0, atol=1e-6)
    assert len(data.index.splits["train"]) > 2


@pytest.mark.parametrize("flip", [False, True])
def test_training_on_them_is_training_on_the_images(cache, flipped_cache, tmp_path, monkeypatch, flip):
    """With flips too: the same images are mirrored in the same epochs."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    trained = []
    images, out = digits(flip=flip), str(flipped_cache if flip else cache)
    for data in (images, LatentsDataModule(out, digits(flip=flip), batch_size=16)):
        torch.manual_seed(0)
        module = Diffusion(TinyDenoiser((2, 4, 4)), codec=Encoders())
        trainer(tmp_path, max_steps=4, max_epochs=-1, limit_val_batches=1, val_check_interval=2).fit(module, data)
        trained.append(state_of(module))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name].float(), value.float(), rtol=0, atol=2e-6, msg=name)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_seed_and_epoch(cache, workers):
    images = digits().train_dataloader()
    latents = LatentsDataModule(str(cache), digits(), batch_size=16, num_workers=workers).train_dataloader()
    for first, second in zip(images, latents, strict=True):
        assert torch.equal(first["label"], second["label"])
        assert second["latent"].dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 2])
def test_flips_are_those_of_the_images(flipped_cache, workers):
    codec, mirrored = Encoders(), 0
    images = digits(flip=True)
    latents = LatentsDataModule(str(flipped_cache), digits(flip=True), batch_size=16, num_workers=workers)
    still = LatentsDataModule(str(flipped_cache), digits(), batch_size=16).train_dataloader()
    for first, second, third in zip(images.train_dataloader(), latents.train_dataloader(), still, strict=True):
        torch.testing.assert_close(second["latent"], codec.raw(from_uint8(first["image"])), rtol=0, atol=1e-6)
        mirrored += int((second["latent"] != third["latent"]).any(dim=(1, 2, 3)).sum())
    assert 0.4 < mirrored / len(images.split("train")) < 0.6


def test_flips_change_nothing_else(cache, flipped_cache):
    for path in cache.glob("*.npy"):
        assert (flipped_cache / path.name).read_bytes() == path.read_bytes()
    assert len(list(flipped_cache.glob("mirrored-*.npy"))) == len(list(cache.glob("train-*.npy")))
    # folders that were begun before there were flips are gone on with
    assert "flip" not in json.loads((cache / PLAN).read_text())


def test_an_index_of_the_first_version_is_read(cache, tmp_path):
    content = json.loads((cache / LATENTS).read_text())
    del content["mirrored"]
    (tmp_path / LATENTS).write_text(json.dumps(content | {"version": 1}))
    assert LatentsDataModule(str(tmp_path), digits()).index.mirrored == []


@pytest.mark.parametrize("flip", [False, True])
def test_a_command_that_was_cut_off_goes_on(tmp_path, cache, flipped_cache, monkeypatch, flip):
    cache = flipped_cache if flip else cache
    out = tmp_path / "latents"
    encoded = Codec.raw
    calls = []

    def breaks(self, images):
        calls.append(len(images))
        if len(calls) == (60 if flip else 8):
            raise KeyboardInterrupt
        return encoded(self, images)

    monkeypatch.setattr(Codec, "raw", breaks)
    with pytest.raises(KeyboardInterrupt):
        write(out, flip=flip)
    with pytest.raises(MissingData, match="not all written yet"):
        LatentsDataModule(str(out), digits())
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert there
    monkeypatch.setattr(Codec, "raw", encoded)
    write(out, flip=flip)
    for path in sorted(cache.iterdir()):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert all((out / name).stat().st_mtime_ns == time for name, time in there.items())


def test_half_precision(tmp_path, cache):
    write(tmp_path / "half", dtype="float16")
    half = LatentsDataModule(str(tmp_path / "half"), digits())._training_set().batch(torch.arange(9))["latent"]
    full = LatentsDataModule(str(cache), digits())._training_set().batch(torch.arange(9))["latent"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-3, atol=1e-3)
    assert not torch.equal(half, full)


def test_another_codec_is_refused(cache, tmp_path):
    module = Diffusion(TinyDenoiser((2, 4, 4)), codec=Encoders(seed=2))
    with pytest.raises(ValueError, match="made by another codec"):
        trainer(tmp_path, max_steps=1).fit(module, LatentsDataModule(str(cache), digits()))
    with pytest.raises(ValueError, match="no codec to decode them"):
        trainer(tmp_path, max_steps=1).fit(Diffusion(TinyDenoiser((1, 8, 8))), LatentsDataModule(str(cache), digits()))


def test_other_images_are_refused(cache, tmp_path):
    other = digits(seed=9)  # another split of the same digits
    with pytest.raises(ValueError, match="made of other training images"):
        LatentsDataModule(str(cache), other).train_dataloader()


def test_images_of_another_fingerprint_are_refused(cache, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in cache.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = json.loads((copy / LATENTS).read_text())
    content["data"]["train"] = "0" * 64
    (copy / LATENTS).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"made of other training images \(fingerprint 0000"):
        LatentsDataModule(str(copy), digits()).train_dataloader()


@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_a_damaged_file(cache, tmp_path, how):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in cache.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    target = copy / "train-00001.npy"
    content = bytearray(target.read_bytes())
    if how == "cut":
        target.write_bytes(content[:-10])
    elif how == "gone":
        target.unlink()
    else:
        content[-1] ^= 1
        target.write_bytes(content)
    data = LatentsDataModule(str(copy), digits(), check="content")
    with pytest.raises(MissingData if how == "gone" else ValueError, match=r"train-00001\.npy"):
        data.train_dataloader()
    if how != "changed":
        return
    LatentsDataModule(str(copy), digits()).train_dataloader()  # a look at the size alone does not see it


def test_a_folder_with_something_else(tmp_path, cache):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        write(tmp_path / "there")
    write(tmp_path / "mine")
    with pytest.raises(RunError, match="latents of another codec"):
        write(tmp_path / "mine", seed=2)
    with pytest.raises(RunError, match="with other options"):
        write(tmp_path / "mine", dtype="float16")
    with pytest.raises(MissingData, match="lightning-gen latents CODEC DATA OUT"):
        LatentsDataModule(str(tmp_path / "there"), digits())


def test_what_is_wrong_is_said(cache, tmp_path):
    with pytest.raises(ValueError, match=r"flip to false .* --flip"):
        LatentsDataModule(str(cache), digits(flip=True))
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 4, 4\), the data has \(1, 8, 8\)"):
        LatentWriter(Codec(tiny_autoencoder().net), digits(), tmp_path / "x")
    with pytest.raises(ValueError, match="shard_mb is above 0"):
        LatentWriter(Encoders(), digits(), tmp_path / "x", shard_mb=0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / LATENTS).write_text("{}")
    with pytest.raises(ValueError, match="no index of cached latents"):
        LatentsDataModule(str(tmp_path / "bad"), digits())


def test_a_codec_that_has_diverged(tmp_path):
    codec = Encoders()
    with torch.no_grad():
        codec.network.encoder.outer.bias[0] = torch.nan
    with pytest.raises(RunError, match="NaN or infinite"):
        LatentWriter(codec, digits(), tmp_path / "x").write()
    assert (tmp_path / "x" / PLAN).is_file()
    assert not list((tmp_path / "x").glob("*.npy"))
