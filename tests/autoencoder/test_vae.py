"""The module: training, likelihoods, latents and pictures of them."""

import copy
import logging
import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from linear import Affine, D, linear_net, log_evidence, some_images
from tiny import SHAPE, TinyData, tiny_vae, trainer, weights

from lightning_gen.autoencoder import (
    ELBO,
    IWAE,
    VAE,
    Bernoulli,
    BetaTC,
    DiscretizedLogistic,
    Gaussian,
    Ladder,
    StandardNormal,
    VampPrior,
)
from lightning_gen.autoencoder.active_units import active_units
from lightning_gen.autoencoder.binarization import dynamic_binary, static_binary
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.importance import importance_sampled
from lightning_gen.autoencoder.interpolation import slerp
from lightning_gen.autoencoder.posterior_flows import AutoregressivePosterior
from lightning_gen.errors import RunError
from lightning_gen.images import from_uint8
from lightning_gen.networks.latent_conv import ConvDecoder
from lightning_gen.networks.latent_mlp import MLPDecoder, MLPEncoder
from lightning_gen.seeding import SampleStreams


def images(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return from_uint8(torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8))


def fitted(tmp_path, steps=3, module=None, data=None, **settings):
    module = tiny_vae() if module is None else module
    run = trainer(tmp_path, max_steps=steps, max_epochs=-1, **settings)
    run.fit(module, datamodule=data or TinyData())
    return run, module


# ---------------------------------------------------------------------- likelihood


def test_the_likelihood_of_a_linear_model_is_exact():
    """With the true posterior every draw tells log p(x); with another one many do."""
    x = some_images()
    for exact, samples, tolerance in ((True, 3, 1e-10), (False, 100_000, 0.05)):
        net = linear_net(exact)
        with torch.no_grad():
            stream = SampleStreams(0, 0, len(x), dtype=torch.float64)
            nats = importance_sampled(net, x, None, stream, samples)
            torch.testing.assert_close(nats, log_evidence(net, x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("samples", [1, 2, 7])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_a_likelihood_uses_exactly_the_draws_asked_for(samples, chunk, monkeypatch):
    module = tiny_vae().double()
    drawn = []
    terms = type(module.net).terms

    def counted(self, features, x, noise, label=None):
        drawn.append(len(noise))
        return terms(self, features, x, noise, label)

    monkeypatch.setattr(type(module.net), "terms", counted)
    nats = module.log_likelihood(images().double(), samples=samples, chunk=chunk)
    assert sum(drawn) == samples
    assert max(drawn) <= (chunk or samples)
    whole = module.log_likelihood(images().double(), samples=samples, chunk=samples)
    torch.testing.assert_close(nats, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("latents", [{}, {"ladder": ([3, 2], [8, 6])}])
def test_the_likelihood_of_an_image_is_that_of_its_seed_and_number(latents):
    module, x = tiny_vae(**latents).double(), images().double()
    whole = module.log_likelihood(x, samples=5, chunk=2, seed=3)
    parts = torch.cat(
        [module.log_likelihood(x[:2], samples=5, seed=3), module.log_likelihood(x[2:], samples=5, seed=3, offset=2)]
    )
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert not torch.equal(module.log_likelihood(x, samples=5, seed=4), whole)


def test_bits_are_nats_per_dimension_and_need_a_mass():
    module, x = tiny_vae(likelihood=DiscretizedLogistic()).double(), images().double()
    nats = module.log_likelihood(x, samples=4)
    torch.testing.assert_close(module.bits_per_dim(x, samples=4), -nats / (16 * math.log(2)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="binarize images for Bernoulli"):
        tiny_vae().bits_per_dim(images())
    with pytest.raises(ValueError, match="is a density"):
        tiny_vae(likelihood=Gaussian()).bits_per_dim(images())
    tiny_vae().bits_per_dim(static_binary(images()))
    with pytest.raises(ValueError, match="chunk is the number"):
        module.log_likelihood(x, chunk=0)
    with pytest.raises(ValueError, match="samples is the number"):
        module.log_likelihood(x, samples=0)


# ---------------------------------------------------------------------- where it starts


def test_it_starts_at_the_mean_of_the_images(tmp_path):
    """The decoder says the mean whatever the latent, up to its small first weights; the average of weights too."""
    module = tiny_vae(start_at_mean=True, ema_half_lives=[100]).double()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    data = TinyData()
    run = trainer(tmp_path, max_steps=1, max_epochs=-1, limit_train_batches=0, limit_val_batches=0)
    run.fit(module, datamodule=data)
    mean = torch.stack([from_uint8(data.split("train")[i]["image"]) for i in range(data.n)]).double().mean(0)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{net}.decoder.head.bias" for net in ("net", "net_ema.averages.ema-100.network")}
    for name in ("raw", "ema"):
        bias = module._picked(name).decoder.head.bias
        torch.testing.assert_close(bias, torch.logit((mean + 1) / 2).flatten(), rtol=0, atol=1e-6, msg=name)


def test_a_trained_model_does_not_start_again(tmp_path):
    run, module = fitted(tmp_path, steps=3, module=tiny_vae(start_at_mean=True))
    run.save_checkpoint(tmp_path / "x.ckpt")
    for path in (None, str(tmp_path / "x.ckpt")):
        again = tiny_vae(start_at_mean=True)
        if path is None:
            again.on_load_checkpoint(torch.load(tmp_path / "x.ckpt", weights_only=True))
            again.load_state_dict(module.state_dict())
        trainer(tmp_path, max_steps=3, max_epochs=-1, limit_train_batches=0).fit(again, TinyData(), ckpt_path=path)
        assert torch.equal(again.net.decoder.head.bias, module.net.decoder.head.bias)
    # nor the same object, in the hands of another trainer
    before = weights(module)
    trainer(tmp_path, max_steps=1, max_epochs=-1, limit_train_batches=0, limit_val_batches=0).fit(module, TinyData())
    assert module.iterations == 3
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (lambda: tiny_vae(start_at_mean=True, likelihood=DiscretizedLogistic()), "use Bernoulli or Gaussian"),
        (lambda: VAE(MLPEncoder([8], SHAPE), ConvDecoder(2, 1, 8, SHAPE), 3, start_at_mean=True), "use MLPDecoder"),
    ],
)
def test_what_cannot_start_at_the_mean_says_so(tmp_path, module, match):
    with pytest.raises(ValueError, match=match):
        fitted(tmp_path, module=module())


def test_data_that_cannot_be_read_one_by_one(tmp_path):
    loader = TinyData().train_dataloader()
    with pytest.raises(MisconfigurationException, match="start_at_mean reads the training images"):
        trainer(tmp_path, max_steps=1).fit(tiny_vae(start_at_mean=True), loader, loader)


def test_training_draws_as_many_latents_as_the_objective_says(tmp_path, monkeypatch):
    module = tiny_vae(objective=IWAE(4, warmup=32))
    drawn, noise = [], type(module.net).noise

    def counted(self, stream, samples):
        drawn.append(samples)
        return noise(self, stream, samples)

    monkeypatch.setattr(type(module.net), "noise", counted)
    fitted(tmp_path, steps=6, module=module, limit_val_batches=0)
    assert drawn == [1, 1, 2, 2, 4, 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked by the compiler itself
@pytest.mark.parametrize(
    "arguments", [{}, {"objective": IWAE(3, warmup=8), "binarize": "static"}, {"likelihood": Gaussian(0.3, "scalar")}]
)
def test_compiled_networks_train_as_eager_ones_do(tmp_path, arguments):
    trained = []
    for compiled in (False, True):
        module = tiny_vae(compile_network=compiled, **copy.deepcopy(arguments)).double()
        fitted(tmp_path, steps=3, module=module, precision="64-true")
        trained.append(weights(module))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=1e-10, msg=name)


# ---------------------------------------------------------------------- black and white


def test_an_image_is_always_the_same_black_and_white_one():
    x = images(40)
    whole = static_binary(x)
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(static_binary(x[order]), whole[order])
    assert torch.equal(static_binary(x[3:4]), whole[3:4])
    assert torch.equal(static_binary(x.double()).float(), whole)
    assert torch.equal(static_binary(whole), whole)
    other = x.clone()
    other[0, 0, 0, 0] += 2 / 255
    assert not torch.equal(static_binary(other)[0, 0, 1:], whole[0, 0, 1:])  # another image, another draw


def test_the_hash_is_that_of_the_formula():
    """SplitMix64 in whole numbers of Python, modulo 2 ** 64."""
    mask = 2**64 - 1

    def scrambled(number):
        number = (number + 1) * 0x9E3779B97F4A7C15 & mask
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & mask
        number = (number ^ number >> 27) * 0x94D049BB133111EB & mask
        return number ^ number >> 31

    bytes_ = torch.randint(0, 256, (3, 1, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for image, found in zip(
        bytes_.flatten(1).tolist(), static_binary(from_uint8(bytes_)).flatten(1).tolist(), strict=True
    ):
        total = sum(value * scrambled(place) for place, value in enumerate(image))
        for place, value in enumerate(image):
            drawn = (scrambled((total + scrambled(place)) & mask) >> 40) / 2**24
            assert found[place] == (1 if drawn < value / 255 else -1)


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_pixels_are_white_with_their_brightness(how):
    values = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8)
    noise = torch.randint(0, 256, (20_000, 1, 1, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = from_uint8(torch.cat([values.expand(20_000, 1, 1, 6), noise], dim=3))
    made = static_binary(x) if how == "static" else dynamic_binary(x, SampleStreams(0, 0, 20_000))
    white = (made[:, 0, 0, :6] == 1).double()
    torch.testing.assert_close(white.mean(0), values.double() / 255, rtol=0, atol=0.02)
    assert white[:, 0].sum() == 0
    assert white[:, 5].sum() == 20_000
    assert torch.corrcoef(white[:, 2:5].T).fill_diagonal_(0).abs().max() < 0.04


def test_dynamic_draws_differ_from_look_to_look_and_static_ones_do_not():
    x = images()
    for how, same in (("static", True), ("dynamic", False), (None, True)):
        module = tiny_vae(binarize=how)
        first, second = (module.observed(x, SampleStreams(seed, 0, len(x))) for seed in (0, 1))
        assert torch.equal(first, second) == same
        assert torch.equal(first, x) == (how is None)


# ---------------------------------------------------------------------- training and logs


def test_what_is_logged_is_a_bound_and_its_parts(tmp_path):
    module = tiny_vae(objective=ELBO(beta=4.0), binarize="static")
    run, module = fitted(tmp_path, limit_val_batches=8, val_check_interval=3, module=module)
    logged = {name: value.item() for name, value in run.callback_metrics.items()}
    assert logged["kl"] >= 0
    assert logged["val/kl"] >= 0
    assert logged["loss"] == pytest.approx(logged["reconstruction"] + 4 * logged["kl"], rel=1e-6)
    assert logged["elbo"] == pytest.approx(-logged["reconstruction"] - logged["kl"], rel=1e-6)
    assert 0 <= logged["active_units"] <= 3
    # the bound of validation has no weight: nats of an image, the same in every run over the same data
    assert logged["val/elbo"] == pytest.approx(-logged["val/reconstruction"] - logged["val/kl"], rel=1e-6)
    again = run.validate(module, datamodule=TinyData(), verbose=False)[0]
    assert again["val/elbo"] == pytest.approx(logged["val/elbo"], rel=1e-6)


def test_the_test_logs_the_likelihood_by_its_number_of_draws(tmp_path):
    module = tiny_vae(binarize="static", test_samples=2000, objective=IWAE(3))
    logged = trainer(tmp_path).test(module, datamodule=TinyData(n=16), verbose=False)[0]
    x = from_uint8(TinyData(n=16).split("test").images)
    nats = module.log_likelihood(static_binary(x), samples=20_000)
    assert logged["test/log_likelihood"] == pytest.approx(nats.mean().item(), abs=0.02)
    assert logged["test/elbo"] < logged["test/iwae"] < 0
    assert logged["test/bits_per_dim"] == pytest.approx(-logged["test/log_likelihood"] / (16 * math.log(2)), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, False),
        ({"likelihood": Gaussian()}, False),
        ({"binarize": "dynamic"}, True),
        ({"likelihood": DiscretizedLogistic()}, True),
        ({"likelihood": DiscretizedLogistic(4)}, False),  # of bytes
    ],
)
def test_bits_are_logged_where_there_are_any(arguments, told, tmp_path):
    logged = trainer(tmp_path).test(tiny_vae(**arguments), datamodule=TinyData(n=16), verbose=False)[0]
    assert ("test/bits_per_dim" in logged) == told
    assert "test/log_likelihood" in logged
    none = tiny_vae(test_samples=0, **arguments)
    assert "test/log_likelihood" not in trainer(tmp_path).test(none, datamodule=TinyData(n=16), verbose=False)[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, True), ({"binarize": "dynamic"}, False), ({"likelihood": Gaussian()}, False)],
)
def test_images_that_the_likelihood_is_none_of_are_told_once(arguments, said, tmp_path, caplog):
    name = "lightning_gen.autoencoder.beginning"
    with caplog.at_level(logging.WARNING, logger=name):
        fitted(tmp_path, module=tiny_vae(**arguments))
    texts = [record.getMessage() for record in caplog.records if record.name == name]
    assert len(texts) == said
    assert all("is no likelihood of them" in text and "--model.binarize" in text for text in texts)


def test_bytes_and_unequal_ends_are_refused():
    with pytest.raises(ValueError, match=r"takes images in \[-1, 1\], not torch.uint8: .*from_uint8"):
        tiny_vae().reconstruct(torch.zeros(2, *SHAPE, dtype=torch.uint8))
    with pytest.raises(ValueError, match="given were 6 and 2"):
        tiny_vae().interpolate(images(), images(2))


def test_images_that_are_black_and_white_already_have_bits(tmp_path):
    data = TinyData(n=16)
    whole, split = TinyData.split, data.split("test")
    split.images = (split.images > 127).byte() * 255
    data.split = lambda name: split if name == "test" else whole(data, name)
    (logged,) = trainer(tmp_path).test(tiny_vae(), datamodule=data, verbose=False)
    assert logged["test/bits_per_dim"] == pytest.approx(-logged["test/log_likelihood"] / (16 * math.log(2)), rel=1e-6)


def test_the_objective_knows_how_far_training_is(tmp_path):
    _, module = fitted(tmp_path, steps=4, module=tiny_vae(objective=ELBO(warmup=1000)))
    assert module.trainer.callback_metrics["beta"].item() == pytest.approx(3 * 8 / 1000)


def test_the_number_of_images_comes_from_the_data(tmp_path):
    _, module = fitted(tmp_path, module=tiny_vae(objective=BetaTC()))
    assert module._data_size == 64

    class Silent(TinyData):
        split = None

        def train_dataloader(self):
            return torch.utils.data.DataLoader(TinyData().split("train"), batch_size=8)

    with pytest.raises(MisconfigurationException, match="give it as data_size"):
        fitted(tmp_path, module=tiny_vae(objective=BetaTC()), data=Silent())
    fitted(tmp_path, module=tiny_vae(objective=BetaTC(data_size=64)), data=Silent())


def test_a_bound_rises_with_training(tmp_path):
    run = trainer(tmp_path, limit_val_batches=8)
    module = tiny_vae(binarize="static", optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    before = run.validate(module, datamodule=TinyData(), verbose=False)[0]
    fitted(tmp_path, steps=60, module=module, data=TinyData(n=512))
    after = run.validate(module, datamodule=TinyData(), verbose=False)[0]
    assert after["val/elbo"] > before["val/elbo"] + 0.1


class Diverging(MLPEncoder):
    """An encoder whose log variances are NaN in its third pass."""

    passes = 0

    def forward(self, x, label=None):
        self.passes += 1
        features = super().forward(x, label)
        if self.passes == 3:
            features = torch.cat([features[:, :3], features[:, 3:] * torch.nan], dim=1)
        return features


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_variance_that_is_not_a_number_moves_no_weight(policy, tmp_path):
    torch.manual_seed(0)
    from lightning_gen.autoencoder.vae import VAE

    module = VAE(Diverging([8], SHAPE), MLPDecoder([8], SHAPE), 3, on_nonfinite=policy)
    if policy == "stop":
        with pytest.raises(
            RunError, match=r"loss of iteration 2 is NaN or infinite \(samples \[0, 1, .* of the batch\)"
        ):
            fitted(tmp_path, steps=4, module=module, log_every_n_steps=100)
    else:
        fitted(tmp_path, steps=4, module=module, log_every_n_steps=100)
        assert module.skipped_batches == 1
    assert all(torch.isfinite(value).all() for value in weights(module).values())


def test_a_flow_trains_and_is_told_by_the_encoder(tmp_path):
    module = tiny_vae(posterior_flow=Affine(3))
    before = weights(module)
    run, _ = fitted(tmp_path, module=module, limit_val_batches=8, val_check_interval=3)
    assert module.net.encoder.outputs == 12
    moved = (module.net.encoder.head.weight != before["net.encoder.head.weight"]).any(1)
    assert moved.all()  # the context's rows among them
    assert math.isfinite(run.callback_metrics["val/elbo"].item())
    with pytest.raises(ValueError, match="leave posterior_flow and ladder out"):
        tiny_vae(posterior_flow=Affine(3), objective=BetaTC())


def test_active_units_vary_over_images():
    means = torch.zeros(50, 4)
    means[:, 0] = torch.linspace(-1, 1, 50)
    means[:, 1] = 5.0
    means[:, 2] = 0.05 * torch.linspace(-1, 1, 50)
    assert active_units(means) == 1


def test_half_precision_trains(tmp_path):
    for precision in ("bf16-mixed", "bf16-true"):
        flow = {"posterior_flow": AutoregressivePosterior(3, 2, hidden=[4])}
        for latents in ({}, {"ladder": ([3, 2], [8, 6])}, {"prior": VampPrior(3, 4)}, flow):
            run, module = fitted(tmp_path, module=tiny_vae(**latents), precision=precision, limit_val_batches=1)
            assert math.isfinite(run.callback_metrics["loss"].item())
            assert module.sample(2, seed=0).isfinite().all()


# ---------------------------------------------------------------------- classes


def test_classes_reach_both_networks(tmp_path):
    _, module = fitted(tmp_path, module=tiny_vae(num_classes=4), data=TinyData(num_classes=4))
    x = images()
    zeros, ones = (module.encode(x, label) for label in (0, 1))
    assert not torch.equal(zeros, ones)
    assert not torch.equal(module.decode(zeros, 0), module.decode(zeros, 1))
    assert not torch.equal(module.sample(3, seed=0, cond=0), module.sample(3, seed=0, cond=1))
    mixed = module.decode(zeros, [0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(mixed[1:2], module.decode(zeros[1:2], 1), rtol=0, atol=1e-6)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    whole = module.log_likelihood(x, labels, samples=3)
    one = module.log_likelihood(x[1:2], 1, samples=3, offset=1)
    torch.testing.assert_close(one, whole[1:2], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="give those of the images as cond"):
        module.encode(x)
    with pytest.raises(ValueError, match="has no classes"):
        tiny_vae().encode(x, 1)
    with pytest.raises(ValueError, match="its data has no labels"):
        trainer(tmp_path, limit_val_batches=1).validate(module, datamodule=TinyData(), verbose=False)


# ---------------------------------------------------------------------- samples and latents


def test_samples_are_means_or_draws():
    module = tiny_vae(likelihood=Bernoulli())
    gray, drawn = module.sample(6, seed=0), module.sample(6, seed=0, mean=False)
    assert ((gray > -1) & (gray < 1)).all()
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    pieces = torch.cat([module.sample(2, seed=0, mean=False), module.sample(4, seed=0, offset=2, mean=False)])
    assert (pieces != drawn).sum() <= 1  # where a probability, rounded, is the number drawn


def test_a_temperature_of_zero_gives_one_image():
    module = tiny_vae()
    cold = module.sample(4, seed=0, temperature=0.0)
    torch.testing.assert_close(cold, cold[:1].expand_as(cold), rtol=0, atol=1e-6)
    torch.testing.assert_close(cold[:1], module.decode(torch.zeros(1, 3)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="temperature is 0 or more"):
        module.sample(4, temperature=-1.0)


class Shifted(StandardNormal):
    """The standard normal, five further."""

    def sample(self, stream):
        return super().sample(stream) + 5


def test_a_sampling_prior_is_used_once_it_is_fitted(tmp_path):
    module = tiny_vae(sampling_prior=Shifted(3))
    plain = module.sample(4, seed=0)
    assert torch.equal(plain, tiny_vae().sample(4, seed=0))
    module.sampling_prior_fitted.fill_(True)
    shifted = module.decode(5 + SampleStreams(0, 0, 4).normal(3))
    torch.testing.assert_close(module.sample(4, seed=0), shifted, rtol=0, atol=1e-6)
    other = tiny_vae(sampling_prior=Shifted(3))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.sample(4, seed=0), module.sample(4, seed=0))
    with pytest.raises(ValueError, match="has no temperature"):
        module.sample(4, temperature=0.5)
    with pytest.raises(ValueError, match="sampling_prior is of latents of length 2"):
        tiny_vae(sampling_prior=Shifted(2))


def test_latents_are_means_or_draws():
    module, x = tiny_vae(), images()
    mean = module.encode(x)
    assert mean.shape == (6, *module.net.latent_shape) == (6, 3, 1, 1)
    posterior = DiagonalGaussian.of(module.net.encoder(x))
    torch.testing.assert_close(mean.flatten(1), posterior.mean.detach(), rtol=0, atol=1e-6)
    drawn = module.encode(x, seed=0)
    expected = posterior.mean + posterior.std * SampleStreams(0, 0, 6).normal(3)
    torch.testing.assert_close(drawn.flatten(1), expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(module.reconstruct(x), module.decode(mean), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["linear", "slerp"])
def test_an_interpolation_goes_from_one_image_to_the_other(how):
    module, first, second = tiny_vae(), images(2), images(2, seed=1)
    way = module.interpolate(first, second, 5, how=how)
    assert way.shape == (2, 5, *SHAPE)
    torch.testing.assert_close(way[:, 0], module.reconstruct(first), rtol=0, atol=1e-5)
    torch.testing.assert_close(way[:, -1], module.reconstruct(second), rtol=0, atol=1e-5)
    latents = module.interpolate(module.encode(first), module.encode(second).flatten(1), 5, how=how)
    torch.testing.assert_close(latents, way, rtol=0, atol=1e-6)
    if how == "linear":
        middle = module.decode((module.encode(first) + module.encode(second)) / 2)
        torch.testing.assert_close(way[:, 2], middle, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="2 or more steps"):
        module.interpolate(first, second, 1)
    with pytest.raises(ValueError, match="Did you mean 'linear'"):
        module.interpolate(first, second, how="linar")


def test_a_great_circle_keeps_lengths_and_goes_evenly():
    first, second = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    places = torch.linspace(0, 1, 4).double()[:, None]
    way = slerp(first.expand(4, 2), second.expand(4, 2), places)
    torch.testing.assert_close(way.norm(dim=1), torch.full((4,), 2.0).double(), rtol=0, atol=1e-12)
    angles = torch.atan2(way[:, 1], way[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 4).double(), rtol=0, atol=1e-7)
    straight = slerp(first.expand(4, 2), 3 * first.expand(4, 2), places)
    torch.testing.assert_close(straight[:, 0], 2 + 4 * places[:, 0], rtol=0, atol=1e-12)


def test_a_traversal_moves_one_dimension():
    module, x = tiny_vae(num_classes=4), images(1)
    rows = module.traverse(x, [0, 2], (-2.0, 2.0), 5, cond=1)
    assert rows.shape == (2, 5, *SHAPE)
    latents = module.encode(x, 1).flatten(1).repeat(5, 1)
    latents[:, 2] = torch.linspace(-2, 2, 5)
    torch.testing.assert_close(rows[1], module.decode(latents, 1), rtol=0, atol=1e-6)
    assert module.traverse(x, cond=1).shape == (3, 7, *SHAPE)
    with pytest.raises(ValueError, match="dimensions of 0 to 2"):
        module.traverse(x, [3], cond=1)
    with pytest.raises(ValueError, match=r"Given are images \(B, 1, 4, 4\) or latents \(B, 3\)"):
        tiny_vae().traverse(torch.zeros(1, 5))


def test_averages_are_of_all_networks(tmp_path):
    module = tiny_vae(
        ema_half_lives=[1_000_000], ema_warmup=None, prior=VampPrior(3, 4), likelihood=Gaussian(0.5, "scalar")
    )
    before = weights(module.net)
    fitted(tmp_path, module=module)
    averaged = weights(module.net_ema["ema-1000000"].network)
    assert before.keys() == averaged.keys()
    for name, value in averaged.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-4)
    assert not torch.equal(module.sample(2, seed=0), module.sample(2, seed=0, weights="raw"))
    assert module.weights_used() == "ema-1000000"


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="latent_dim is the length"):
        tiny_vae(latent_dim=None)
    with pytest.raises(ValueError, match="leave latent_dim, prior and posterior_flow out"):
        tiny_vae(ladder=([3], [8]), latent_dim=3)
    with pytest.raises(ValueError, match="Did you mean 'static'"):
        tiny_vae(binarize="statically")
    with pytest.raises(ValueError, match="is learned together with the encoder"):
        tiny_vae(sampling_prior=VampPrior(3, 4))
    with pytest.raises(ValueError, match="test_samples is the number of draws"):
        tiny_vae(test_samples=-1)
    with pytest.raises(ValueError, match="leave posterior_flow and ladder out"):
        tiny_vae(ladder=([3], [8]), objective=BetaTC())
    assert isinstance(tiny_vae(ladder=([3], [8])).net.latents, Ladder)
    assert D == 2
