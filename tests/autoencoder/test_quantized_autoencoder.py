"""Each quantizer within an autoencoder: trained, sampled, frozen as a codec, and not hurt by a batch that is NaN."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from tiny import SHAPE, TinyData, same, tiny_autoencoder, tiny_latent_diffusion, trainer
from tiny import weights as state_of
from torch.utils.data import DataLoader

from lightning_gen.autoencoder import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    TwoLevelQuantizer,
    VectorQuantizer,
)
from lightning_gen.codec import Codec
from lightning_gen.images import from_uint8
from lightning_gen.seeding import SampleStreams

BOTTLENECKS = {
    "vector": lambda: VectorQuantizer(3, 8),
    "vector, averaged": lambda: VectorQuantizer(3, 8, ema_decay=0.9, restart_below=0.1),
    "residual": lambda: ResidualQuantizer(3, 8, num_quantizers=2),
    "finite scalar": lambda: FiniteScalarQuantizer([4, 3]),
    "lookup free": lambda: LookupFreeQuantizer(3),
    "two levels": lambda: TwoLevelQuantizer(
        3, VectorQuantizer(2, 5), VectorQuantizer(3, 7), channels=8, blocks=1, block_channels=4
    ),
}

pytestmark = pytest.mark.parametrize("name", BOTTLENECKS)


def made(name, **arguments):
    torch.manual_seed(0)
    return tiny_autoencoder(BOTTLENECKS[name](), **arguments)


def fit(module, folder, steps=3):
    run = trainer(folder, max_steps=steps, max_epochs=-1, limit_val_batches=1, val_check_interval=1)
    run.fit(module, datamodule=TinyData())
    return run


def test_training_learns_and_tells_of_the_codes(name, tmp_path):
    module = made(name, adversarial=True, ema_half_lives=[50])
    before = state_of(module.net)
    told = fit(module, tmp_path).callback_metrics
    assert not same(before, state_of(module.net))
    assert 0 < float(told["usage"]) <= 1
    assert float(told["perplexity"]) >= 1
    assert {"val/usage", "val/perplexity", "val/psnr"} <= told.keys()


def test_samples_and_latents(name, tmp_path):
    module = made(name)
    fit(module, tmp_path)
    samples = module.sample(6, seed=0)
    assert samples.shape == (6, *SHAPE)
    assert torch.equal(samples[4:], module.sample(2, seed=0, offset=4))
    images = from_uint8(TinyData().split("val").images[:5])
    assert torch.equal(module.decode(module.encode(images)), module.reconstruct(images))
    module.eval()
    bottled = module.net(images).bottled
    torch.testing.assert_close(module.net.bottleneck.decode_indices(bottled.indices), bottled.z, rtol=0, atol=1e-6)


def test_codes_are_drawn_as_often_as_they_were_chosen(name):
    bottleneck = BOTTLENECKS[name]().eval()
    for counts in bottleneck._all_counts():
        counts.counts.zero_()
        counts.counts[0, :, 1] = 3
        counts.counts[1, :, 2] = 1
    drawn = bottleneck.draw_indices(SampleStreams(0, 0, 2000), (2, 2))
    share = (drawn == 1).double().mean()
    assert set(drawn.unique().tolist()) == {1, 2}
    assert float(share) == pytest.approx(0.75, abs=0.02)


def test_it_is_a_codec(name, tmp_path):
    torch.manual_seed(0)
    codec = Codec(made(name).net)
    images = from_uint8(TinyData().split("val").images[:5])
    codec.learn([codec.raw(images)])
    torch.testing.assert_close(codec.decode(codec.encode(images)), codec.network.decode(codec.raw(images)))
    counts = state_of(codec.network)
    module = tiny_latent_diffusion(codec=codec)
    fit(module, tmp_path)
    assert module.sample(3, seed=0).shape == (3, *SHAPE)
    assert same(counts, state_of(codec.network))


class Watched(Callback):
    """Keeps what the second batch is met by, and what it leaves."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.before = state_of(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.after = state_of(pl_module)


@pytest.mark.parametrize("what", ["one image", "all images", "the decoder"])
def test_a_batch_whose_loss_is_nan_moves_nothing(name, what, tmp_path):
    class Breaks(TinyData):
        def train_dataloader(self):
            batches = [dict(batch) for batch in super().train_dataloader()]
            if what != "the decoder":
                image = from_uint8(batches[1]["image"])
                image[: 1 if what == "one image" else None] = torch.nan
                batches[1]["image"] = image
            return DataLoader(batches, batch_size=None)

    module = made(name, on_nonfinite="skip")
    decode = module.net.decoder.forward

    def broken(z):
        return decode(z) * (torch.nan if module.training and module.batch_number == 1 else 1.0)

    if what == "the decoder":
        module.net.decoder.forward = broken
    watched = Watched()
    run = trainer(tmp_path, max_steps=3, max_epochs=-1, limit_train_batches=4, limit_val_batches=0, callbacks=[watched])
    run.fit(module, datamodule=Breaks())
    assert run.callback_metrics["skipped_batches"] == 1
    assert same(watched.before, watched.after)
    assert not same(watched.after, state_of(module))
    assert all(value.isfinite().all() for value in state_of(module).values())


def test_half_precision_where_no_average_is_lost(name, tmp_path):
    module = made(name)
    settings = {"max_steps": 3, "max_epochs": -1, "limit_val_batches": 1, "precision": "bf16-true"}
    run = trainer(tmp_path, **settings)
    if any(book.averaged or book.restart_below for book in module._codebooks()):
        with pytest.raises(MisconfigurationException, match="are lost in bf16-true"):
            run.fit(module, datamodule=TinyData())
        return
    run.fit(module, datamodule=TinyData())
    assert run.callback_metrics["loss"].isfinite()
    module.bfloat16()
    images = from_uint8(TinyData().split("val").images[:5]).bfloat16()
    assert module.reconstruct(images).isfinite().all()
    assert module.sample(2, seed=0).isfinite().all()
