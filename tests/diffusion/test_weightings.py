"""Weights in units of the image, and what is learned of them."""

import copy
import math

import pytest
import torch

from lightning_gen.diffusion.parameterizations import X0, EDMPreconditioning, Epsilon, V, Velocity
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, diffuse, scaled
from lightning_gen.diffusion.weightings import (
    SNR,
    EDMWeighting,
    LearnedUncertainty,
    MinSNR,
    Plain,
    SoftMinSNR,
)

TIMES = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


def close(actual, expected, tolerance=1e-13):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)


def snr(path):
    alpha, sigma = path.coefficients(TIMES)
    return alpha**2 / sigma**2


@pytest.mark.parametrize("path", [VP(), DiscreteVP(), CosineVP()])
def test_plain_losses_in_units_of_the_image(path):
    """As published: SNR for the noise, SNR + 1 for v, 1 for the image."""
    level = path.at(TIMES)
    for parameterization, weight in (
        (Epsilon(), snr(path)),
        (V(), snr(path) + 1),
        (X0(), torch.ones_like(TIMES)),
        (EDMPreconditioning(0.5), snr(path) + 4),
    ):
        scales = parameterization.scales(level)
        assert bool((Plain().of_output(level, scales) == 1).all())
        # the error of the image is c_out times that of the output
        close(1 / scales.out.square(), weight)


def test_the_plain_loss_of_rectified_flow():
    level = RectifiedFlow().at(TIMES)
    weight = 1 / Velocity().scales(level).out.square()
    close(weight, 1 / TIMES**2)
    close(weight, (1 + 1 / level.noise_level) ** 2)


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), VE(), EDM(), DiscreteVP()])
def test_weights_by_their_formulas(path):
    level, level_of_noise = path.at(TIMES), 1 / snr(path).sqrt()
    close(SNR().of_image(level), snr(path))
    close(MinSNR(5.0).of_image(level), torch.minimum(snr(path), torch.tensor(5.0)))
    close(SoftMinSNR(0.7).of_image(level), 1 / (level_of_noise**2 + 0.49))
    close(EDMWeighting(0.7).of_image(level), (level_of_noise**2 + 0.49) / (level_of_noise * 0.7) ** 2)
    for data in (0.5, 1.0):
        scales = EDMPreconditioning(data).scales(level)
        close(EDMWeighting(data).of_output(level, scales), torch.ones_like(TIMES), 1e-14)


def test_weights_where_nothing_of_the_image_is_left():
    level = CosineVP().at(torch.ones(1))
    for weighting, weight in ((SNR(), 0.0), (MinSNR(), 0.0), (SoftMinSNR(), 0.0), (EDMWeighting(0.5), 4.0)):
        assert weighting.of_image(level).item() == weight
        assert weighting.of_output(level, V().scales(level)).item() == weight


def test_min_snr_gives_the_same_gradients_whatever_is_predicted():
    """The three published forms of the loss, one network behind them all; ours has one form."""
    torch.manual_seed(0)
    path, gamma = VP(), 5.0
    level = path.at(torch.linspace(0.05, 0.95, 16, dtype=torch.float64))
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    x0, noise = torch.randn(2, 16, 6, dtype=torch.float64)
    x_t = diffuse(x0, noise, level)
    ratio = (alpha / sigma).square()
    bounded = ratio.clamp(max=gamma)
    start = torch.randn(6, 6, dtype=torch.float64)

    def gradient(loss_of):
        matrix = start.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss_of(x_t @ matrix), matrix)
        return found

    def of_noise(image):
        return (bounded / ratio * ((x_t - alpha * image) / sigma - noise).square()).mean()

    def of_image(image):
        return (bounded * (image - x0).square()).mean()

    def of_v(image):
        v = (alpha * x_t - image) / sigma
        return (bounded / (ratio + 1) * (v - (alpha * noise - sigma * x0)).square()).mean()

    def ours(parameterization):
        scales = parameterization.scales(level)

        def loss(image):
            output = scaled(image - scaled(x_t, scales.skip), 1 / scales.out)
            target = scaled(x0, scales.clean) + scaled(noise, scales.noise)
            return MinSNR(gamma).weigh((output - target).square().mean(1), level, scales).mean()

        return loss

    expected = gradient(of_image)
    losses = [of_noise, of_v, *(ours(p) for p in (X0(), Epsilon(), V(), EDMPreconditioning(0.5), Velocity()))]
    for loss in losses:
        torch.testing.assert_close(gradient(loss), expected, rtol=0, atol=2e-14 * float(expected.abs().max()))


def learned(**arguments):
    return LearnedUncertainty(**arguments).double()


def test_uncertainty_begins_with_the_loss_as_it_is():
    level = EDM().at(TIMES)
    scales, error = EDMPreconditioning().scales(level), torch.rand(99, dtype=torch.float64)
    for base in (None, Plain(), MinSNR()):
        given = base if base is not None else EDMWeighting()
        weighting = learned(base=copy.deepcopy(base))
        assert torch.equal(weighting.weigh(error, level, scales), given.weigh(error, level, scales))
        assert not weighting.log_variance(level).any()


def test_uncertainty_finds_the_logarithm_of_the_mean_loss():
    """E[L e^-u + u] is least at u = log E[L], where it is 1 + log E[L], at every noise level by itself."""
    torch.manual_seed(0)
    places = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    level = EDM().at(places.repeat_interleave(50))
    scales = EDMPreconditioning().scales(level)
    means = torch.tensor([0.01, 0.3, 7.0], dtype=torch.float64)
    error = torch.rand(3, 50, dtype=torch.float64)
    error = (error * (means / error.mean(1))[:, None]).flatten()
    weighting = learned()
    optimizer = torch.optim.LBFGS(
        weighting.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = weighting.weigh(error, level, scales).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        found, loss = weighting.log_variance(EDM().at(places)), weighting.weigh(error, level, scales)
    torch.testing.assert_close(found, means.log(), rtol=0, atol=1e-7)
    torch.testing.assert_close(loss.view(3, 50).mean(1), 1 + means.log(), rtol=0, atol=1e-7)


def test_uncertainty_draws_nothing_from_the_global_generator():
    torch.manual_seed(1)
    one = LearnedUncertainty()
    torch.manual_seed(2)
    other = LearnedUncertainty()
    assert one.state_dict().keys() == {"frequencies", "phases", "linear.weight"}
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_uncertainty_is_finite_at_infinite_noise_and_without_any():
    weighting = learned()
    torch.nn.init.normal_(weighting.linear.weight)
    level = CosineVP().at(torch.tensor([0.0, 0.5, 1.0]))
    assert bool(torch.isfinite(weighting.log_variance(level)).all())


def test_uncertainty_tells_noise_levels_apart_in_half_precision():
    torch.manual_seed(0)
    weighting = LearnedUncertainty()
    torch.nn.init.normal_(weighting.linear.weight)
    level = EDM().at(torch.linspace(0.3, 0.31, 64, dtype=torch.float64))
    exact = weighting.log_variance(level)
    half = weighting.bfloat16().log_variance(level)
    assert half.dtype == torch.bfloat16
    # neighbors are not rounded to one noise level: the values follow the exact ones
    assert torch.corrcoef(torch.stack([exact, half.float()]))[0, 1] > 0.99


def test_the_gradient_of_uncertainty_reaches_network_and_weights():
    level = EDM().at(TIMES)
    scales, error = EDMPreconditioning().scales(level), torch.rand(99, dtype=torch.float64, requires_grad=True)
    weighting = learned()
    weighting.weigh(error, level, scales).mean().backward()
    torch.testing.assert_close(error.grad, torch.full_like(error, 1 / 99), rtol=1e-12, atol=0)
    assert weighting.linear.weight.grad.abs().sum() > 0
    assert math.isfinite(weighting.linear.weight.grad.sum())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSNR(0.0), "MinSNR takes gamma above 0; given was 0.0"),
        (lambda: SoftMinSNR(0.0), "SoftMinSNR takes sigma_data above 0"),
        (lambda: EDMWeighting(-1.0), "EDMWeighting takes sigma_data above 0"),
        (lambda: LearnedUncertainty(channels=1), "2 channels or more"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weighting_is_a_module_like_any_other():
    """A function for every part of a model, as initializations are, finds those of its weighting too."""
    model, seen = torch.nn.Sequential(torch.nn.Linear(1, 1), LearnedUncertainty(base=MinSNR())), []
    model.apply(lambda part: seen.append(type(part).__name__))
    assert seen == ["Linear", "MinSNR", "Linear", "LearnedUncertainty", "Sequential"]
