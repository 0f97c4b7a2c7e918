"""Scores and pictures of reconstructions."""

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from PIL import Image
from tiny import TinyImageDecoder, TinyImageEncoder, tiny_gan, trainer

from lightning_gen.autoencoder import GaussianBottleneck
from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.autoencoder.vae import VAE
from lightning_gen.callbacks import ReconstructionFidelity, ReconstructionGrid
from lightning_gen.data import DigitsDataModule
from lightning_gen.images import enlarge, from_uint8, image_grid, to_uint8
from lightning_gen.metrics import Evaluator
from lightning_gen.metrics.reference import read_images
from lightning_gen.networks import MLPDecoder, MLPEncoder

SHAPE = (1, 8, 8)


class Kept(Autoencoder):
    """Reconstructs the image itself."""

    def reconstruct(self, images, *, weights=None):
        return images


def made(cls=Autoencoder):
    torch.manual_seed(0)
    return cls(TinyImageEncoder(SHAPE), TinyImageDecoder(SHAPE), GaussianBottleneck(2))


def run(folder, module, *callbacks):
    found = trainer(
        folder, max_steps=2, max_epochs=-1, limit_val_batches=1, val_check_interval=2, callbacks=list(callbacks)
    )
    found.fit(module, datamodule=DigitsDataModule(batch_size=32))
    return found


def test_images_kept_as_they_are_have_no_distance(tmp_path):
    told = run(tmp_path, made(Kept), ReconstructionFidelity(["fd-lenet5"], n=100_000)).callback_metrics
    (name,) = [name for name in told if name.startswith("rfd-lenet5")]
    assert float(told[name]) == pytest.approx(0, abs=1e-6)


def test_the_score_is_that_of_the_reconstructions(tmp_path):
    module = made()
    told = run(tmp_path, module, ReconstructionFidelity(["fd-lenet5"], n=96)).callback_metrics
    images = DigitsDataModule().split("val")
    evaluator = Evaluator(["fd-lenet5"])
    evaluator.set_reference(images, name="digits", split="val")
    score = evaluator(
        lambda first, n: to_uint8(module.reconstruct(from_uint8(read_images(images, first, n)))), 96, seed=None
    )["fd-lenet5"]
    assert float(told[f"r{score.name}"]) == pytest.approx(score.value, rel=1e-6)


def test_the_grid_shows_each_image_over_its_reconstruction(tmp_path):
    module = made()
    run(tmp_path, module, ReconstructionGrid(every_n_steps=2, n=11))
    shown = read_images(DigitsDataModule().split("val"), 0, 11)
    kept = to_uint8(module.reconstruct(from_uint8(shown)))
    gap = torch.zeros(5, *SHAPE, dtype=torch.uint8)
    rows = torch.cat([shown[:8], kept[:8], shown[8:], gap, kept[8:], gap])
    expected = enlarge(image_grid(rows, columns=8))[0]
    written = np.array(Image.open(tmp_path / "reconstructions" / "0000002.png"))
    assert np.array_equal(written, expected.numpy())


def test_what_does_not_reconstruct_is_refused(tmp_path):
    from tiny import TinyData

    with pytest.raises(ValueError, match="measured by fid, kid, fd-lenet5; given was is"):
        ReconstructionFidelity(["is"])
    found = trainer(tmp_path, max_steps=1, callbacks=[ReconstructionGrid(every_n_steps=1)])
    with pytest.raises(MisconfigurationException, match="a GAN makes none"):
        found.fit(tiny_gan(), datamodule=TinyData())


def test_a_conditional_model_is_given_the_classes(tmp_path):
    torch.manual_seed(0)
    networks = [kind([8], SHAPE, 10, "tanh") for kind in (MLPEncoder, MLPDecoder)]
    module = VAE(*networks, 3)
    found = run(tmp_path, module, ReconstructionFidelity(["fd-lenet5"], n=96), ReconstructionGrid(2, n=8))
    assert any(name.startswith("rfd-lenet5") for name in found.callback_metrics)
    images = DigitsDataModule().split("val")
    shown, labels = read_images(images, 0, 8), torch.tensor([int(images[row]["label"]) for row in range(8)])
    kept = to_uint8(module.reconstruct(from_uint8(shown), labels))
    expected = enlarge(image_grid(torch.cat([shown, kept]), columns=8))[0]
    assert np.array_equal(np.array(Image.open(tmp_path / "reconstructions" / "0000002.png")), expected.numpy())
