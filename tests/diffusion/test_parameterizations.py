"""Every parameterization on every path: the published definitions, and the image back from the target."""

import math

import pytest
import torch

from lightning_gen.diffusion.parameterizations import (
    PARAMETERIZATIONS,
    X0,
    EDMPreconditioning,
    Epsilon,
    V,
    Velocity,
)
from lightning_gen.diffusion.paths import (
    EDM,
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    RectifiedFlow,
    SigmoidVP,
    diffuse,
    scaled,
)

PATHS = {
    "VP": VP(),
    "CosineVP": CosineVP(),
    "SigmoidVP": SigmoidVP(),
    "VE": VE(),
    "EDM": EDM(),
    "RectifiedFlow": RectifiedFlow(),
    "DiscreteVP": DiscreteVP(),
    "zero": DiscreteVP(zero_terminal_snr=True),
}
ASKED = {
    "epsilon": Epsilon(),
    "x0": X0(),
    "v": V(),
    "velocity": Velocity(),
    "edm": EDMPreconditioning(),
    "edm 1": EDMPreconditioning(1.0),
}
REFUSED = {
    (name, path)
    for name, paths in {
        "epsilon": ("CosineVP", "SigmoidVP", "RectifiedFlow", "zero"),
        "edm": ("CosineVP", "SigmoidVP", "RectifiedFlow", "zero"),
        "edm 1": ("CosineVP", "SigmoidVP", "RectifiedFlow", "zero"),
        "velocity": ("SigmoidVP",),
    }.items()
    for path in paths
}
PAIRS = [(name, path) for name in ASKED for path in PATHS if (name, path) not in REFUSED]
# in the middle of steps of the tables too, where their slope does not jump
TIMES = torch.tensor([0.0005, 0.0205, 0.2505, 0.5005, 0.9005, 0.9995], dtype=torch.float64)


def drawn():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(len(TIMES), 2, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))


def row(values):
    return values.view(-1, 1, 1, 1)


def published(name, path, x0, noise):
    """The target, by the papers' definitions and nothing of the library but alpha and sigma."""
    alpha, sigma = (row(value) for value in path.coefficients(TIMES))
    if name == "epsilon":
        return noise
    if name == "x0":
        return x0
    if name == "v":
        return alpha * noise - sigma * x0
    if name == "velocity":
        h = 5e-5  # the slope of x_t by differences of fourth order
        far_down, down, up, far_up = (diffuse(x0, noise, path.at(TIMES + k * h)) for k in (-2, -1, 1, 2))
        return (far_down - 8 * down + 8 * up - far_up) / (12 * h)
    data, level = 0.5 if name == "edm" else 1.0, sigma / alpha
    c_skip = data**2 / (level**2 + data**2)
    c_out = level * data / (level**2 + data**2).sqrt()
    return (x0 - c_skip * (x0 + level * noise)) / c_out


@pytest.mark.parametrize(("name", "path"), PAIRS)
def test_the_target_is_the_published_one(name, path):
    x0, noise = drawn()
    scales = ASKED[name].scales(PATHS[path].at(TIMES))
    target = scaled(x0, scales.clean) + scaled(noise, scales.noise)
    expected = published(name, PATHS[path], x0, noise)
    rtol = {"velocity": 1e-7, "edm": 1e-11, "edm 1": 1e-11}.get(name, 1e-14)  # the formulas above cancel
    # what the slope's differences are off by where sigma is the root of t: (h / t)^4 of it
    rows = slice(1, None) if name == "velocity" else slice(None)
    torch.testing.assert_close(target[rows], expected[rows], rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("name", "path"), PAIRS)
def test_the_target_gives_the_image_back(name, path):
    x0, noise = drawn()
    level = PATHS[path].at(TIMES)
    scales = ASKED[name].scales(level)
    target = scaled(x0, scales.clean) + scaled(noise, scales.noise)
    x_t = diffuse(x0, noise, level)
    image = scaled(x_t, scales.skip) + scaled(target, scales.out)
    # sigma / alpha times what x_t rounds off
    allowed = 1e-12 * (1 if name != "epsilon" else row(level.noise_level).clamp_min(1))
    assert bool(((image - x0).abs() <= allowed).all())


@pytest.mark.parametrize("path", PATHS)
def test_every_target_converts_into_every_other(path):
    """By way of the image, from any output at all; back again it is the same output."""
    level = PATHS[path].at(TIMES)
    x_t, output = drawn()
    names = [name for name in ASKED if (name, path) not in REFUSED]
    for first in names:
        scales = ASKED[first].scales(level)
        x0 = scaled(x_t, scales.skip) + scaled(output, scales.out)
        noise = scaled(x_t - scaled(x0, level.alpha), 1 / level.sigma)
        for second in names:
            other = ASKED[second].scales(level)
            converted = scaled(x0, other.clean) + scaled(noise, other.noise)
            image = scaled(x_t, other.skip) + scaled(converted, other.out)
            torch.testing.assert_close(image, x0, rtol=1e-9, atol=1e-9)
        back = scaled(x0, scales.clean) + scaled(noise, scales.noise)
        torch.testing.assert_close(back, output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["VP", "DiscreteVP", "CosineVP", "zero"])
def test_v_in_the_papers_of_it(path):
    """Where alpha^2 + sigma^2 = 1, the image is alpha x_t - sigma v and the noise sigma x_t + alpha v."""
    x0, noise = drawn()
    level = PATHS[path].at(TIMES)
    scales, alpha, sigma = V().scales(level), row(level.alpha), row(level.sigma)
    torch.testing.assert_close(scales.skip, level.alpha, rtol=1e-14, atol=0)
    torch.testing.assert_close(scales.out, -level.sigma, rtol=1e-14, atol=0)
    x_t, v = alpha * x0 + sigma * noise, scaled(x0, scales.clean) + scaled(noise, scales.noise)
    torch.testing.assert_close(sigma * x_t + alpha * v, noise, rtol=1e-12, atol=1e-12)


def test_the_velocity_of_rectified_flow_is_noise_less_image():
    scales = Velocity().scales(RectifiedFlow().at(TIMES))
    assert scales.clean.tolist() == [-1.0] * len(TIMES)
    assert scales.noise.tolist() == [1.0] * len(TIMES)
    torch.testing.assert_close(scales.skip, torch.ones_like(TIMES))
    torch.testing.assert_close(scales.out, -TIMES)


@pytest.mark.parametrize("data", [0.5, 1.0, 0.1])
@pytest.mark.parametrize("path", PATHS)
def test_edm_has_unit_variances(path, data):
    """Input and target of data of that deviation, and lambda c_out^2 with lambda = (s^2 + d^2) / (s d)^2."""
    level = PATHS[path].at(torch.linspace(0.001, 0.999, 999, dtype=torch.float64))
    scales = EDMPreconditioning(data).scales(level)
    one = torch.ones_like(level.t)
    of_input = scales.input.square() * ((level.alpha * data).square() + level.sigma.square())
    of_target = (scales.clean * data).square() + scales.noise.square()
    torch.testing.assert_close(of_input, one, rtol=0, atol=1e-15)
    torch.testing.assert_close(of_target, one, rtol=0, atol=1e-15)
    s = level.noise_level
    torch.testing.assert_close((s**2 + data**2) / (s * data) ** 2 * scales.out.square(), one, rtol=0, atol=2e-15)


@pytest.mark.parametrize("path", ["EDM", "VE"])
def test_edm_by_table_1(path):
    level = PATHS[path].at(TIMES)
    scales, s, d = EDMPreconditioning(0.5).scales(level), level.sigma, 0.5
    torch.testing.assert_close(scales.skip, d**2 / (s**2 + d**2), rtol=1e-14, atol=0)
    torch.testing.assert_close(scales.out, s * d / (s**2 + d**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(scales.input, 1 / (s**2 + d**2).sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(EDMPreconditioning().label(level), s.log() / 4, rtol=1e-14, atol=0)


@pytest.mark.parametrize("path", ["VP", "DiscreteVP"])
def test_edm_of_deviation_one_is_minus_v(path):
    level = PATHS[path].at(torch.linspace(0.001, 0.999, 999, dtype=torch.float64))
    edm, v = EDMPreconditioning(1.0).scales(level), V().scales(level)
    for ours, theirs, sign in zip(edm, v, (1, -1, 1, -1, -1), strict=True):
        torch.testing.assert_close(ours, sign * theirs, rtol=2e-15, atol=1e-15)


def test_steps_are_told_as_the_tables_count_them():
    path = DiscreteVP(1000)
    level = path.at(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    for name in ("epsilon", "x0", "v", "velocity"):
        label = ASKED[name].label(level)
        assert label.float().tolist() == list(range(1000))
        torch.testing.assert_close(label, torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_times_are_told_by_a_thousand():
    level = RectifiedFlow().at(torch.tensor([0.25, 1.0]))
    assert Velocity().label(level).tolist() == [250.0, 1000.0]
    assert Velocity(1.0).label(level).tolist() == [0.25, 1.0]


@pytest.mark.parametrize("path", ["VE", "EDM"])
def test_the_logarithm_of_edm_is_finite_to_both_ends(path):
    """Without noise at all it would be minus infinity, which these paths never reach."""
    label = EDMPreconditioning().label(PATHS[path].at(torch.tensor([0.0, 1.0])))
    low, high = PATHS[path].sigma_min, PATHS[path].sigma_max
    torch.testing.assert_close(label, torch.tensor([math.log(low) / 4, math.log(high) / 4]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "path"), [(name, path) for name in ASKED for path in PATHS])
def test_what_says_nothing_at_the_end_of_a_path_is_refused(name, path):
    if (name, path) in REFUSED:
        message = {"velocity": "infinite slope.*V or X0", "epsilon": "zero terminal SNR.*V, X0 or Velocity"}
        with pytest.raises(ValueError, match=message.get(name, "infinite noise level.*Velocity or V")):
            ASKED[name].check(PATHS[path])
        return
    ASKED[name].check(PATHS[path])
    # and the rest says something there
    scales = ASKED[name].scales(PATHS[path].at(torch.ones(1)))
    assert all(bool(torch.isfinite(value).all()) for value in scales)
    assert bool(torch.isfinite(ASKED[name].label(PATHS[path].at(torch.ones(1)))).all())


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="time_scale is above 0; given was 0"):
        V(0.0)
    with pytest.raises(ValueError, match="sigma_data is above 0; given was -1"):
        EDMPreconditioning(-1.0)


def test_every_parameterization_has_a_name():
    assert [type(value) for name, value in ASKED.items() if name != "edm 1"] == list(PARAMETERIZATIONS.values())
