"""Orders of convergence, measured on a mixture of Gaussians whose denoiser is known in closed form."""

import math
from functools import lru_cache

import pytest
import torch
from scipy.integrate import solve_ivp

from lightning_gen.diffusion.grids import CLEAN, Karras, Linspace, LogSNR
from lightning_gen.diffusion.paths import EDM, VP, RectifiedFlow
from lightning_gen.diffusion.solvers.ancestral import DDIM, Euler
from lightning_gen.diffusion.solvers.base import Point, Prediction, Solver, integrate, points_of
from lightning_gen.diffusion.solvers.dpm import DPMSolverPP2M, DPMSolverPP2MSDE, DPMSolverPP3M
from lightning_gen.diffusion.solvers.heun import Heun
from lightning_gen.diffusion.solvers.unipc import UniPC

MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.2]], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def expected(x, alpha, sigma):
    """E[x_0 | x_t]: Bayes over the three Gaussians."""
    variance = alpha**2 * DEVIATIONS**2 + sigma**2
    apart = x[:, None, :] - alpha * MEANS
    logits = WEIGHTS.log() - variance.log() - apart.square().sum(-1) / (2 * variance)
    share = (alpha * DEVIATIONS**2 / variance)[None, :, None]
    return (logits.softmax(1)[..., None] * (MEANS + share * apart)).sum(1)


def denoise(x, point, until):
    return Prediction(expected(x, point.alpha, point.sigma))


def no_noise():
    raise AssertionError("a solver without noise drew some")


def start(points):
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * points[0].sigma


@lru_cache
def flow(first, last):
    """The end of the probability flow between two noise levels, at 1e-12, in y = x / alpha and the log of the level."""
    noise = start([first]) / first.alpha

    def slope(log_level, flat):
        y = torch.from_numpy(flat.reshape(noise.shape))
        return (y - expected(y, 1.0, math.exp(log_level))).numpy().ravel()

    span = (math.log(first.noise_level), math.log(last.noise_level))
    solution = solve_ivp(slope, span, noise.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(solution.y[:, -1].reshape(noise.shape))


def error(solver, steps, path, grid):
    points = grid.points(steps, path)
    exact = expected(flow(points[0], points[-2]), 1.0, points[-2].noise_level)
    return (integrate(solver, denoise, start(points), points, no_noise) - exact).abs().max().item()


# far enough from the ends that the two steps of order one there do not show
PATHS = {"EDM": EDM(sigma_min=0.02, sigma_max=400.0), "VP": VP()}
GRID = LogSNR(sigma_min=0.02)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (Euler(), 0.98, 1.02),
        (DDIM(), 0.98, 1.02),
        (Heun(), 1.97, 2.06),
        (DPMSolverPP2M(), 1.97, 2.06),
        (DPMSolverPP2MSDE(eta=0.0), 1.97, 2.06),
        (DPMSolverPP3M(), 1.9, 2.06),
        (DPMSolverPP3M(corrected=True), 2.85, 3.1),
        (UniPC(2, corrector=False), 1.97, 2.06),
        (UniPC(3, corrector=False), 2.85, 3.1),
        (UniPC(2), 2.97, 3.06),
        (UniPC(3), 3.6, 4.5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else None,
)
def test_order_of_convergence(solver, least, most, path):
    coarse, fine = (error(solver, steps, PATHS[path], GRID) for steps in (160, 320))
    assert least < math.log2(coarse / fine) < most


def test_published_third_order_is_better_in_few_of_karras_steps_and_worse_in_many():
    few, many = ([error(DPMSolverPP3M(kind), steps, EDM(), Karras()) for kind in (False, True)] for steps in (20, 320))
    assert few[0] < 0.5 * few[1]
    assert many[0] > 5 * many[1]


def test_heun_in_time_is_of_order_two_from_infinite_noise():
    path, grid, last = RectifiedFlow(), Linspace(t_min=0.05), RectifiedFlow().coefficients(torch.tensor(0.05).double())
    noise = start([Point(1.0, 0.0, 1.0)])

    def velocity(t, flat):
        x = torch.from_numpy(flat.reshape(noise.shape))
        # (x_t - E[x_0 | x_t]) / t is E[noise - x_0 | x_t]
        return ((x - expected(x, 1 - t, t)) / t).numpy().ravel()

    solution = solve_ivp(velocity, (1.0, 0.05), noise.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
    exact = expected(torch.from_numpy(solution.y[:, -1].reshape(noise.shape)), *(float(value) for value in last))
    found = [
        (integrate(Heun("time"), denoise, noise, grid.points(steps, path), no_noise) - exact).abs().max().item()
        for steps in (80, 160)
    ]
    assert 1.95 < math.log2(found[0] / found[1]) < 2.06


def test_heun_depends_on_the_coordinate_but_converges_to_one_limit():
    def apart(steps):
        points = GRID.points(steps, PATHS["VP"])
        one, other = (
            integrate(Heun(kind), denoise, start(points), points, no_noise) for kind in ("noise_level", "time")
        )
        return (one - other).abs().max().item()

    assert apart(37) > 1e-3
    assert 1.9 < math.log2(apart(160) / apart(320)) < 2.2


@pytest.mark.parametrize(
    "solver", [Euler(), Heun(), DPMSolverPP2M(), DPMSolverPP3M(), UniPC(2), UniPC(3)], ids=lambda s: type(s).__name__
)
def test_same_noise_levels_give_the_same_image_on_every_path(solver):
    levels = [80.0, 20.0, 7.0, 2.5, 0.9, 0.3, 0.08, 0.02]
    results = []
    for path in (EDM(), VP(), RectifiedFlow()):
        points = [*points_of(path, path.time(torch.tensor(levels, dtype=torch.float64))), CLEAN]
        y = 80 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        results.append(integrate(solver, denoise, y * points[0].alpha, points, no_noise))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-10)
