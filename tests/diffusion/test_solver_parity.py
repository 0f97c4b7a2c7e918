"""Our solvers against the schedulers of diffusers, with the same images expected, noise levels and noise."""

import importlib
import math

import pytest
import torch

from lightning_gen.diffusion.grids import Karras, Leading, Linspace, Trailing
from lightning_gen.diffusion.paths import DiscreteVP
from lightning_gen.diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    DPMSolverPP3M,
    Euler,
    EulerAncestral,
    Heun,
    Prediction,
    UniPC,
    integrate,
)

schedulers = pytest.importorskip("diffusers.schedulers")
# theirs hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class _Double:
    """Torch, where float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def _states_in_float64(monkeypatch):
    """Some of theirs turn their state into float32 in each step, at up to 157 times the image: off by 1e-5."""
    for name in ("euler_discrete", "euler_ancestral_discrete", "dpmsolver_multistep"):
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", _Double())


PATH = DiscreteVP(1000)
SHAPE = (2, 3, 4, 4)
MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 4


def image(y, level):
    """Of y = x / alpha: a smooth function, no denoiser."""
    return torch.tanh(y / math.sqrt(1 + level**2) @ MIX.to(y)) + 0.1 * math.cos(level)


def denoise(x, point, until):
    x0 = image(x / point.alpha, point.noise_level)
    return Prediction(x0, (1 + torch.sin(x0)) / 2)


def noise(seed):
    return torch.Generator().manual_seed(seed)


def begin(points):
    return torch.randn(SHAPE, generator=noise(0), dtype=torch.float64) * points[0].sigma


def ours(solver, points):
    generator = noise(1)
    return integrate(
        solver, denoise, begin(points), points, lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    )


def in_float64(scheduler, steps):
    """The scheduler's tables as float64: in float32 they are off by 1e-6."""
    scheduler.alphas_cumprod = PATH.coefficients(torch.arange(1, 1001).double() / 1000)[0].square()
    scheduler.set_timesteps(steps)
    return scheduler


def on_points(scheduler, points, repeat=False):
    """The scheduler on our noise levels, as float64."""
    scheduler.set_timesteps(len(points) - 1)
    levels = torch.tensor([point.noise_level for point in points], dtype=torch.float64)
    if repeat:
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    scheduler.sigmas = levels
    return scheduler


@pytest.mark.parametrize("kind", ["small", "large", "learned"])
def test_ddpm(kind):
    # on a grid that ends at step 0: on others theirs adds noise to the image itself
    points = Linspace().points(10, PATH)
    name = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}[kind]
    theirs = in_float64(
        schedulers.DDPMScheduler(
            variance_type=name, prediction_type="sample", clip_sample=False, timestep_spacing="linspace"
        ),
        10,
    )
    x, generator = begin(points), noise(1)
    for t, point in zip(theirs.timesteps, points, strict=False):
        x0, share = denoise(x, point, point)
        told = torch.cat([x0, 2 * share - 1], 1) if kind == "learned" else x0
        x = theirs.step(told, int(t), x, generator=generator).prev_sample
    torch.testing.assert_close(ours(DDPM(kind), points), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("grid", "steps", "config"),
    [
        # where the steps divide the table: elsewhere theirs goes to other steps than it then asks at
        (Trailing(), 10, {"timestep_spacing": "trailing"}),
        (Leading(), 20, {"timestep_spacing": "leading"}),
        (Leading(1, "first"), 50, {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
    ],
)
def test_ddim(eta, grid, steps, config):
    points = grid.points(steps, PATH)
    theirs = in_float64(schedulers.DDIMScheduler(prediction_type="sample", clip_sample=False, **config), steps)
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0] if "steps_offset" in config else torch.tensor(1.0).double()
    x, generator = begin(points), noise(1)
    for t, point in zip(theirs.timesteps, points, strict=False):
        x0 = denoise(x, point, point).x0
        x = theirs.step(x0, int(t), x, eta=eta, generator=generator).prev_sample
    torch.testing.assert_close(ours(DDIM(eta), points), x, rtol=0, atol=1e-11)


GRIDS = [(Trailing(), 10), (Trailing(), 20), (Karras(), 12), (Linspace(), 2), (Trailing(), 1)]


@pytest.mark.parametrize(("grid", "steps"), GRIDS)
def test_euler(grid, steps):
    points = grid.points(steps, PATH)
    theirs = on_points(schedulers.EulerDiscreteScheduler(prediction_type="sample"), points)
    y = begin(points) / points[0].alpha
    for t, point in zip(theirs.timesteps, points, strict=False):
        theirs.scale_model_input(y, t)
        y = theirs.step(image(y, point.noise_level), t, y).prev_sample
    torch.testing.assert_close(ours(Euler(), points), y.double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("grid", "steps"), GRIDS)
def test_euler_ancestral(grid, steps):
    points = grid.points(steps, PATH)
    theirs = on_points(schedulers.EulerAncestralDiscreteScheduler(), points)
    y, generator = begin(points) / points[0].alpha, noise(1)
    for t, point in zip(theirs.timesteps, points, strict=False):
        theirs.scale_model_input(y, t)
        told = (y - image(y, point.noise_level)) / point.noise_level
        y = theirs.step(told, t, y, generator=generator).prev_sample.double()
    torch.testing.assert_close(ours(EulerAncestral(), points), y, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("grid", "steps"), GRIDS)
def test_heun(grid, steps):
    points = grid.points(steps, PATH)
    theirs = on_points(schedulers.HeunDiscreteScheduler(prediction_type="sample"), points, repeat=True)
    y, asked = begin(points) / points[0].alpha, [points[0], *(p for p in points[1:-1] for _ in range(2))]
    assert len(theirs.timesteps) == len(asked) == Heun().evaluations(steps, points)
    theirs.set_begin_index(0)
    for t, point in zip(theirs.timesteps, asked, strict=True):
        y = theirs.step(image(y, point.noise_level), t, y).prev_sample
    torch.testing.assert_close(ours(Heun(), points), y, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("grid", "steps"), [*GRIDS, (Trailing(), 3), (Trailing(), 14), (Trailing(), 15)])
@pytest.mark.parametrize(
    ("solver", "config"),
    [
        (DPMSolverPP2M(), {"solver_order": 2}),
        (DPMSolverPP3M(), {"solver_order": 3}),
        (DPMSolverPP2MSDE(), {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    ],
    ids=["2M", "3M", "2M SDE"],
)
def test_dpm_solver(solver, config, grid, steps):
    points = grid.points(steps, PATH)
    theirs = on_points(schedulers.DPMSolverMultistepScheduler(prediction_type="sample", **config), points)
    x, generator = begin(points), noise(1)
    theirs.set_begin_index(0)
    for t, point in zip(theirs.timesteps, points, strict=False):
        told = denoise(x, point, point).x0
        x = theirs.step(told, t, x, generator=generator).prev_sample
    torch.testing.assert_close(ours(solver, points), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("grid", "steps"), [*GRIDS, (Trailing(), 3), (Trailing(), 4)])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc(order, corrector, grid, steps):
    points = grid.points(steps, PATH)
    off = [] if corrector else list(range(steps))
    theirs = on_points(
        schedulers.UniPCMultistepScheduler(prediction_type="sample", solver_order=order, disable_corrector=off), points
    )
    theirs.set_begin_index(0)
    x = begin(points)
    for t, point in zip(theirs.timesteps, points, strict=False):
        x = theirs.step(denoise(x, point, point).x0, t, x).prev_sample
    torch.testing.assert_close(ours(UniPC(order, corrector), points), x, rtol=0, atol=1e-11)
