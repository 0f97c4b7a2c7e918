"""Likelihoods against torch's and scipy's distributions, and probability masses added up over all values."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_gen.autoencoder import Bernoulli, DiscretizedLogistic, DiscretizedLogisticMixture, Gaussian
from lightning_gen.autoencoder.logistics import log_mass
from lightning_gen.autoencoder.softplus import softplus_sum
from lightning_gen.images import from_uint8
from lightning_gen.seeding import GeneratorStream, SampleStreams

KINDS = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "scalar": lambda: Gaussian(0.3, "scalar"),
    "pixel": lambda: Gaussian(0.3, "pixel"),
    "logistic": lambda: DiscretizedLogistic(5),
    "mixture": lambda: DiscretizedLogisticMixture(3, 5),
}


def described(likelihood, n=4, channels=3, seed=0, size=2):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, likelihood.channels_out(channels), size, size)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def images(n=4, channels=3, levels=5, seed=1, size=2):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (n, channels, size, size), generator=generator)
    return values.double() * 2 / (levels - 1) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_nats_are_summed_over_an_image(kind, channels):
    """The log-likelihood of an image is the sum over its parts: no mean over pixels anywhere."""
    likelihood = KINDS[kind]().double()
    params, x = described(likelihood, channels=channels), images(channels=channels)
    whole = likelihood.log_prob(params, x)
    assert whole.shape == (4,)
    parts = sum(likelihood.log_prob(params[:, :, i : i + 1], x[:, :, i : i + 1]) for i in range(2))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    several = likelihood.log_prob(torch.stack([params, params.flip(0)]), x)
    torch.testing.assert_close(several[0], whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(several[1], likelihood.log_prob(params.flip(0), x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_means_and_draws_are_images(kind):
    likelihood = KINDS[kind]().double()
    params = 3 * described(likelihood)
    for made in (likelihood.mean(params), likelihood.sample(params, SampleStreams(0, 0, 4, dtype=torch.float64))):
        assert made.shape == (4, 3, 2, 2)
        assert made.abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_summed_in_float32(kind):
    likelihood = KINDS[kind]()
    params = described(likelihood).float()
    exact = likelihood.log_prob(params.bfloat16().float(), images().float())
    rough = likelihood.log_prob(params.bfloat16(), images().float())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=1e-4)


def test_gaussian_is_torchs():
    x = images()
    fixed = Gaussian(0.7).double()
    params = described(fixed)
    expected = torch.distributions.Normal(params, 0.7).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(fixed.log_prob(params, x), expected, rtol=0, atol=1e-12)
    for how in ("scalar", "pixel"):
        learned = Gaussian(0.7, how).double()
        more = params if how == "scalar" else torch.cat([params, torch.zeros_like(params)], dim=1)
        torch.testing.assert_close(learned.log_prob(more, x), expected, rtol=0, atol=1e-6)


def test_a_learned_deviation_finds_the_best_one():
    """At the optimum of one deviation for all pixels, its square is the mean squared error."""
    likelihood = Gaussian(1.0, "scalar").double()
    params, x = described(likelihood), images()
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = -likelihood.log_prob(params, x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    _, log_std = likelihood._read(params)
    assert log_std.exp().item() ** 2 == pytest.approx((params - x).square().mean().item(), rel=1e-8)


def test_bernoulli_is_the_cross_entropy_and_a_mass():
    likelihood = Bernoulli()
    params, x = described(likelihood), images()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(params, (x + 1) / 2, reduction="none")
    torch.testing.assert_close(likelihood.log_prob(params, x), -expected.sum((1, 2, 3)), rtol=0, atol=1e-12)
    one = described(likelihood, n=1, channels=1)
    all_images = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64).view(16, 1, 2, 2)
    masses = likelihood.log_prob(one, all_images).exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(
        (masses.view(-1, 1, 1, 1) * all_images).sum(0, keepdim=True), likelihood.mean(one), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fast_softplus_is_torchs_to_the_rounding_of_one(dtype):
    """Its gradient is the sigmoid, at 0 and far out too; differentiated again it is the sigmoid's derivative."""
    spread = torch.linspace(-60, 60, 4001, dtype=dtype)
    logits = torch.cat([spread, torch.tensor([0.0, -1e4, 1e4, 300.0, -300.0], dtype=dtype)])[:, None].requires_grad_()
    found, exact = softplus_sum(logits), torch.logaddexp(logits[:, 0].double(), torch.zeros(()).double())
    assert ((found - exact).abs() <= torch.finfo(dtype).eps * exact.clamp(min=1)).all()
    first = torch.autograd.grad(found.sum(), logits, create_graph=True)[0]
    torch.testing.assert_close(first, torch.sigmoid(logits), rtol=0, atol=0)
    second = torch.autograd.grad(first.sum(), logits)[0]
    torch.testing.assert_close(second, (first * (1 - first)).detach(), rtol=0, atol=1e-7)
    assert torch.autograd.gradcheck(
        softplus_sum, torch.linspace(-9, 9, 8, dtype=torch.float64).view(2, 4).requires_grad_()
    )


@pytest.mark.parametrize("shape", [(3, 5, 784), (1, 1, 100_000), (2, 0, 4), (0, 3), (7,)])
def test_sums_in_parts_are_sums(shape):
    logits = 9 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = [logits.clone().requires_grad_() for _ in range(2)]
    sums = [softplus_sum(given[0]), torch.logaddexp(given[1], torch.zeros(()).double()).sum(-1)]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-13, atol=1e-12)
    weights = torch.rand(sums[0].shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((weights * each).sum(), x)[0] for each, x in zip(sums, given, strict=True)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian", "scalar", "pixel"])
def test_parameters_of_a_mean_have_that_mean(kind):
    likelihood = KINDS[kind]().double()
    mean = 0.98 * images(n=1)[0]
    params = likelihood.params_of(mean)
    assert params.shape[0] == likelihood.channels_out(3)
    torch.testing.assert_close(likelihood.mean(params[None])[0], mean, rtol=0, atol=1e-12)
    if kind != "bernoulli":  # the deviation is the one it starts from
        assert likelihood._read(params[None])[1].exp().unique().item() == pytest.approx(likelihood.std)


def test_black_and_white_means_stay_finite():
    params = Bernoulli().params_of(torch.tensor([[[-1.0, 1.0]]]))
    torch.testing.assert_close(Bernoulli().mean(params[None]), torch.tensor([[[[-0.998, 0.998]]]]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="leave start_at_mean out"):
        DiscretizedLogistic().params_of(torch.zeros(1, 2, 2))


@pytest.mark.parametrize("levels", [2, 5, 17, 256])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -4.0, 0.0, 8.0, 300.0])
@pytest.mark.parametrize("mean", [-40.0, -1.0, 0.013, 0.9, 1.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_logistic_adds_up_to_one_and_has_finite_gradients(levels, log_scale, mean, dtype):
    """The cells at the ends included, at scales far below a cell and far above all."""
    x = torch.linspace(-1, 1, levels, dtype=dtype)
    parameters = [torch.full((levels,), value, dtype=dtype, requires_grad=True) for value in (mean, log_scale)]
    logs = log_mass(x, *parameters, levels)
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-12 if dtype == torch.float64 else 2e-5)
    assert torch.isfinite(logs).all()
    for gradient in torch.autograd.grad(logs.sum(), parameters):
        assert torch.isfinite(gradient).all()


def test_a_logistic_is_scipys():
    likelihood = DiscretizedLogistic(17)
    params, x = described(likelihood), images(levels=17)
    mean, scale = params[:, :3].numpy(), params[:, 3:].exp().numpy()
    cell, half = stats.logistic(mean, scale), 1 / 16
    upper = np.where(x == 1, 1.0, cell.cdf(x + half))
    lower = np.where(x == -1, 0.0, cell.cdf(x - half))
    expected = torch.tensor(np.log(upper - lower)).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.log_prob(params, x), expected, rtol=0, atol=1e-9)


def test_the_mixture_is_that_of_the_paper():
    """Component by component in numpy: the channels of a pixel share one, and each depends on those before it."""
    likelihood = DiscretizedLogisticMixture(3, 17)
    params, x = described(likelihood), images(levels=17).numpy()
    numbers = params.numpy().reshape(4, 10, 3, 2, 2)
    logits, m, s, c = numbers[:, 0], numbers[:, 1:4], np.exp(numbers[:, 4:7]), np.tanh(numbers[:, 7:10])
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    red, green, blue = (x[:, i : i + 1] for i in range(3))
    means = [m[:, 0], m[:, 1] + c[:, 0] * red, m[:, 2] + c[:, 1] * red + c[:, 2] * green]
    total = weights
    for i, value in enumerate((red, green, blue)):
        cell = stats.logistic(means[i], s[:, i])
        upper = np.where(value == 1, 1.0, cell.cdf(value + 1 / 16))
        total = total * (upper - np.where(value == -1, 0.0, cell.cdf(value - 1 / 16)))
    expected = torch.tensor(np.log(total.sum(1)).sum((1, 2)))
    torch.testing.assert_close(likelihood.log_prob(params, torch.tensor(x)), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_mixture_adds_up_to_one_over_all_pixels_of_three_channels(scale):
    likelihood = DiscretizedLogisticMixture(4, 3)
    params = (scale * described(likelihood, n=1, size=1)).requires_grad_()
    every = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=3)), dtype=torch.float64).view(27, 3, 1, 1)
    logs = likelihood.log_prob(params, every)
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    (gradient,) = torch.autograd.grad(logs.sum(), params)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["bernoulli", "logistic", "mixture"])
def test_draws_are_as_frequent_as_their_mass(kind):
    likelihood = DiscretizedLogisticMixture(3, 3) if kind == "mixture" else KINDS[kind]()
    levels = {"bernoulli": 2, "logistic": 5, "mixture": 3}[kind]
    channels = 3 if kind == "mixture" else 1
    one, n = described(likelihood, n=1, channels=channels, size=1), 40_000
    stream = GeneratorStream(torch.Generator().manual_seed(3), n, dtype=torch.float64)
    drawn = likelihood.sample(one.expand(n, -1, -1, -1), stream).flatten(1)
    values = torch.linspace(-1, 1, levels, dtype=torch.float64).tolist()
    for pixel in itertools.product(values, repeat=channels):
        x = torch.tensor(pixel, dtype=torch.float64)
        mass = likelihood.log_prob(one, x.view(1, channels, 1, 1)).exp().item()
        found = (drawn == x).all(1).double().mean().item()
        assert found == pytest.approx(mass, abs=5 * (mass * (1 - mass) / n) ** 0.5 + 1e-9)


def test_a_mean_is_that_of_the_draws():
    likelihood = DiscretizedLogisticMixture(3)
    one, n = 0.3 * described(likelihood, n=1, size=1), 40_000
    one[:, 12:21] = -3.0  # scales that leave nothing to the ends
    stream = GeneratorStream(torch.Generator().manual_seed(3), n, dtype=torch.float64)
    drawn = likelihood.sample(one.expand(n, -1, -1, -1), stream)
    torch.testing.assert_close(drawn.mean(0, keepdim=True), likelihood.mean(one), rtol=0, atol=0.01)


def test_all_bytes_are_levels():
    likelihood = DiscretizedLogistic()
    x = from_uint8(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16))
    likelihood.check(x)
    likelihood.check_mass(x)
    # the grays of scikit-learn's digits, rounded to bytes
    grays = from_uint8((torch.arange(17) * 255 / 16).round().to(torch.uint8).view(1, 1, 1, 17))
    DiscretizedLogistic(17).check_mass(grays)


def test_what_is_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"Bernoulli takes images in \[-1, 1\]; given were values up to 2"):
        Bernoulli().check(torch.full((1, 1, 2, 2), 2.0))
    with pytest.raises(ValueError, match=r"lies 127\.5 bytes beside them: binarize images"):
        Bernoulli().check_mass(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="is a density and has no bits per dimension"):
        Gaussian().check_mass(torch.zeros(1, 1, 2, 2))
    black_and_white = torch.tensor([[[[-1.0, 1.0]]]])
    assert Bernoulli().is_mass_of(black_and_white)
    assert not Bernoulli().is_mass_of(0.5 * black_and_white)
    assert not Gaussian().is_mass_of(black_and_white)
    with pytest.raises(ValueError, match="levels is 2 to 256"):
        DiscretizedLogistic(1)
    with pytest.raises(ValueError, match="mixtures is 1 or more"):
        DiscretizedLogisticMixture(0)
    with pytest.raises(ValueError, match="std is above 0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="Did you mean 'pixel'"):
        Gaussian(1.0, "pixels")
