"""Alpha and sigma against formulas worked out in fifty digits, and tables against diffusers."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from lightning_gen.diffusion.paths import (
    EDM,
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    RectifiedFlow,
    SigmoidVP,
    diffuse,
    precise,
    scaled,
)

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
CONTINUOUS = {
    "VP": VP(),
    "VP flat": VP(3.0, 3.0),
    "CosineVP": CosineVP(),
    "CosineVP plain": CosineVP(0.0),
    "SigmoidVP": SigmoidVP(),
    "SigmoidVP skewed": SigmoidVP(0.0, 3.0, 0.9),
    "SigmoidVP steep": SigmoidVP(-3.0, 3.0, 0.1),
    "VE": VE(),
    "EDM": EDM(),
    "RectifiedFlow": RectifiedFlow(),
}
TABLES = {
    "linear": DiscreteVP(),
    "scaled_linear": DiscreteVP(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": DiscreteVP(schedule="cosine"),
    "sigmoid": DiscreteVP(schedule="sigmoid"),
    "zero": DiscreteVP(zero_terminal_snr=True),
    "short": DiscreteVP(10, beta_start=0.05, beta_end=0.5),
    "of betas": DiscreteVP(betas=[0.1, 0.01, 0.3, 1.0]),
}
ALL = CONTINUOUS | TABLES
TIMES = [0.0, 1e-12, 1e-6, 1e-3, 0.01, 0.2, 0.5, 0.77, 0.99, 1 - 1e-6, 1.0]


def close(actual, expected, rtol=1e-14, atol=0.0):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


def cosine(x: Decimal) -> Decimal:
    total = term = Decimal(1)
    for k in range(1, 60):
        term *= -x * x / ((2 * k - 1) * 2 * k)
        total += term
    return total


def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


def alpha2_of_vp(path, t):
    low, high = Decimal(path.beta_min), Decimal(path.beta_max)
    return (-(low * t + (high - low) * t * t / 2)).exp()


def alpha2_of_cosine(path, t):
    offset = Decimal(path.offset)
    first, here = (cosine((u + offset) / (1 + offset) * PI / 2) ** 2 for u in (Decimal(0), t))
    return here / first


def alpha2_of_sigmoid(path, t):
    start, end, tau = Decimal(path.start), Decimal(path.end), Decimal(path.tau)
    low, high, value = (sigmoid(x / tau) for x in (start, end, start + t * (end - start)))
    return (high - value) / (high - low)


@pytest.mark.parametrize(
    ("name", "alpha2"),
    [
        ("VP", alpha2_of_vp),
        ("VP flat", alpha2_of_vp),
        ("CosineVP", alpha2_of_cosine),
        ("CosineVP plain", alpha2_of_cosine),
        ("SigmoidVP", alpha2_of_sigmoid),
        ("SigmoidVP skewed", alpha2_of_sigmoid),
    ],
)
def test_variance_preserving_paths_in_fifty_digits(name, alpha2):
    """Near both ends too, where a float64 difference of alpha^2 from 1 or 0 would have no digits left."""
    level = CONTINUOUS[name].at(torch.tensor(TIMES, dtype=torch.float64))
    with localcontext() as context:
        context.prec = 50
        exact = [alpha2(CONTINUOUS[name], Decimal(t)) for t in TIMES]
        alphas = [float(max(a, Decimal(0)).sqrt()) for a in exact]
        sigmas = [float((1 - a).sqrt()) for a in exact]
    close(level.alpha, alphas, rtol=1e-14, atol=1e-24)
    close(level.sigma, sigmas, rtol=1e-14)


def test_vp_is_the_integral_of_its_rate():
    for t in (0.1, 0.5, 1.0):
        integral, _ = quad(lambda s: 0.1 + s * 19.9, 0, t, epsabs=1e-14)
        level = VP().at(torch.tensor(t, dtype=torch.float64))
        close(level.alpha, math.exp(-integral / 2))
        close(level.alpha.square() + level.sigma.square(), 1.0, rtol=1e-15)


def test_the_other_paths_in_closed_form():
    t = torch.tensor(TIMES, dtype=torch.float64)
    ve, edm, flow = VE(0.02, 50.0).at(t), EDM().at(t), RectifiedFlow().at(t)
    assert bool((ve.alpha == 1).all())
    assert bool((edm.alpha == 1).all())
    close(ve.sigma, [0.02 * 2500.0**u for u in TIMES])
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    close(edm.sigma, [(low + u * (high - low)) ** 7 for u in TIMES])
    close(flow.alpha, [1 - u for u in TIMES], rtol=0)
    close(flow.sigma, TIMES, rtol=0)


def test_edm_times_are_its_published_steps_backwards():
    """Eq. 5: sigma_i = (sigma_max^(1/7) + i/(N-1) (sigma_min^(1/7) - sigma_max^(1/7)))^7, i = 0 the noisiest."""
    n = 18
    i = np.arange(n)
    published = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    close(EDM().at(1 - torch.arange(n) / (n - 1.0)).sigma, published, rtol=1e-6)
    close(EDM().at(1 - torch.arange(n, dtype=torch.float64) / (n - 1)).sigma, published, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_ends_are_exact_and_noise_grows(name):
    path = ALL[name]
    alpha, sigma = path.coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert alpha[0] == 1
    if name not in ("VE", "EDM"):
        assert sigma[0] == 0
    ends = name.startswith(("Cosine", "Sigmoid", "Rectified")) or name in ("zero", "of betas")
    assert path.ends_in_noise == ends == (alpha[1].item() == 0)
    if ends:
        assert sigma[1] == 1
    assert path.noise_scale() == sigma[1].item()
    level = path.at(torch.linspace(0, 1, 4001, dtype=torch.float64)).noise_level
    assert bool((level[1:] > level[:-1]).all())
    assert bool(torch.isfinite(level[:-1]).all())


@pytest.mark.parametrize("name", ALL)
def test_time_inverts_the_noise_level(name):
    """To a few roundings of the time itself: near t = 1 they move a steep noise level by more than its own.

    Tables turn an angle, whose roundings near a quarter turn weigh as much as the noise level.
    """
    path = ALL[name]
    asked = torch.logspace(-6, 6, 1201, dtype=torch.float64)
    t = path.time(asked)
    within = (t >= 0) & (t <= 1)
    assert within.sum() > 300
    level = path.at(t[within])
    dalpha, dsigma = level.derivatives
    steepness = (dsigma / level.sigma - dalpha / level.alpha).abs()
    turn = asked[within] if path.steps else 0
    allowed = 8 * torch.finfo(torch.float64).eps * (2 + steepness + turn)
    error = (level.noise_level / asked[within] - 1).abs()
    assert bool((error <= allowed).all()), (error / allowed).max()
    assert float(error[asked[within] <= 1].max()) < 1e-14


@pytest.mark.parametrize("name", ALL)
def test_time_at_the_ends(name):
    path = ALL[name]
    first, last = path.at(torch.tensor(0.0)).noise_level, path.at(torch.tensor(1.0)).noise_level
    close(path.time(first), 0.0, atol=1e-15)
    close(path.time(last), 1.0, rtol=1e-12)
    if path.ends_in_noise:
        assert torch.isinf(last)


@pytest.mark.parametrize("name", [*CONTINUOUS, "short", "zero"])
def test_derivatives_by_differences(name):
    path = ALL[name]
    # for tables, in the middle between two steps: the slope jumps at a step
    steps = path.steps or 10
    t = (torch.tensor([1.0, 3.0, 5.0, 8.0], dtype=torch.float64) + 0.5) / 10 + (0 if steps == 10 else 0.5 / steps)
    h = 5e-5
    places = [t + k * h for k in (-2, -1, 1, 2)]
    for which, slope in enumerate(path.at(t).derivatives):
        far_down, down, up, far_up = (path.coefficients(place)[which] for place in places)
        close(slope, (far_down - 8 * down + 8 * up - far_up) / (12 * h), rtol=1e-8, atol=1e-9)


def test_derivatives_in_closed_form():
    t = torch.tensor([1e-9, 0.1, 0.6, 1.0], dtype=torch.float64)
    level = VP().at(t)
    rate = 0.1 + t * 19.9
    dalpha, dsigma = level.derivatives
    close(dalpha, -0.5 * rate * level.alpha)
    close(dsigma, 0.5 * rate * level.alpha.square() / level.sigma, rtol=1e-12)
    dalpha, dsigma = RectifiedFlow().at(t).derivatives
    assert dalpha.tolist() == [-1.0] * 4
    assert dsigma.tolist() == [1.0] * 4
    close(VE().at(t).derivatives[1], VE().at(t).sigma * math.log(5000.0))


@pytest.mark.parametrize("name", ALL)
def test_no_slope_is_nan_at_the_ends(name):
    """An infinite slope is one; what is not a number would spread through a grid unseen."""
    dalpha, dsigma = ALL[name].at(torch.tensor([0.0, 1.0])).derivatives
    assert not bool(dalpha.isnan().any())
    assert not bool(dsigma.isnan().any())
    assert bool((dalpha <= 0).all())
    assert bool((dsigma >= 0).all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_derivatives_without_gradients(mode):
    with mode():
        dalpha, _ = VP().at(torch.tensor([0.5])).derivatives
    close(dalpha, -0.5 * (0.1 + 0.5 * 19.9) * VP().at(torch.tensor([0.5])).alpha)


@pytest.mark.parametrize("name", ALL)
def test_times_of_single_precision_are_computed_in_double(name):
    """In float32 a cosine is off by 1e-5."""
    t = torch.tensor([0.013, 0.4, 0.97])
    level = ALL[name].at(t)
    assert level.t.dtype == level.alpha.dtype == level.sigma.dtype == torch.float64
    exact = ALL[name].at(t.double())
    assert torch.equal(level.alpha, exact.alpha)
    assert torch.equal(level.sigma, exact.sigma)
    assert ALL[name].time(torch.tensor([0.5])).dtype == torch.float64


def betas_of(schedule, steps, start=1e-4, end=0.02):
    if schedule == "linear":
        return np.linspace(start, end, steps)
    if schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    if schedule == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps)))

    def bar(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - bar((k + 1) / steps) / bar(k / steps), 0.999) for k in range(steps)])


@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [("linear", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012), ("cosine", 1e-4, 0.02), ("sigmoid", 1e-4, 0.02)],
)
def test_tables_are_products_in_fifty_digits(schedule, start, end):
    steps = 200 if schedule == "cosine" else 1000
    path = DiscreteVP(steps, schedule, start, end)
    level = path.at(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    alphas, sigmas = [], []
    with localcontext() as context:
        context.prec = 50
        product = Decimal(1)
        for beta in betas_of(schedule, steps, start, end):
            product *= 1 - Decimal(float(beta))
            alphas.append(float(product.sqrt()))
            sigmas.append(float((1 - product).sqrt()))
    # a beta of the cosine is itself the difference of 1 and a ratio
    near = 1e-11 if schedule == "cosine" else 1e-14
    close(level.alpha, alphas, rtol=1e-13 if schedule != "cosine" else 1e-12, atol=1e-16)
    close(level.sigma, sigmas, rtol=near)


@pytest.mark.parametrize(
    ("schedule", "theirs", "zero"),
    [
        ("linear", "linear", False),
        ("scaled_linear", "scaled_linear", False),
        ("cosine", "squaredcos_cap_v2", False),
        ("sigmoid", "sigmoid", False),
        ("linear", "linear", True),
        ("scaled_linear", "scaled_linear", True),
    ],
)
def test_tables_of_diffusers(schedule, theirs, zero):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, rescale_betas_zero_snr=zero)
    level = DiscreteVP(1000, schedule, zero_terminal_snr=zero).at(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    # theirs is a product of a thousand float32 numbers
    torch.testing.assert_close(
        level.alpha.square(), scheduler.alphas_cumprod.double(), rtol=5e-5 if theirs != "linear" else 5e-6, atol=1e-9
    )


def test_what_is_left_of_the_image_at_the_last_step():
    one = torch.ones((), dtype=torch.float64)
    assert TABLES["linear"].at(one).alpha.item() == pytest.approx(0.0064, abs=5e-5)
    assert TABLES["scaled_linear"].at(one).alpha.item() == pytest.approx(0.068, abs=5e-4)
    assert TABLES["zero"].at(one).alpha.item() == 0.0
    assert TABLES["zero"].at(one).sigma.item() == 1.0


def test_zero_terminal_snr_in_fifty_digits():
    """Algorithm 1: roots of the products, less the last one, times first / (first - last)."""
    level = TABLES["zero"].at(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    roots, alphas, sigmas = [], [], []
    with localcontext() as context:
        context.prec = 50
        product = Decimal(1)
        for beta in betas_of("linear", 1000):
            product *= 1 - Decimal(float(beta))
            roots.append(product.sqrt())
        for root in roots:
            alpha = (root - roots[-1]) * roots[0] / (roots[0] - roots[-1])
            alphas.append(float(alpha))
            sigmas.append(float((1 - alpha**2).sqrt()))
    close(level.alpha, alphas, rtol=1e-14, atol=1e-16)
    close(level.sigma, sigmas, rtol=1e-13)


@pytest.mark.parametrize("name", TABLES)
def test_between_two_steps_the_angle_is_linear(name):
    path = TABLES[name]
    steps = path.steps
    k = torch.arange(steps, dtype=torch.float64)
    share = torch.tensor([0.0, 0.25, 0.5, 0.9])
    angle = torch.atan2(*reversed(path.coefficients((k[:, None] + share) / steps)))
    after = torch.atan2(*reversed(path.coefficients((k + 1) / steps)))
    close(angle, torch.lerp(angle[:, :1], after[:, None], share.double()), rtol=1e-12)
    level = path.at((k[:, None] + share) / steps)
    close(level.alpha.square() + level.sigma.square(), torch.ones(steps, 4), rtol=1e-14)


@pytest.mark.parametrize("steps", [10, 999, 1000, 4000])
def test_a_step_is_found_however_its_time_was_rounded(steps):
    path = DiscreteVP(steps)
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    exact = path.at(k / steps)
    for t in (1 - (steps - k) / steps, k * (1 / steps), (k + 1) / steps - 1 / steps):
        assert torch.equal(path.at(t).alpha, exact.alpha)
        assert torch.equal(path.at(t).sigma, exact.sigma)
    assert torch.equal(path.at(exact.t - 1 / steps).alpha[1:], exact.alpha[:-1])
    assert path.at(exact.t - 1 / steps).sigma[0] == 0


def test_diffusing_is_per_sample():
    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    level = RectifiedFlow().at(torch.tensor([0.0, 0.25, 1.0]))
    x_t = diffuse(x0, noise, level)
    assert x_t.dtype == torch.float32
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[2], noise[2])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert scaled(x0.bfloat16(), level.alpha).dtype == torch.bfloat16
    assert torch.equal(scaled(x0, torch.tensor(0.5, dtype=torch.float64)), x0 * 0.5)
    assert precise(x0).dtype == torch.float64


def test_the_signal_to_noise_ratio():
    level = RectifiedFlow().at(torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64))
    close(level.noise_level, [0.0, 0.25, 1.0, math.inf])
    close(level.snr, [math.inf, 16.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(0.0, 1.0), "beta_min"),
        (lambda: VP(2.0, 1.0), "given were 2.0 and 1.0"),
        (lambda: CosineVP(-0.1), "offset"),
        (lambda: SigmoidVP(1.0, 1.0), "start < end"),
        (lambda: SigmoidVP(tau=0.0), "tau"),
        (lambda: VE(0.0, 1.0), "VE takes 0 < sigma_min"),
        (lambda: EDM(2.0, 1.0), "EDM takes 0 < sigma_min"),
        (lambda: EDM(rho=0.0), "rho"),
        (lambda: DiscreteVP(0), "1 steps? or more"),
        (lambda: DiscreteVP(1, zero_terminal_snr=True), "2 steps or more with zero_terminal_snr"),
        (lambda: DiscreteVP(beta_start=0.5, beta_end=0.1), "beta_start"),
        (lambda: DiscreteVP(beta_end=1.0), "beta_end"),
        (lambda: DiscreteVP(schedule="lineal"), "Did you mean 'linear'"),
        (lambda: DiscreteVP(betas=[0.1, 0.0]), "betas above 0"),
        (lambda: DiscreteVP(betas=[0.1, 1.0, 0.1]), "the last one may be 1"),
        (lambda: DiscreteVP(betas=[]), "given were 0"),
    ],
)
def test_impossible_paths_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_betas_given_are_the_table():
    path = TABLES["of betas"]
    assert path.steps == 4
    level = path.at(torch.arange(5) / 4)
    close(level.alpha.square(), [1.0, 0.9, 0.9 * 0.99, 0.9 * 0.99 * 0.7, 0.0])
    assert all(a > b for a, b in pairwise(level.alpha.tolist()))
