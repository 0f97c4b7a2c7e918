"""The image autoencoder: its step against one written by hand, its discriminator, its images and latents."""

import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from tiny import SHAPE, TinyData, TinyDiscriminator, TinyImageDecoder, TinyImageEncoder, same, tiny_autoencoder, trainer
from tiny import weights as state_of
from torch.nn import functional as F

from lightning_gen.autoencoder import GaussianBottleneck, VectorQuantizer
from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.errors import RunError
from lightning_gen.images import from_uint8
from lightning_gen.seeding import GeneratorStream, mix, seed_device


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")


def fit(module, folder, steps, **settings):
    run = trainer(folder, max_steps=steps, max_epochs=-1, **settings)
    run.fit(module, datamodule=TinyData())
    return run


def batches(n):
    images = TinyData().split("train").images
    return [from_uint8(images[8 * i : 8 * i + 8]).double() for i in range(n)]


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_its_step_is_the_one_written_by_hand(tmp_path, distance):
    """Distance and divergence, each a mean over the image's dimensions; the discriminator learns from detached ones."""
    arguments = {"adversarial": True, "adaptive": False, "adversarial_weight": 0.3, "distance": distance}
    module = tiny_autoencoder(**arguments).double()
    twin = tiny_autoencoder(**arguments).double()
    fit(module, tmp_path, 3, precision="64-true")

    optimizer = twin.optimizer(twin.net.parameters())
    optimizer_d = twin.optimizer_d(twin.discriminator.parameters())
    for number, x in enumerate(batches(3)):
        seed_device(torch.device("cpu"), mix(7, 0, number))
        mean, logvar = twin.net.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(logvar / 2) * torch.randn(mean.shape, dtype=torch.float64)
        made = twin.net.decoder(z)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum() / len(x)
        near = F.l1_loss(made, x) if distance == "l1" else F.mse_loss(made, x)
        loss = near + 0.1 * kl / math.prod(SHAPE) - 0.3 * twin.discriminator(made).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer_d.zero_grad()
        real, fake = twin.discriminator(x), twin.discriminator(made.detach())
        (F.relu(1 - real).mean() + F.relu(1 + fake).mean()).backward()
        optimizer_d.step()
    for name, value in state_of(twin).items():
        torch.testing.assert_close(state_of(module)[name], value, rtol=0, atol=1e-13, msg=name)


def test_the_adaptive_weight_balances_the_two_gradients(tmp_path):
    """Equation 7 of VQGAN: both gradients have one norm in the decoder's last layer."""
    module = tiny_autoencoder(adversarial=True, adversarial_weight=1.0).double()
    x = batches(1)[0]
    made, _ = module.net(x)
    near = module._losses(x, made).total.mean()
    deceiving, logs = module._deceive(near, x, made)
    last = module.net.decoder.last_layer
    (of_near,) = torch.autograd.grad(near, last, retain_graph=True)
    (of_deceiving,) = torch.autograd.grad(deceiving, last)
    assert float(of_deceiving.norm() / of_near.norm()) == pytest.approx(1, abs=1e-4)
    assert not logs["weight_g"].requires_grad


def test_the_discriminator_starts_when_it_is_told_to(tmp_path):
    late = tiny_autoencoder(adversarial=True, discriminator_start=2)
    never = tiny_autoencoder()
    before = state_of(late.discriminator)
    fit(late, tmp_path, 2)
    fit(never, tmp_path, 2)
    assert same(state_of(late.net), state_of(never.net))
    assert same(state_of(late.discriminator), before)
    again = tiny_autoencoder(adversarial=True, discriminator_start=2)
    fit(again, tmp_path, 3)
    assert not same(state_of(again.discriminator), before)
    assert not same(state_of(again.net), state_of(never.net))


def test_accumulated_gradients_are_those_of_the_joined_batch(tmp_path):
    class Sure(GaussianBottleneck):
        """Draws the means, for noise is not the same in other batches."""

        def forward(self, features, stream=None):
            return super().forward(features)

    halves = tiny_autoencoder(Sure(2, 0.1), adversarial=True, adaptive=False, accumulate=2).double()
    whole = tiny_autoencoder(Sure(2, 0.1), adversarial=True, adaptive=False).double()
    run = trainer(tmp_path, max_steps=3, max_epochs=-1, precision="64-true")
    run.fit(halves, datamodule=TinyData(batch_size=4))
    assert run.global_step == 3
    fit(whole, tmp_path, 3, precision="64-true")
    for name, value in state_of(whole).items():
        torch.testing.assert_close(state_of(halves)[name], value, rtol=0, atol=1e-13, msg=name)
    assert halves.images_seen == whole.images_seen == 24


def test_what_is_logged(tmp_path):
    module = tiny_autoencoder(adversarial=True)
    run = fit(module, tmp_path, 2, limit_val_batches=2, val_check_interval=1, logger=CSVLogger(tmp_path))
    told = {name: float(value) for name, value in run.callback_metrics.items()}
    assert {"loss", "reconstruction", "kl", "loss_g", "loss_d", "weight_g", "logit_real"} <= told.keys()
    assert {"val/loss", "val/reconstruction", "val/psnr", "val/ssim-3", "val/kl"} <= told.keys()
    held_out = from_uint8(TinyData().split("val").images[:16])
    made = module.reconstruct(held_out)
    assert told["val/reconstruction"] == pytest.approx(
        float((module.net(held_out).image.detach() - held_out).abs().mean()), abs=1e-6
    )
    each = 10 * torch.log10(4 / (made - held_out).square().flatten(1).mean(1))
    assert told["val/psnr"] == pytest.approx(float(each.mean()), abs=1e-4)


def test_images_latents_and_back():
    module = tiny_autoencoder(ema_half_lives=[10])
    images = torch.rand(3, *SHAPE) * 2 - 1
    latents = module.encode(images)
    assert latents.shape == (3, *module.latent_shape) == (3, 2, 2, 2)
    assert torch.equal(module.decode(latents), module.reconstruct(images))
    drawn = module.encode(images, GeneratorStream(None, 3))
    assert not torch.equal(drawn, latents)
    between = module.interpolate(images, images.flip(0), steps=5)
    assert between.shape == (3, 5, *SHAPE)
    assert torch.equal(between[:, 0], module.reconstruct(images))
    torch.testing.assert_close(between[:, -1], module.reconstruct(images.flip(0)))
    torch.testing.assert_close(between[1, 2], module.decode(latents[1:2])[0])  # between an image and itself
    with pytest.raises(ValueError, match="2 steps or more"):
        module.interpolate(images, images, steps=1)
    assert module.training


def test_a_perceptual_loss_is_added_under_its_name(tmp_path):
    module = tiny_autoencoder(perceptual="laplacian", perceptual_weight=2.0)
    name = module.perceptual.name
    x = batches(1)[0].float()
    made = module.net(x).image
    losses = module._losses(x, made)
    torch.testing.assert_close(losses.total, losses.parts["reconstruction"] + 2 * module.perceptual(x, made))
    run = fit(module, tmp_path, 2)
    assert name.startswith("laplacian")
    assert name in run.callback_metrics
    assert not any("perceptual" in key for key in module.state_dict())


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_log_variance_that_is_nan(tmp_path, policy):
    class Breaks(GaussianBottleneck):
        def forward(self, features, stream=None):
            number = getattr(self, "number", 0)
            self.number = number + 1
            features = features.clone()
            if number == 1:
                features[2, 3] = torch.nan
            return super().forward(features, stream)

    module = tiny_autoencoder(Breaks(2), adversarial=True, on_nonfinite=policy)
    before = state_of(module)
    if policy == "stop":
        with pytest.raises(RunError, match=r"iteration 1 is NaN or infinite \(samples \[2\] of the batch\)"):
            fit(module, tmp_path, 3)
    else:
        run = fit(module, tmp_path, 3)
        assert run.callback_metrics["skipped_batches"] == 1
    after = state_of(module)
    assert all(value.isfinite().all() for value in after.values())
    assert not same(before, after)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tiny_autoencoder(adversarial=True, adversarial_weight=-1.0), "adversarial_weight is 0 or more"),
        (lambda: tiny_autoencoder(distance="l3"), "There is no distance 'l3'"),
        (lambda: tiny_autoencoder(adversarial=True, discriminator_start=-1), "discriminator_start is an iteration"),
        (lambda: tiny_autoencoder(discriminator=TinyDiscriminator(num_classes=3)), "num_classes=null"),
        (lambda: TinyImageEncoder((1, 5, 4)), r"2 does not divide 5 x 4: resize or crop the data to 4 x 4"),
        (
            lambda: Autoencoder(TinyImageEncoder(out_channels=3), TinyImageDecoder(), GaussianBottleneck(2)),
            "encoder makes 3 channels, and the GaussianBottleneck .bottleneck. has 4",
        ),
        (
            lambda: Autoencoder(TinyImageEncoder(), TinyImageDecoder(in_channels=3), GaussianBottleneck(2)),
            "bottleneck makes 2 channels, and the TinyImageDecoder .decoder. has 3",
        ),
        (
            lambda: Autoencoder(TinyImageEncoder((1, 8, 8)), TinyImageDecoder(), GaussianBottleneck(2)),
            "built for images",
        ),
        (lambda: GaussianBottleneck(0), "channels is 1 or more"),
        (lambda: GaussianBottleneck(2, -1.0), "weight is 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_averages_of_codes_are_not_kept_in_half_precision(tmp_path):
    module = tiny_autoencoder(VectorQuantizer(3, 8, ema_decay=0.9))
    with pytest.raises(MisconfigurationException, match="lost in bf16-true"):
        fit(module, tmp_path, 1, precision="bf16-true")
    fit(tiny_autoencoder(VectorQuantizer(3, 8, ema_decay=0.9)), tmp_path, 1, precision="bf16-mixed")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bottleneck": VectorQuantizer(3, 8, restart_below=0.1)}, "not restarted where they are sharded"),
        ({"adversarial": True}, "adaptive=false"),
        ({"compile_network": True}, "compile_network"),
    ],
)
def test_what_cannot_be_sharded_is_refused(arguments, match):
    with pytest.raises(MisconfigurationException, match=match):
        tiny_autoencoder(**arguments).check_sharding()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked by the compiler itself
def test_compiled_networks_train_as_eager_ones_do(tmp_path):
    trained = []
    for compiled in (False, True):
        module = tiny_autoencoder(adversarial=True, compile_network=compiled).double()
        fit(module, tmp_path, 2, precision="64-true")
        trained.append(state_of(module))
    assert trained[0].keys() == trained[1].keys()
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=1e-10, msg=name)


def test_images_of_another_size_and_shape():
    module = tiny_autoencoder()
    assert module.reconstruct(torch.zeros(1, 1, 8, 6)).shape == (1, 1, 8, 6)
    with pytest.raises(ValueError, match="2 does not divide 8 x 5"):
        module.encode(torch.zeros(1, 1, 8, 5))
    with pytest.raises(ValueError, match=r"takes images of shape \(B, 1, H, W\), not \(1, 3, 4, 4\)"):
        module.encode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="has no classes"):
        module.sample(2, cond=1)
