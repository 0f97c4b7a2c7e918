"""The module of flows: what it minimizes, draws and tells."""

import math

import pytest
import torch
from affine_flow import AffineFlow
from tiny import SHAPE, TinyData, tiny_flow, trainer, weights

from lightning_gen.dequantization import dequantize, to_levels
from lightning_gen.flow import NormalizingFlow
from lightning_gen.flow.density import log_density
from lightning_gen.images import from_uint8
from lightning_gen.optimizers import DiffusionAdamW
from lightning_gen.seeding import SampleStreams


def normal(net, label=None):
    return torch.distributions.Normal(net._mean(label), net.log_std.exp())


def some_images(n=5, levels=256):
    values = torch.randint(levels, (n, *SHAPE), generator=torch.Generator().manual_seed(0))
    return values.double() / (levels - 1) * 2 - 1


# ---------------------------------------------------------------------- likelihood


def test_the_log_density_is_the_closed_form():
    module = NormalizingFlow(AffineFlow()).double()
    x = some_images()
    expected = normal(module.net).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(module.log_prob(x), expected, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_per_dimension_are_the_closed_form(levels):
    module = NormalizingFlow(AffineFlow(), levels=levels).double()
    x = some_images(levels=levels)
    y = dequantize(x, SampleStreams(4, 7, 5, dtype=torch.float64), levels)
    expected = -normal(module.net).log_prob(y).flatten(1).mean(1) / math.log(2) + math.log2((levels - 1) / 2)
    torch.testing.assert_close(module.bits_per_dim(x, seed=4, offset=7), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_bits_per_dimension_bound_the_probability_of_bytes():
    """Of normal pixels that is the integral over a byte; where they are broad, the bound is nearly met."""
    module = NormalizingFlow(AffineFlow(spread=0.0)).double()
    x = some_images(2000)
    base = normal(module.net)
    cells = base.cdf(x + 1 / 255) - base.cdf(x - 1 / 255)
    exact = -cells.log2().flatten(1).mean(1)
    bound = module.bits_per_dim(x)
    assert float((bound - exact).mean()) == pytest.approx(0, abs=5e-4)
    narrow = NormalizingFlow(AffineFlow(mean=-1.0, std=0.003, spread=0.0)).double()
    dark = -torch.ones(200, *SHAPE, dtype=torch.float64)
    cell = torch.erf(torch.tensor(1 / 255 / 0.003 / math.sqrt(2), dtype=torch.float64))
    assert float(narrow.bits_per_dim(dark).mean()) > -float(cell.log2()) + 0.03


def test_classes_shift_the_density():
    module = NormalizingFlow(AffineFlow(num_classes=3)).double()
    x, label = some_images(3), torch.tensor([2, 0, 1])
    expected = normal(module.net, label).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(module.log_prob(x, label), expected, rtol=1e-13, atol=1e-12)
    with pytest.raises(ValueError, match="give those of the images"):
        module.log_prob(x)


def test_normal_noise_has_no_bits_per_dimension():
    with pytest.raises(ValueError, match="noise_std=0"):
        tiny_flow(noise_std=0.1).bits_per_dim(some_images().float())


# ---------------------------------------------------------------------- training


class Heard(NormalizingFlow):
    """Keep the images and the classes that the network is given."""

    def _noisy(self, images, stream):
        self.given = (images, super()._noisy(images, stream))
        return self.given[1]


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_the_loss_is_the_likelihood_of_images_with_noise(noise_std, tmp_path):
    torch.manual_seed(0)
    module = Heard(AffineFlow(), noise_std=noise_std, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).double()
    run = trainer(tmp_path, max_steps=1, max_epochs=-1, precision="64-true")
    run.fit(module, datamodule=TinyData(n=64, batch_size=64))
    images, noisy = module.given
    noise = noisy - images
    expected = -normal(module.net).log_prob(noisy).mean()
    torch.testing.assert_close(run.callback_metrics["loss"].double(), expected.detach(), rtol=1e-6, atol=1e-6)
    if noise_std:
        assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
        assert noise.abs().max() > 0.6
        assert "bits_per_dim" not in run.callback_metrics
    else:
        assert noise.abs().max() <= 1 / 255
        bits = expected.detach() / math.log(2) + math.log2(127.5)
        torch.testing.assert_close(run.callback_metrics["bits_per_dim"].double(), bits, rtol=1e-6, atol=1e-6)


def test_training_finds_the_likeliest_density(tmp_path):
    """Of independent normal pixels: mean and deviation of the data, dequantisation included."""
    module = NormalizingFlow(AffineFlow(), optimizer=lambda p: DiffusionAdamW(p, lr=0.02)).double()
    data = TinyData(n=256, batch_size=256)
    trainer(tmp_path, max_steps=300, max_epochs=-1, precision="64-true").fit(module, datamodule=data)
    x = from_uint8(torch.stack([item["image"] for item in data.split("train")])).double()
    torch.testing.assert_close(module.net.mean.detach(), x.mean(0), rtol=0, atol=0.003)
    std = (x.var(0, correction=0) + 1 / 255**2 / 3).sqrt()
    torch.testing.assert_close(module.net.log_std.detach().exp(), std, rtol=0, atol=0.005)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_classes_are_left_out_as_often_as_asked_for(dropout, tmp_path):
    heard = []

    class Net(AffineFlow):
        def forward(self, x, label=None):
            heard.append(label.clone())
            return super().forward(x, label)

    module = NormalizingFlow(Net(num_classes=4), label_dropout=dropout)
    trainer(tmp_path, max_steps=4, max_epochs=-1).fit(module, datamodule=TinyData(n=256, batch_size=256, num_classes=4))
    labels = torch.stack(heard)
    expected = torch.arange(256) % 4
    left_out = labels == 4
    assert float(left_out.float().mean()) == pytest.approx(dropout, abs=0.06)
    assert torch.equal(labels[~left_out], expected.expand_as(labels)[~left_out])
    assert dropout == 0 or not torch.equal(left_out[0], left_out[1])


def test_held_out_images_have_the_same_noise_always(tmp_path):
    module = tiny_flow(ema_half_lives=[50])
    results = []
    for batch_size in (8, 8, 5):
        run = trainer(tmp_path, limit_val_batches=1.0)
        results.append(run.validate(module, datamodule=TinyData(n=24, batch_size=batch_size), verbose=False)[0])
        torch.rand(3)
    assert results[0] == results[1]
    assert results[0]["val/loss"] == pytest.approx(results[2]["val/loss"], abs=1e-6)
    assert set(results[0]) == {"val/loss", "val/bits_per_dim", "val/nats"}
    assert results[0]["val/nats"] == pytest.approx(results[0]["val/bits_per_dim"] * 16 * math.log(2), rel=1e-5)
    bits = results[0]["val/loss"] / math.log(2) + math.log2(127.5)
    assert results[0]["val/bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    x = from_uint8(torch.stack([item["image"] for item in TinyData(n=24).split("val")]))
    assert float(module.bits_per_dim(x).mean()) == pytest.approx(results[0]["val/bits_per_dim"], rel=1e-5)


def test_held_out_images_are_seen_by_the_average(tmp_path):
    module = tiny_flow(ema_half_lives=[10_000], ema_warmup=None, optimizer=lambda p: DiffusionAdamW(p, lr=0.01))
    trainer(tmp_path, max_steps=5, max_epochs=-1).fit(module, datamodule=TinyData())
    found = trainer(tmp_path, limit_test_batches=1.0).test(module, datamodule=TinyData(n=16), verbose=False)[0]
    x = from_uint8(torch.stack([item["image"] for item in TinyData(n=16).split("test")]))
    by_average, by_network = (float(module.bits_per_dim(x, weights=name).mean()) for name in ("ema", "raw"))
    assert found["test/bits_per_dim"] == pytest.approx(by_average, abs=1e-5)
    assert abs(by_average - by_network) > 1e-3


# ---------------------------------------------------------------------- sampling


def test_samples_are_the_inverse_of_noise():
    module = NormalizingFlow(AffineFlow(spread=0.1), levels=256).double()
    z = SampleStreams(3, 0, 6, dtype=torch.float64).normal(*SHAPE)
    expected = to_levels(module.net.inverse(z), 256)
    assert torch.equal(module.sample(6, seed=3), expected.detach())


@pytest.mark.parametrize("temperature", [0.2, 0.7])
def test_the_temperature_is_the_deviation_of_the_noise(temperature):
    module = NormalizingFlow(AffineFlow(spread=0.0, std=0.2, mean=0.0))
    std = float(module.sample(2000, seed=0, temperature=temperature).std())
    assert std == pytest.approx(0.2 * temperature, rel=0.02)


def test_samples_have_the_values_of_the_data():
    module = NormalizingFlow(AffineFlow(), levels=17)
    samples = module.sample(50, seed=0)
    assert len(samples.unique()) == 17
    assert torch.equal(samples, to_levels(samples, 17))


def test_samples_of_a_noisy_flow_are_taken_free_of_noise():
    module = NormalizingFlow(AffineFlow(spread=0.1), noise_std=0.3).double()
    noisy, clean = (module.sample(8, seed=1, denoise=how) for how in (False, None))
    z = SampleStreams(1, 0, 8, dtype=torch.float64).normal(*SHAPE)
    x = module.net.inverse(z)
    variance = module.net.log_std.exp().square()
    expected = x - 0.09 * (x - module.net.mean) / variance
    torch.testing.assert_close(noisy, x.clamp(-1, 1).detach())
    torch.testing.assert_close(clean, expected.clamp(-1, 1).detach())
    assert torch.equal(clean, module.sample(8, seed=1, denoise=True))
    with pytest.raises(ValueError, match="noise_std is 0"):
        NormalizingFlow(AffineFlow()).sample(1, denoise=True)


def test_guidance_and_classes_reach_the_network():
    module = tiny_flow(num_classes=4, noise_std=0.05).double()
    with torch.no_grad():
        for block in module.net.blocks:
            block.last.weight.normal_(std=0.3)
    label = torch.tensor([0, 1, 2, 3])
    z = SampleStreams(0, 0, 4, dtype=torch.float64).normal(*SHAPE)
    for how in ({"guidance": 2.0}, {"guidance": 2.0, "weak_temperature": 3.0}, {"guidance": 1.0}):
        expected = module.net.inverse(z, label, **how).clamp(-1, 1).detach()
        assert torch.equal(module.sample(4, cond=label, seed=0, denoise=False, **how), expected)
    module.guidance, module.weak_temperature = 2.0, 3.0
    expected = module.net.inverse(z, label, 2.0, 3.0).clamp(-1, 1).detach()
    assert torch.equal(module.sample(4, cond=label, seed=0, denoise=False), expected)


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_samples_are_drawn_in_inference_mode_too(noise_std):
    """As callbacks do in a validation."""
    module = tiny_flow(noise_std=noise_std)
    with torch.no_grad():
        module.net.blocks[0].last.weight.normal_(std=0.2)
    expected = module.sample(3, seed=0)
    with torch.inference_mode():
        assert torch.equal(module.sample(3, seed=0), expected)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_trains_and_draws_in_half_precision(precision, tmp_path):
    module = tiny_flow(num_classes=4, ema_half_lives=[50], optimizer=lambda p: DiffusionAdamW(p, lr=0.01))
    run = trainer(tmp_path, max_steps=30, max_epochs=-1, precision=precision)
    run.fit(module, datamodule=TinyData(n=64, batch_size=64, num_classes=4))
    bits = float(run.callback_metrics["bits_per_dim"])
    assert 8.0 < bits < 8.3  # of bytes that are noise there are 8; the identity has 8.56
    samples = module.sample(4, seed=0)
    assert samples.dtype == torch.float32
    assert samples.isfinite().all()


def test_samples_and_bits_change_nothing():
    module = tiny_flow(num_classes=4, noise_std=0.05)
    before = weights(module)
    module.sample(3, seed=0, guidance=2.0)
    module.log_prob(some_images(3).float(), torch.tensor([0, 1, 2]))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.net.training


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"levels": 1}, "2 to 256"),
        ({"noise_std": -0.1}, "noise_std"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"guidance": 2.0}, "weak_temperature"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite"),
    ],
)
def test_bad_arguments_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        tiny_flow(**arguments)


@pytest.mark.parametrize(("how", "told"), [({"temperature": 0.0}, "temperature"), ({"weights": "ema"}, "weights")])
def test_bad_options_are_refused(how, told):
    with pytest.raises(ValueError, match=told):
        tiny_flow().sample(1, **how)


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    trained = []
    for accumulate in (1, 2):

        class Fixed(NormalizingFlow):
            def _noisy(self, images, stream):
                return images + 0.01 * torch.sin(37 * images)

        module = tiny_flow(cls=Fixed, accumulate=accumulate, gradient_clip_val=0.5, ema_half_lives=[100]).double()
        data = TinyData(n=64, batch_size=16 // accumulate)
        trainer(tmp_path, max_steps=4, max_epochs=-1, precision="64-true").fit(module, datamodule=data)
        trained.append(weights(module))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=1e-12)


def test_a_run_that_is_taken_up_is_the_one_that_was_not_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    data = {"datamodule": TinyData(n=16)}
    arguments = {"max_epochs": -1, "limit_val_batches": 0}
    straight, first, second = (tiny_flow(ema_half_lives=[50], num_classes=None, seed=seed) for seed in (0, 0, 1))
    trainer(tmp_path, max_steps=4, **arguments).fit(straight, **data)
    run = trainer(tmp_path, max_steps=2, **arguments)
    run.fit(first, **data)
    run.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, max_steps=4, **arguments).fit(second, **data, ckpt_path=tmp_path / "half.ckpt")
    assert second.images_seen == straight.images_seen == 32
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(straight).items())


def test_log_prob_passes_gradients_to_images():
    module = tiny_flow().double()
    with torch.no_grad():
        module.net.blocks[0].last.weight.normal_(std=0.2)
    x = some_images(2).requires_grad_()
    (gradient,) = torch.autograd.grad(module.log_prob(x).sum(), x)
    assert gradient.isfinite().all()
    step = 1e-6 * gradient
    moved = log_density(module.net, x + step) - log_density(module.net, x - step)
    torch.testing.assert_close(moved, 2 * (step * gradient).flatten(1).sum(1), rtol=1e-5, atol=0)
