import math
from itertools import pairwise

import pytest
import torch

from lightning_gen.diffusion.grids import CLEAN, Karras, Linspace, LogSNR, Shifted, Trailing
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.solvers import (
    DDIM,
    DDPM,
    SOLVERS,
    ConsistencySteps,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    DPMSolverPP3M,
    EDMStochastic,
    Euler,
    EulerAncestral,
    Heun,
    Point,
    Points,
    Prediction,
    UniPC,
    integrate,
    points_of,
    to_clean,
)
from lightning_gen.diffusion.solvers.multistep import phi

WIDTH = 4
MIX = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / WIDTH


def wavy(x, point, until):
    """A denoiser that is no denoiser of anything: a smooth function of y = x / alpha and the noise level."""
    if point.alpha == 0:
        return Prediction(torch.tanh(x / point.sigma @ MIX.to(x)))
    level = point.noise_level
    return Prediction(torch.tanh(x / point.alpha / math.sqrt(1 + level**2) @ MIX.to(x)) + 0.1 * math.cos(level))


def of_gaussian(deviation, mean=0.0):
    """The exact denoiser of data N(mean, deviation^2)."""

    def denoise(x, point, until):
        gain = point.alpha * deviation**2 / (point.alpha**2 * deviation**2 + point.sigma**2)
        return Prediction(mean + gain * (x - point.alpha * mean))

    return denoise


class Noise:
    """Draws that are counted and can be drawn again."""

    def __init__(self, shape=(3, WIDTH), dtype=torch.float64, seed=1):
        self.generator, self.shape, self.dtype = torch.Generator().manual_seed(seed), shape, dtype
        self.drawn = []

    def __call__(self):
        self.drawn.append(torch.randn(self.shape, generator=self.generator, dtype=self.dtype))
        return self.drawn[-1]


class Counted:
    def __init__(self, denoise):
        self.denoise, self.asked = denoise, []

    def __call__(self, x, point, until):
        self.asked.append((point, until))
        return self.denoise(x, point, until)


def begin(points, shape=(3, WIDTH), dtype=torch.float64):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (noise * points[0].sigma).to(dtype)


PATHS = {
    "table": (DiscreteVP(1000), Trailing()),
    "zero_snr": (DiscreteVP(1000, "scaled_linear", 8.5e-4, 0.012, zero_terminal_snr=True), Trailing()),
    "VP": (VP(), Linspace()),
    "CosineVP": (CosineVP(), Trailing()),
    "VE": (VE(), LogSNR()),
    "EDM": (EDM(), Karras()),
    "RectifiedFlow": (RectifiedFlow(), Shifted(3.0)),
    "RectifiedFlow_karras": (RectifiedFlow(), Karras(sigma_max=80.0)),
}
EVERY = {
    **{name: kind() for name, kind in SOLVERS.items()},
    "ddpm_large": DDPM("large"),
    "ddim_half": DDIM(0.5),
    "heun_time": Heun("time"),
    "edm_churn": EDMStochastic(s_churn=10.0, s_noise=1.003),
    "2m_sde_half": DPMSolverPP2MSDE(0.5),
    "2m_sde_none": DPMSolverPP2MSDE(0.0),
    "3m_corrected": DPMSolverPP3M(corrected=True),
    "unipc_3": UniPC(3),
    "unip": UniPC(3, corrector=False),
}


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("name", EVERY)
def test_evaluations_are_as_advertised_and_all_is_finite(name, where):
    solver, (path, grid) = EVERY[name], PATHS[where]
    for steps in range(1, 13):
        points = grid.points(steps, path)
        ask = Counted(wavy)
        x = integrate(solver, ask, begin(points), points, Noise())
        assert torch.isfinite(x).all()
        if isinstance(solver, Heun):
            infinite = points[0].alpha == 0 and name != "heun_time"
            assert len(ask.asked) == solver.evaluations(steps, points) == max(2 * steps - 1 - infinite, 1)
            assert solver.evaluations(steps) == 2 * steps - 1
        else:
            assert len(ask.asked) == solver.evaluations(steps) == steps
        # the network is asked at the points of the grid and no others, churn aside
        if name != "edm_churn":
            assert {point for point, _ in ask.asked} == set(points[:-1])


@pytest.mark.parametrize("name", EVERY)
def test_the_result_is_the_last_image_expected(name):
    points, images = Trailing().points(4, VP()), []

    def denoise(x, point, until):
        images.append(wavy(x, point, until).x0)
        return Prediction(images[-1])

    x = integrate(EVERY[name], denoise, begin(points), points, Noise())
    torch.testing.assert_close(x, images[-1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", EVERY)
def test_no_step_waits_for_the_device(name):
    # a tensor without values cannot be read
    points = Trailing().points(5, RectifiedFlow())
    x = torch.empty(3, WIDTH, device="meta")
    assert integrate(EVERY[name], lambda x, *_: Prediction(x.tanh()), x, points, lambda: torch.empty_like(x)).is_meta


def test_only_ddim_tells_the_network_where_the_step_leads():
    points = Trailing().points(5, RectifiedFlow())
    for name, solver in EVERY.items():
        ask = Counted(wavy)
        integrate(solver, ask, begin(points), points, Noise())
        if isinstance(solver, DDIM):
            assert ask.asked == list(pairwise(points))
        else:
            assert all(point == until for point, until in ask.asked), name


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_states_are_integrated_in_float32(name):
    points = Trailing().points(6, VP())
    seen = []

    def denoise(x, point, until):
        seen.append(x.dtype)
        return wavy(x, point, until)

    for dtype in (torch.bfloat16, torch.float16):
        x = begin(points, dtype=dtype)
        half = integrate(EVERY[name], denoise, x, points, Noise(dtype=torch.float32))
        full = integrate(EVERY[name], denoise, x.float(), points, Noise(dtype=torch.float32))
        assert half.dtype == torch.float32
        assert torch.equal(half, full)
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("name", EVERY)
def test_float32_follows_float64(name):
    points = Trailing().points(20, VP())
    x = begin(points)
    precise = integrate(EVERY[name], wavy, x, points, Noise())
    noise = Noise()
    single = integrate(EVERY[name], wavy, x.float(), points, lambda: noise().float())
    assert single.dtype == torch.float32
    assert (single - precise).abs().max() < 2e-5


@pytest.mark.parametrize("name", EVERY)
def test_one_solver_serves_two_runs_at_once(name):
    solver, points = EVERY[name], Trailing().points(6, VP())
    alone = [integrate(solver, wavy, factor * begin(points), points, Noise()) for factor in (1.0, 2.0)]
    states, memories, noises = [factor * begin(points) for factor in (1.0, 2.0)], [{}, {}], [Noise(), Noise()]
    for i in range(6):
        for k in range(2):
            states[k] = solver.step(wavy, states[k], points, i, memories[k], noises[k])
    assert torch.equal(states[0], alone[0])
    assert torch.equal(states[1], alone[1])


# --- steps of order one ---------------------------------------------------------------------------------------


def test_ddim_is_euler_in_the_noise_level_is_euler_of_rectified_flow():
    levels = [80.0, 20.0, 7.0, 2.5, 0.9, 0.3, 0.08, 0.02, 0.0]
    noise = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def image(y, level):
        return wavy(y, Point(math.nan, 1.0, level), CLEAN).x0

    # DDIM, eq. 12: variance preserving, alpha_bar = 1 / (1 + s^2), with the noise told by the image
    bars = [1 / (1 + level**2) for level in levels]
    ddim = 80 * noise * math.sqrt(bars[0])
    for (bar, level), (following, _) in pairwise(zip(bars, levels, strict=True)):
        x0 = image(ddim / math.sqrt(bar), level)
        told = (ddim - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        ddim = math.sqrt(following) * x0 + math.sqrt(1 - following) * told

    # Euler on dy/ds = (y - x0) / s
    euler = 80 * noise
    for level, following in pairwise(levels):
        euler = euler + (following - level) * (euler - image(euler, level)) / level

    # Euler on dz/dt = noise - x0, with z = (1 - t) x0 + t noise
    times = [level / (1 + level) for level in levels]
    flow = 80 * noise * (1 - times[0])
    for (t, level), (following, _) in pairwise(zip(times, levels, strict=True)):
        x0 = image(flow / (1 - t), level)
        flow = flow + (following - t) * ((flow - (1 - t) * x0) / t - x0)

    torch.testing.assert_close(ddim, euler, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow, euler, rtol=0, atol=1e-12)
    for path in (VP(), EDM(), RectifiedFlow()):
        points = [*points_of(path, path.time(torch.tensor(levels[:-1], dtype=torch.float64))), CLEAN]
        for solver in (DDIM(), Euler(), EulerAncestral(eta=0.0)):
            ours = integrate(solver, wavy, 80 * noise * points[0].alpha, points, Noise())
            torch.testing.assert_close(ours, euler, rtol=0, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("path", [VP(), EDM(), RectifiedFlow()], ids=lambda path: type(path).__name__)
def test_euler_ancestral_is_that_of_noise_levels(path, eta):
    points = Karras(sigma_min=0.02, sigma_max=70.0).points(9, path)[1:]
    noise = Noise()
    ours = integrate(EulerAncestral(eta), wavy, begin(points), points, noise)

    # y = x / alpha: down to sigma_down along the slope, then up by sigma_up
    again, y = Noise(), begin(points) / points[0].alpha
    for here, there in pairwise(points):
        s, following = here.noise_level, there.noise_level
        up = min(following, eta * math.sqrt(following**2 * (s**2 - following**2) / s**2))
        down = math.sqrt(following**2 - up**2)
        y = y + (down - s) * (y - wavy(y * here.alpha, here, here).x0) / s
        if up > 0:
            y = y + up * again()
    torch.testing.assert_close(ours, y, rtol=0, atol=1e-12)
    assert len(noise.drawn) == (7 if eta else 0)
    assert torch.equal(ours, integrate(DDIM(eta), wavy, begin(points), points, Noise()))


def test_ddpm_small_is_ddim_with_all_of_its_noise():
    for path, grid in PATHS.values():
        points = grid.points(8, path)
        one, other = (integrate(solver, wavy, begin(points), points, Noise()) for solver in (DDPM(), DDIM(1.0)))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["small", "large"])
@pytest.mark.parametrize("where", ["table", "EDM", "RectifiedFlow", "zero_snr"])
def test_ddpm_is_the_posterior_of_the_chain(where, kind):
    path, grid = PATHS[where]
    points = grid.points(6, path)
    x, noise, again = begin(points), Noise(), Noise()
    for i, (here, there) in enumerate(pairwise(points)):
        x0 = wavy(x, here, here).x0
        # Bayes: N(x_t; a x_s, v) N(x_s; alpha_s x0, sigma_s^2), with a and v of the step from s to t
        a = here.alpha / there.alpha
        v = here.sigma**2 - a**2 * there.sigma**2
        if there.sigma:
            precision = a**2 / v + 1 / there.sigma**2
            mean = (a * x / v + there.alpha * x0 / there.sigma**2) / precision
            variance = 1 / precision if kind == "small" else v
            wanted = mean + math.sqrt(variance) * again()
        else:
            wanted = x0
        x = DDPM(kind).step(wavy, x, points, i, {}, noise)
        torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-11)
    assert len(noise.drawn) == 5


def test_learned_variance_lies_between_the_two_in_its_logarithm():
    points, share = (
        Trailing().points(6, VP()),
        torch.rand(3, WIDTH, generator=torch.Generator().manual_seed(3)).double(),
    )
    x = begin(points)
    found = {}
    for kind in ("small", "large", "learned"):
        drawn = DDPM(kind).step(lambda *_: Prediction(x * 0, share), x * 0, points, 2, {}, lambda: torch.ones_like(x))
        found[kind] = drawn.square().log()
    torch.testing.assert_close(found["learned"], share * found["large"] + (1 - share) * found["small"])
    assert (found["small"] < found["learned"]).all()
    assert (found["learned"] < found["large"]).all()


def test_learned_variance_needs_a_network_that_says_it():
    points = Trailing().points(1, VP())
    with pytest.raises(ValueError, match="use variance='small' or 'large'"):
        integrate(DDPM("learned"), wavy, begin(points), points, Noise())


# --- Gaussian data, where everything is known ----------------------------------------------------------------


def deviation_of_samples(solver, points, deviation, denoise=None):
    """Of samples of N(0, deviation^2): each step is linear in the state and in the noise, so its factors tell."""
    denoise = denoise or of_gaussian(deviation)
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    variance = points[0].sigma ** 2
    for i in range(len(points) - 1):
        kept = solver.step(denoise, one, points, i, {}, lambda: none).item()
        added = solver.step(denoise, none, points, i, {}, lambda: one).item()
        variance = kept**2 * variance + added**2
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("kind", "steps", "expected"),
    [("small", 10, 0.32), ("large", 10, 0.60), ("small", 1000, 0.496), ("large", 1000, 0.501)],
)
def test_deviation_of_ancestral_samples(kind, steps, expected):
    found = deviation_of_samples(DDPM(kind), Linspace().points(steps, DiscreteVP(1000)), 0.5)
    assert found == pytest.approx(expected, abs=0.005 if steps == 10 else 0.0005)


@pytest.mark.parametrize("where", PATHS)
def test_ddim_goes_to_the_exact_flow_of_gaussian_data(where):
    deviation, mean, path = 0.5, 0.3, PATHS[where][0]
    # every level of noise goes to its quantile of the data
    first = points_of(path, [1.0])[0]
    x = begin([first])
    spread = math.hypot(first.alpha * deviation, first.sigma)
    exact = mean + deviation * (x - first.alpha * mean) / spread
    grid = LogSNR(sigma_min=2e-3 if path.steps is None else None, sigma_max=200.0 if path.ends_in_noise else None)
    if where in ("VE", "EDM"):
        grid = LogSNR()

    def error(steps):
        points = grid.points(steps, path)
        return (integrate(DDIM(), of_gaussian(deviation, mean), x, points, Noise()) - exact).abs().max().item()

    few, many = error(100), error(800)
    assert many < 0.02
    assert many < few / 4


@pytest.mark.parametrize(
    "solver",
    [DDPM(), DDPM("large"), EulerAncestral(), DDIM(0.5), EDMStochastic(s_churn=80.0)],
    ids=lambda solver: type(solver).__name__,
)
def test_noisy_solvers_keep_the_deviation_of_gaussian_data(solver):
    few, many = (deviation_of_samples(solver, LogSNR().points(steps, EDM(0.002, 200.0)), 0.5) for steps in (50, 400))
    assert many == pytest.approx(0.5, abs=0.015)
    assert abs(many - 0.5) < 0.2 * abs(few - 0.5)


@pytest.mark.parametrize("where", PATHS)
def test_steps_of_an_exact_consistency_function_keep_the_deviation(where):
    path, grid = PATHS[where]

    def flow_to_the_end(x, point, until):
        return Prediction(x * 0.5 / math.hypot(0.5 * point.alpha, point.sigma))

    # from noise that is no noisy image, but for the infinite level, one step is off and the next ones mend it
    found = deviation_of_samples(ConsistencySteps(), grid.points(4, path), 0.5, flow_to_the_end)
    assert found == pytest.approx(0.5, abs=1e-3)


# --- Heun and EDM's sampler ------------------------------------------------------------------------------------


def churned(y, levels, noise, s_churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0):
    """Algorithm 2 in its own letters, for alpha = 1."""

    def image(y, level):
        return wavy(y, Point(math.nan, 1.0, level), CLEAN).x0

    steps = len(levels) - 1
    for level, following in pairwise(levels):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= level <= s_max else 0.0
        raised = level + gamma * level
        if gamma:
            y = y + math.sqrt(raised**2 - level**2) * s_noise * noise()
        slope = (y - image(y, raised)) / raised
        reached = y + (following - raised) * slope
        if following:
            again = (reached - image(reached, following)) / following
            reached = y + (following - raised) * (slope + again) / 2
        y = reached
    return y


@pytest.mark.parametrize("path", [EDM(), VE(), VP(), RectifiedFlow()], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize(
    "churn",
    [{}, {"s_churn": 5.0}, {"s_churn": 1e3, "s_noise": 1.003}, {"s_churn": 5.0, "s_min": 0.1, "s_max": 20.0}],
    ids=str,
)
def test_edm_is_algorithm_2_on_every_path(path, churn):
    points = Points(Karras(sigma_min=0.02, sigma_max=45.0).points(9, path)[1:], path)
    levels = [point.noise_level for point in points]
    noise = Noise()
    found = integrate(EDMStochastic(**churn), wavy, begin(points), points, noise)
    wanted = churned(begin(points) / points[0].alpha, levels, Noise(), **churn)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    low, high = churn.get("s_min", 0.0), churn.get("s_max", math.inf)
    assert len(noise.drawn) == (sum(low <= level <= high for level in levels[:-1]) if churn else 0)


@pytest.mark.parametrize("where", PATHS)
def test_edm_without_churn_is_heun(where):
    path, grid = PATHS[where]
    points = grid.points(7, path)
    one, other = (integrate(solver, wavy, begin(points), points, Noise()) for solver in (EDMStochastic(), Heun()))
    assert torch.equal(one, other)


def test_churn_asks_the_network_at_the_time_of_the_raised_noise():
    for path in (EDM(), VP()):
        points, ask = Karras().points(6, path), Counted(wavy)
        integrate(EDMStochastic(s_churn=1.2, s_max=10.0), ask, begin(points), points, Noise())
        raised = [point for point, _ in ask.asked if point not in points]
        due = [point.noise_level for point in points[:-1] if point.noise_level <= 10]
        assert [point.noise_level for point in raised] == pytest.approx([1.2 * level for level in due], rel=1e-9)
        for point in raised:
            assert points_of(path, [point.t])[0][:3] == point[:3]


def test_churn_never_leaves_the_table():
    path = DiscreteVP(1000)
    points, ask = Trailing().points(5, path), Counted(wavy)
    integrate(EDMStochastic(s_churn=10.0), ask, begin(points), points, Noise())
    assert max(point.t for point, _ in ask.asked) == 1.0


def test_churn_needs_a_grid_that_knows_its_path():
    points = list(Karras().points(6, EDM()))
    with pytest.raises(ValueError, match="Points"):
        integrate(EDMStochastic(s_churn=1.0), wavy, begin(points), points, Noise())
    integrate(EDMStochastic(), wavy, begin(points), points, Noise())


def test_heun_to_a_noisy_last_point_is_of_order_two_throughout():
    points, ask = Trailing(final="first").points(6, DiscreteVP(1000)), Counted(wavy)
    integrate(Heun(), ask, begin(points), points, Noise())
    assert len(ask.asked) == Heun().evaluations(6, points) == 12


# --- multistep -------------------------------------------------------------------------------------------------


def test_phi_against_sixty_digits():
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    for z in (-30.0, -5.0, -1.5, -1.0, -0.999, -0.1, -1e-3, -1e-8, 0.7, 2.0):
        value = Decimal(z).exp()
        for k in range(1, 5):
            value = (value - 1 / Decimal(math.factorial(k - 1))) / Decimal(z)
            assert phi(k, z) == pytest.approx(float(value), rel=4e-15)


def test_first_step_from_infinite_noise_and_the_second_are_those_of_ddim():
    points = Trailing().points(8, RectifiedFlow())
    x = begin(points)
    for solver in (DPMSolverPP2M(), DPMSolverPP3M(), UniPC(3), UniPC(3, corrector=False)):
        memory, state = {}, x
        for i in range(2):
            wanted = to_clean(state, wavy(state, points[i], points[i]).x0, points[i], points[i + 1])
            state = solver.step(wavy, state, points, i, memory, Noise())
            torch.testing.assert_close(state, wanted, rtol=0, atol=1e-14)


def test_the_corrector_does_not_undo_what_was_changed_between_two_steps():
    points = Trailing().points(10, VP())
    x = begin(points)

    def told_by_the_point(x, point, until):
        return Prediction(torch.full_like(x, math.cos(3 * point.t)))

    def run(change):
        return integrate(UniPC(3), told_by_the_point, x, points[:7], Noise(), lambda x, i: x + change * (i == 4))

    kept = points[6].sigma / points[4].sigma
    torch.testing.assert_close(run(0.5) - run(0.0), torch.full_like(x, 0.5 * kept), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(1.5), "DDIM takes eta from 0"),
        (lambda: EulerAncestral(-0.1), "EulerAncestral takes eta from 0"),
        (lambda: DDPM("medium"), "no variance of DDPM 'medium'; allowed are: small, large, learned"),
        (lambda: Heun("space"), "no coordinate of Heun 'space'"),
        (lambda: EDMStochastic(s_churn=-1.0), "s_churn and s_noise of 0 or more"),
        (lambda: EDMStochastic(s_min=2.0, s_max=1.0), "0 <= s_min <= s_max"),
        (lambda: DPMSolverPP2MSDE(eta=-1.0), "eta of 0"),
        (lambda: UniPC(4), "order 2 or 3; given was 4"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
