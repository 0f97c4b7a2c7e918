"""Runs from noise, from a picture and around one, step by step."""

import math
from itertools import pairwise

import pytest
import torch
from affine import AffineDenoiser

from lightning_gen.diffusion.denoiser import PointDenoiser
from lightning_gen.diffusion.grids import CLEAN, Trailing
from lightning_gen.diffusion.guidance import ClassifierFree
from lightning_gen.diffusion.parameterizations import EDMPreconditioning, V, Velocity
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.sampling import Sampler, Start, renoise
from lightning_gen.diffusion.solvers import DDIM, Solver, points_of
from lightning_gen.diffusion.thresholding import Clip
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import SampleStreams

SHAPE = (2, 4, 4)
STEPS = 10


class Recording(SampleStreams):
    """Streams that remember what was drawn."""

    def __init__(self, n=3):
        super().__init__(0, 0, n, dtype=torch.float64)
        self.drawn = []

    def normal(self, *shape):
        self.drawn.append(super().normal(*shape))
        return self.drawn[-1]


class Spy(Solver):
    """DDIM that remembers where it stepped, and leaves something in the memory."""

    def __init__(self):
        self.steps, self.states, self.fresh = [], [], []

    def step(self, denoise, x, points, i, memory, normal):
        self.steps.append(i)
        self.states.append(x)
        self.fresh.append(not memory)
        memory["step"] = i
        return DDIM().step(denoise, x, points, i, memory, normal)


def sampler(path=None, parameterization=None, **arguments):
    path = path or RectifiedFlow()
    net = AffineDenoiser(SHAPE).double().requires_grad_(False)
    estimate = PointDenoiser(net, path, parameterization or Velocity())
    return Sampler(estimate, Spy(), Trailing().points(STEPS, path), ClassifierFree(), **arguments)


def picture(n=3):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def mask():
    half = torch.zeros(3, 1, 4, 4)
    half[:, :, :, :2] = 1
    half[1] = 0
    half[1, :, 1, 3] = 1
    return half


@pytest.mark.parametrize(
    ("path", "asked"), [(RectifiedFlow(), Velocity()), (EDM(), EDMPreconditioning()), (VP(), V()), (DiscreteVP(), V())]
)
def test_without_a_picture_a_run_begins_at_noise_of_the_paths_scale(path, asked):
    run, stream = sampler(path, asked), Recording()
    x = run(stream, SHAPE, Condition())
    assert run.solver.steps == list(range(STEPS))
    assert torch.equal(run.solver.states[0], stream.drawn[0] * path.noise_scale())
    assert x.dtype == torch.float64
    assert x.shape == (3, *SHAPE)
    # by hand: DDIM from there
    hand, (here, *others) = stream.drawn[0] * path.noise_scale(), run.points
    for there in others:
        x0 = run.estimate(hand, here, there, None).x0
        noise = (hand - here.alpha * x0) / here.sigma
        hand, here = there.alpha * x0 + there.sigma * noise, there
    torch.testing.assert_close(x, hand, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("strength", "first"), [(1.0, 0), (0.5, 5), (0.3, 7), (0.1, 9), (0.01, 9), (0.94, 1)])
def test_from_a_picture_a_run_begins_on_the_way(strength, first):
    run, stream = sampler(), Recording()
    run(stream, SHAPE, Condition(), Start(picture(), strength))
    assert run.solver.steps == list(range(first, STEPS))
    point = run.points[first]
    assert point.t == pytest.approx(1 - first / STEPS)
    expected = point.alpha * picture().double() + point.sigma * stream.drawn[0]
    torch.testing.assert_close(run.solver.states[0], expected, rtol=1e-14, atol=1e-14)
    assert len(stream.drawn) == 1


@pytest.mark.parametrize("resample", [1, 3])
@pytest.mark.parametrize(
    ("path", "asked"), [(RectifiedFlow(), Velocity()), (EDM(), EDMPreconditioning()), (DiscreteVP(), V())]
)
def test_around_a_picture_what_is_known_has_the_noise_of_each_point(path, asked, resample):
    reached = []
    run, stream = sampler(path, asked), Recording()
    run.watch = lambda i, point, x, x0: reached.append((i, point, x, len(stream.drawn)))
    x = run(stream, SHAPE, Condition(), Start(picture(), 0.1, mask(), resample))
    known = mask().bool().expand(3, *SHAPE)
    # to the last bit, and the rest is new
    assert torch.equal(x[known], picture().double()[known])
    assert not bool((x[~known] == picture().double()[~known]).any())
    assert [i for i, *_ in reached] == list(range(STEPS))
    for i, point, state, drawn in reached:
        assert point == run.points[i + 1]
        noisy = point.alpha * picture().double() + point.sigma * stream.drawn[drawn - 1]
        torch.testing.assert_close(state[known], noisy[known], rtol=1e-13, atol=1e-13)
    # strength is for runs without a mask
    assert run.solver.steps == [i for i in range(STEPS) for _ in range(resample)]
    assert run.estimate.net.calls == STEPS * resample


def test_where_nothing_is_known_the_run_is_the_same():
    free = sampler()(Recording(), SHAPE, Condition())
    around = sampler()(Recording(), SHAPE, Condition(), Start(picture(), mask=torch.zeros(3, 1, 4, 4)))
    assert torch.equal(free, around)


def test_each_repeat_goes_back_first_and_forgets():
    run, stream = sampler(), Recording()
    run(stream, SHAPE, Condition(), Start(picture(), mask=torch.zeros(3, 1, 4, 4), resample=2))
    # the first step of all and each repeat begin without a memory
    assert run.solver.fresh == [True, True] + [False, True] * (STEPS - 1)
    states, points = run.solver.states, run.points
    for i in range(STEPS):
        here, there = points[i + 1], points[i]
        start, again = states[2 * i], states[2 * i + 1]
        x0 = run.estimate(start, there, here, None).x0
        noise = (start - there.alpha * x0) / there.sigma
        reached = here.alpha * x0 + here.sigma * noise
        kept = there.alpha / here.alpha
        back = again - kept * reached
        spread = math.sqrt(there.sigma**2 - (kept * here.sigma) ** 2)
        assert any(torch.allclose(back, spread * drawn, rtol=1e-9, atol=1e-9) for drawn in stream.drawn)


@pytest.mark.parametrize("path", [VP(), VE(), EDM(), RectifiedFlow(), CosineVP(), DiscreteVP(zero_terminal_snr=True)])
def test_going_back_gives_the_marginal_of_the_noisier_point(path):
    """Of x_s = alpha_s x_0 + sigma_s e: the image counts alpha_t, the variances add up to sigma_t^2."""
    points = [*points_of(path, [1.0, 0.7, 0.31]), CLEAN]
    for noisier, cleaner in pairwise(points):
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        kept, added = (float(renoise(x, z, cleaner, noisier)) for x, z in ((one, zero), (zero, one)))
        assert kept * cleaner.alpha == pytest.approx(noisier.alpha, rel=1e-14, abs=1e-300)
        assert (kept * cleaner.sigma) ** 2 + added**2 == pytest.approx(noisier.sigma**2, rel=1e-13)


def test_estimates_are_kept_in_range_before_a_step_uses_them():
    seen = []
    run = sampler(threshold=Clip(), watch=lambda i, point, x, x0: seen.append(x0))
    x = run(Recording(), SHAPE, Condition())
    assert len(seen) == STEPS
    assert all(float(x0.abs().max()) <= 1 for x0 in seen)
    assert any(bool((x0.abs() == 1).any()) for x0 in seen)
    # the last step goes to the estimate
    torch.testing.assert_close(x, seen[-1], rtol=1e-12, atol=1e-12)


def test_a_sample_is_the_same_in_every_batch():
    together = sampler()(Recording(3), SHAPE, Condition(), Start(picture(), 0.7, mask(), 2))
    alone = sampler()(Recording(1), SHAPE, Condition(), Start(picture()[:1], 0.7, mask()[:1], 2))
    torch.testing.assert_close(alone, together[:1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start(picture()[:, :1]), r"the shape \(3, 1, 4, 4\); the model makes \(3, 2, 4, 4\)"),
        (Start(picture(), 0.0), "strength is above 0 and at most 1; given was 0.0"),
        (Start(picture(), 1.1), "given was 1.1"),
        (Start(picture(), resample=0), "resample is 1 or more; given was 0"),
        (Start(picture(), mask=torch.ones(3, 2, 4, 4)), r"\(3, 2, 4, 4\); wanted is \(3, 1, 4, 4\)"),
    ],
)
def test_starts_that_do_not_fit_are_refused(start, message):
    with pytest.raises(ValueError, match=message):
        start.check((3, *SHAPE))


def test_starts_that_fit():
    Start(picture(), 1.0, mask(), 2).check((3, *SHAPE))
