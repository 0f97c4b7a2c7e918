import logging

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from scipy import ndimage
from tiny import TinyData, trainer

from lightning_gen.autoencoder import GaussianBottleneck, perceptual
from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.autoencoder.perceptual import (
    LPIPS,
    LaplacianPyramid,
    PerceptualLoss,
    laplacian_pyramid,
    perceptual_loss,
)
from lightning_gen.checkpoints import load_module
from lightning_gen.codec import TrainedCodec
from lightning_gen.errors import MissingData
from lightning_gen.interop.describing import describe
from lightning_gen.metrics.lpips import VARIABLES
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

SIZES = [(8, 8), (16, 24), (7, 13), (5, 2), (1, 4), (1, 1)]


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def pyramid_of(image, levels):
    """Burt and Adelson's pyramid of one channel, by scipy's convolution with the nearest pixel at the border."""
    one_axis = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(one_axis, one_axis)
    found = []
    for _ in range(levels):
        if min(image.shape) < 2:
            break
        reduced = ndimage.convolve(image, kernel, mode="nearest")[::2, ::2]
        # one more pixel all round, so that zeros between pixels go on beyond the border
        wider = np.pad(reduced, 1, mode="edge")
        spread = np.zeros([2 * side for side in wider.shape])
        spread[::2, ::2] = wider
        expanded = 4 * ndimage.convolve(spread, kernel, mode="constant")[2:, 2:][: image.shape[0], : image.shape[1]]
        found.append(image - expanded)
        image = reduced
    return [*found, image]


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_pyramid_is_that_of_burt_and_adelson(size, levels):
    x = images(2, 3, *size)
    ours = laplacian_pyramid(x, levels)
    for index in np.ndindex(2, 3):
        wanted = pyramid_of(x[index].numpy(), levels)
        assert len(ours) == len(wanted)
        for level, expected in zip(ours, wanted, strict=True):
            assert level[index].shape == expected.shape
            assert np.abs(level[index].numpy() - expected).max() < 1e-14


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_is_the_sum_over_the_levels_by_hand(size):
    x, y = images(2, 3, *size), images(2, 3, *size, seed=1)
    made = LaplacianPyramid(3)(x, y)
    for sample in range(2):
        total = 0.0
        for channel in range(3):
            levels = zip(
                pyramid_of(x[sample, channel].numpy(), 3), pyramid_of(y[sample, channel].numpy(), 3), strict=True
            )
            total += sum(4**j * np.abs(a - b).sum() for j, (a, b) in enumerate(levels))
        assert made[sample].item() == pytest.approx(total / (3 * size[0] * size[1]), rel=1e-13)


@pytest.mark.parametrize("shift", [0.25, -1.0])
def test_a_constant_is_seen_by_the_last_level_alone(shift):
    x = images(2, 3, 32, 16)
    difference = LaplacianPyramid(4)(x, x + shift)
    # every other level of a constant is 0, and 4^4 pixels of the last one make as many as the image has
    assert (difference - abs(shift)).abs().max() < 1e-14
    assert torch.equal(LaplacianPyramid()(x, x), torch.zeros(2, dtype=torch.float64))


def test_the_loss_is_a_norm_of_the_difference():
    loss = LaplacianPyramid()
    x, y, z = (images(2, 3, 9, 16, seed=seed) for seed in range(3))
    assert torch.allclose(loss(x, y), loss(y, x), rtol=1e-14)
    assert torch.allclose(loss(3 * x, 3 * y), 3 * loss(x, y), rtol=1e-14)
    assert (loss(x, z) <= loss(x, y) + loss(y, z)).all()
    assert loss(x, y)[0] != loss(x, y)[1]


def test_the_gradient_reaches_the_image():
    x, y = images(1, 1, 8, 8), images(1, 1, 8, 8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: LaplacianPyramid(2)(x, y), y)


def test_bf16_autocast_and_bf16_images_are_summed_in_float32():
    x, y = images(2, 3, 16, 16).bfloat16(), images(2, 3, 16, 16, seed=1).bfloat16()
    made = LaplacianPyramid()(x, y)
    assert made.dtype == torch.float32
    assert torch.allclose(made.double(), LaplacianPyramid()(x.double(), y.double()), rtol=0.02)


def test_it_has_no_state():
    loss = LaplacianPyramid()
    assert len(loss.state_dict()) == len(list(loss.parameters())) == len(list(loss.buffers())) == 0
    with pytest.raises(ValueError, match="levels"):
        LaplacianPyramid(0)
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 4))


# ---------------------------------------------------------------------- names


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No weights of LPIPS in any of the places, and nothing said yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(perceptual, "_said", set())
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class Found(LPIPS):
    """LPIPS with its weights at hand."""

    def __init__(self):
        super(LPIPS, self).__init__()
        self.name = "lpips"


def test_auto_without_weights_is_the_pyramid_and_says_so_once(nowhere, caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert isinstance(perceptual_loss("auto"), LaplacianPyramid)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("laplacian-4", "vgg16-397923af.pth", "https://", "weights_path"):
        assert part in record.getMessage()


def test_auto_with_weights_is_lpips_and_says_so(nowhere, monkeypatch, caplog):
    monkeypatch.setattr(perceptual, "LPIPS", Found)
    with caplog.at_level(logging.INFO):
        assert isinstance(perceptual_loss("auto", (3, 32, 32)), LPIPS)
        assert isinstance(perceptual_loss("auto", (1, 8, 8)), LaplacianPyramid)
        assert isinstance(perceptual_loss("auto", (4, 32, 32)), LaplacianPyramid)
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING, logging.WARNING]
    assert "1 x 8 x 8" in caplog.records[1].getMessage()


def test_lpips_without_weights_is_an_error(nowhere):
    with pytest.raises(MissingData, match="VGG16"):
        perceptual_loss("lpips")


def test_names_and_objects():
    assert isinstance(perceptual_loss("laplacian"), LaplacianPyramid)
    assert perceptual_loss(None) is None
    mine = LaplacianPyramid(2)
    assert perceptual_loss(mine) is mine
    with pytest.raises(ValueError, match="Did you mean 'lpips'"):
        perceptual_loss("lpip")


# ---------------------------------------------------------------------- in a model

SMALL = {"image_shape": [3, 16, 16], "channels": 4, "channel_multipliers": [1, 2], "blocks": 1, "norm_groups": 2}
PARTS = {
    "encoder": {
        "class_path": "lightning_gen.networks.convolutional_autoencoder.ConvolutionalEncoder",
        "init_args": {**SMALL, "out_channels": 4},
    },
    "decoder": {
        "class_path": "lightning_gen.networks.convolutional_autoencoder.ConvolutionalDecoder",
        "init_args": {**SMALL, "in_channels": 2},
    },
    "bottleneck": {
        "class_path": "lightning_gen.autoencoder.bottlenecks.GaussianBottleneck",
        "init_args": {"channels": 2},
    },
}


class Colors(TinyData):
    def split(self, name):
        images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
        return [{"image": image} for image in images]


class Flat(PerceptualLoss):
    """In the place of LPIPS, whose weights are not here."""

    name = "lpips"

    def forward(self, x, y):
        return (x - y).abs().flatten(1).mean(1)


def model(loss):
    kinds = {"encoder": ConvolutionalEncoder, "decoder": ConvolutionalDecoder}
    encoder, decoder = (kind(**PARTS[name]["init_args"]) for name, kind in kinds.items())
    module = Autoencoder(encoder, decoder, GaussianBottleneck(2), perceptual=loss)
    describe(module, {**PARTS, "perceptual": loss})
    return module


def fit(module, folder, steps, path=None):
    data = Colors(n=16)
    data.shape = (3, 16, 16)
    run = trainer(folder, max_steps=steps, max_epochs=-1, limit_val_batches=0)
    run.fit(module, datamodule=data, ckpt_path=path)
    return run


def test_weights_that_are_missing_are_asked_for_by_training_alone(nowhere, tmp_path, monkeypatch):
    """A checkpoint is read, decoded by and a codec on a machine that has no file of LPIPS; training says what to do."""
    with monkeypatch.context() as here:
        here.setattr(perceptual, "LPIPS", Flat)
        run = fit(model("lpips"), tmp_path, 2)
        run.save_checkpoint(tmp_path / "x.ckpt")
    module = load_module(tmp_path / "x.ckpt")
    assert module.reconstruct(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert TrainedCodec(str(tmp_path / "x.ckpt")).latent_shape == (2, 8, 8)
    with pytest.raises(MissingData, match="VGG16"):
        fit(model("lpips"), tmp_path / "again", 3)


def test_a_run_goes_on_by_the_loss_it_began_with(nowhere, tmp_path, monkeypatch):
    with monkeypatch.context() as here:
        here.setattr(perceptual, "LPIPS", Flat)
        run = fit(model("auto"), tmp_path, 2)
        assert run.lightning_module.perceptual.name == "lpips"
        run.save_checkpoint(tmp_path / "x.ckpt")
        assert fit(model("auto"), tmp_path / "same", 3, tmp_path / "x.ckpt").global_step == 3
    with pytest.raises(MisconfigurationException, match=r"trained by the perceptual loss lpips, .* by laplacian-4"):
        fit(model("auto"), tmp_path / "other", 3, tmp_path / "x.ckpt")
