import itertools
import math

import pytest
import torch
from scipy import stats

from lightning_gen.diffusion.denoiser import PointDenoiser
from lightning_gen.diffusion.likelihood import log_likelihood
from lightning_gen.diffusion.parameterizations import Velocity
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, SigmoidVP
from lightning_gen.networks.dit import DiT
from lightning_gen.seeding import GeneratorStream, SampleStreams

SHAPE = (1, 2, 3)
MEAN = torch.tensor([0.3, -0.5, 0.0, 0.8, 0.1, -0.9], dtype=torch.float64)
STD = torch.tensor([0.5, 0.05, 1.0, 2.0, 0.2, 0.7], dtype=torch.float64)
PATHS = {
    "vp": VP(),
    "cosine": CosineVP(),
    "sigmoid": SigmoidVP(),
    "edm": EDM(),
    "ve": VE(),
    "flow": RectifiedFlow(),
    "discrete": DiscreteVP(100),
}
ENDLESS = ["cosine", "sigmoid", "flow"]


def stream(n, seed=0):
    return GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=torch.float64)


def gaussian(x, point):
    """The image expected where the data are Gaussian and their dimensions independent."""
    mean, std = MEAN.view(SHAPE), STD.view(SHAPE)
    gain = point.alpha * std**2 / ((point.alpha * std) ** 2 + point.sigma**2)
    return mean + gain * (x - point.alpha * mean)


def correlated(covariance):
    """The same for any covariance."""

    def estimate(x, point):
        kernel = point.alpha**2 * covariance + point.sigma**2 * torch.eye(len(covariance), dtype=torch.float64)
        return point.alpha * x @ torch.linalg.solve(kernel, covariance)

    return estimate


def normal(x, mean, std):
    return torch.from_numpy(stats.norm.logpdf(x.flatten(1).numpy(), mean.numpy(), std.numpy()).sum(1))


def data(n=5):
    return (MEAN + STD * torch.randn(n, 6, generator=torch.Generator().manual_seed(1)).double()).view(n, *SHAPE)


def smallest(path, asked):
    first = torch.tensor(0.0 if path.steps is None else 1 / path.steps, dtype=torch.float64)
    return max(float(path.at(first).noise_level), asked)


@pytest.mark.parametrize(("name", "divergence"), [*((name, "hutchinson") for name in ENDLESS), ("flow", "exact")])
def test_gaussian_data_where_the_path_ends_in_noise(name, divergence):
    # a Jacobian that is diagonal has the same trace by any signs
    x, level = data(), 1e-3
    ours = log_likelihood(gaussian, x, PATHS[name], 200, stream(5), divergence, noise_level=level)
    torch.testing.assert_close(ours, normal(x, MEAN, (STD**2 + level**2).sqrt()), rtol=0, atol=2e-7)
    assert ours.dtype == torch.float64


@pytest.mark.parametrize("name", list(PATHS))
def test_gaussian_data_on_every_path(name):
    # the end of the flow of x is alpha mean + width(1) / width(0) (x_0 - alpha mean); its density there is the
    # prior's, N(0, sigma^2)
    path, x = PATHS[name], data()
    s = smallest(path, 1e-3)
    alpha, sigma = (float(each) for each in path.coefficients(torch.ones((), dtype=torch.float64)))
    growth = ((alpha * STD) ** 2 + sigma**2).sqrt() / (STD**2 + s**2).sqrt()
    end = alpha * MEAN + growth * (x.flatten(1) - MEAN)
    expected = normal(end, torch.zeros(6).double(), torch.full((6,), sigma).double()) + growth.log().sum()
    ours = log_likelihood(gaussian, x, path, 200, stream(5))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-7)
    # what is ignored of the data at the end is as small as alpha / sigma
    true = normal(x, MEAN, (STD**2 + s**2).sqrt())
    assert (ours - true).abs().max() <= 20 * alpha / sigma + 1e-6


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("heun", 2)])
def test_the_order_of_convergence(method, order):
    x = data()
    expected = normal(x, MEAN, (STD**2 + 1e-6).sqrt())
    errors = []
    for steps in (80, 160):
        ours = log_likelihood(gaussian, x, RectifiedFlow(), steps, stream(5), method=method)
        errors.append(float((ours - expected).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    assert errors[1] < (1e-6 if order == 4 else 1e-2)


def covariance():
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).double()
    return root @ root.T / 4 + 0.05 * torch.eye(4).double()


def test_correlated_data():
    matrix = covariance()
    x = torch.randn(5, 4, dtype=torch.float64) @ torch.linalg.cholesky(matrix).T
    ours = log_likelihood(correlated(matrix), x, RectifiedFlow(), 120, stream(5), "exact")
    density = stats.multivariate_normal(cov=(matrix + 1e-6 * torch.eye(4)).numpy())
    torch.testing.assert_close(ours, torch.from_numpy(density.logpdf(x.numpy())), rtol=0, atol=1e-6)


class Signs:
    """Every pattern of signs once, one a row."""

    def __init__(self, dims):
        self.patterns = torch.tensor(list(itertools.product([0.25, 0.75], repeat=dims)), dtype=torch.float64)

    def uniform(self, *shape):
        return self.patterns


def test_the_estimated_trace_is_unbiased():
    matrix = covariance()
    x = torch.randn(1, 4, dtype=torch.float64).expand(16, 4)
    exact = log_likelihood(correlated(matrix), x[:1], RectifiedFlow(), 20, stream(1), "exact")
    each = log_likelihood(correlated(matrix), x, RectifiedFlow(), 20, Signs(4))
    assert each.std() > 0.01
    torch.testing.assert_close(each.mean(), exact[0], rtol=0, atol=1e-10)


def test_more_probes_have_less_variance():
    matrix, n = covariance(), 400
    x = torch.ones(n, 4, dtype=torch.float64)
    one, eight = (log_likelihood(correlated(matrix), x, VP(), 10, stream(n), probes=probes) for probes in (1, 8))
    assert float(one.var() / eight.var()) == pytest.approx(8, rel=0.4)


def test_a_mixture():
    # two Gaussians on a line: nothing is linear
    centers, std, share = torch.tensor([-0.6, 0.5], dtype=torch.float64), 0.15, torch.tensor([0.3, 0.7]).double()

    def estimate(x, point):
        variance = (point.alpha * std) ** 2 + point.sigma**2
        offset = x - point.alpha * centers
        posterior = torch.softmax(share.log() - offset.square() / (2 * variance), 1)
        return (posterior * (centers + point.alpha * std**2 / variance * offset)).sum(1, keepdim=True)

    x = torch.linspace(-1.3, 1.3, 41, dtype=torch.float64)[:, None]
    ours = log_likelihood(estimate, x, RectifiedFlow(), 400, stream(41))
    width = math.sqrt(std**2 + 1e-6)
    density = (share.numpy() * stats.norm.pdf(x.numpy(), centers.numpy(), width)).sum(1)
    torch.testing.assert_close(ours, torch.from_numpy(density).log(), rtol=0, atol=1e-5)


def test_a_path_in_steps_begins_at_its_first_step_and_a_path_with_an_end_there():
    points = []

    def estimate(x, point):
        points.append(point)
        return gaussian(x, point)

    # the first beta of the table is 1e-4
    for path, level in ((DiscreteVP(100), math.sqrt(1e-4 / (1 - 1e-4))), (EDM(), 0.002)):
        points.clear()
        log_likelihood(estimate, data(), path, 10, stream(5))
        assert min(point.noise_level for point in points) == pytest.approx(level, rel=1e-9)
        assert max(point.t for point in points) == 1.0
        assert len(points) == 40


def test_single_precision_is_enough():
    x = data().float()
    single = GeneratorStream(torch.Generator().manual_seed(0), 5)
    ours = log_likelihood(
        lambda x, point: gaussian(x, point).float(), x, RectifiedFlow(), 100, single, noise_level=1e-2
    )
    torch.testing.assert_close(ours, normal(x.double(), MEAN, (STD**2 + 1e-4).sqrt()), rtol=0, atol=1e-3)


def test_a_network_is_asked_without_gradients_around_and_gets_none():
    torch.manual_seed(3)
    net = DiT((1, 4, 4), width=16, depth=1, heads=2).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    estimate = PointDenoiser(net, RectifiedFlow(), Velocity(2.0))
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)

    def run(x):
        return log_likelihood(
            lambda x, point: estimate(x, point, point, None).x0, x, RectifiedFlow(), 3, stream(3), "exact"
        )

    with torch.no_grad():
        ours = run(x)
    assert not ours.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    torch.testing.assert_close(run(x[:1])[0], ours[0], rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        inside = x + 0
        with pytest.raises(ValueError, match="inference_mode"):
            run(inside)
        with torch.inference_mode(False):
            torch.testing.assert_close(run(inside.clone()), ours)


def test_signs_are_a_function_of_the_sample():
    matrix = covariance()
    x = torch.ones(3, 4, dtype=torch.float64)

    def run(n, first):
        streams = SampleStreams(7, first, n, dtype=torch.float64)
        return log_likelihood(correlated(matrix), x[:n], VP(), 5, streams, probes=2)

    torch.testing.assert_close(run(3, 0)[1:2], run(1, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "how",
    [{"steps": 0}, {"probes": 0}, {"noise_level": 0.0}, {"divergence": "trace"}, {"method": "euler"}],
)
def test_what_is_out_of_range_is_refused(how):
    with pytest.raises(ValueError, match=next(iter(how))):
        log_likelihood(gaussian, data(), VP(), **{"steps": 2, "stream": stream(5), **how})
