import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_gen.diffusion.grids import CLEAN, GRIDS, Grid, Karras, Leading, Linspace, LogSNR, Shifted, Trailing
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow, SigmoidVP

TABLES = {
    "linear": DiscreteVP(50),
    "cosine": DiscreteVP(50, "cosine"),
    "zero_snr": DiscreteVP(50, "scaled_linear", 8.5e-4, 0.012, zero_terminal_snr=True),
}
PATHS = {
    **TABLES,
    "VP": VP(),
    "CosineVP": CosineVP(),
    "SigmoidVP": SigmoidVP(),
    "VE": VE(),
    "EDM": EDM(),
    "RectifiedFlow": RectifiedFlow(),
}


def every_grid(path):
    sigma_max = 80.0 if path.ends_in_noise else None
    return [
        Karras(sigma_max=sigma_max),
        Karras(rho=2.0, sigma_max=sigma_max),
        LogSNR(sigma_max=sigma_max),
        Trailing(),
        Linspace(),
        Shifted(3.0),
        Shifted(1.0),
        Shifted(0.3),
    ]


def steps_of(points, path):
    return [round(point.t * path.steps, 9) for point in points[:-1]]


@pytest.mark.parametrize("name", PATHS)
def test_every_grid_starts_at_one_falls_strictly_and_ends_clean(name):
    path = PATHS[name]
    for grid in every_grid(path):
        # every number of steps that a table allows; other paths have no whole numbers to trip over
        for steps in range(1, 51) if name in ("linear", "zero_snr") else (1, 2, 3, 7, 18, 50):
            points = grid.points(steps, path)
            assert len(points) == steps + 1
            assert points[0].t == 1.0
            assert points[-1] == CLEAN
            assert (points[-1].alpha, points[-1].sigma) == (1.0, 0.0)
            assert all(here.noise_level > there.noise_level for here, there in pairwise(points))
            assert all(here.t > there.t for here, there in pairwise(points[:-1]))
            # the network is never asked below the first step of a table, nor outside of the path
            assert points[-2].t >= (0 if path.steps is None else 1 / path.steps)
            assert points[-2].t > 0 or name in ("VE", "EDM")
            if path.steps and not isinstance(grid, (Karras, LogSNR)):
                chosen = steps_of(points, path)
                assert chosen == [int(step) for step in chosen]
                assert len(set(chosen)) == steps


@pytest.mark.parametrize("grid", [Trailing(), Linspace(), Shifted(3.0), Shifted(0.2)])
def test_as_many_steps_as_the_table_has_are_all_of_them(grid):
    assert steps_of(grid.points(50, TABLES["linear"]), TABLES["linear"]) == list(range(50, 0, -1))


def test_points_are_those_of_the_path():
    path = DiscreteVP(1000)
    kept = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)
    for point in Trailing().points(7, path)[:-1]:
        product = kept[round(point.t * 1000) - 1].item()
        assert point.alpha**2 == pytest.approx(product, rel=1e-12)
        assert point.sigma**2 == pytest.approx(1 - product, rel=1e-12)


def test_trailing_and_linspace_and_leading_choose_the_steps_of_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    path = DiscreteVP(1000)
    grids = {"trailing": Trailing(), "linspace": Linspace(), "leading": Leading()}
    for spacing, grid in grids.items():
        theirs = schedulers.DDIMScheduler(timestep_spacing=spacing)
        for steps in [*range(2, 60), 77, 99, 100, 125, 333, 499, 500, 501, 666, 999, 1000]:
            theirs.set_timesteps(steps)
            expected = (theirs.timesteps + 1).tolist()
            # rounding in theirs adds a step now and then
            assert steps_of(grid.points(steps, path), path) == expected[:steps]
            assert len(expected) == steps or spacing == "trailing"


def test_one_step_of_linspace_starts_from_noise_where_that_of_diffusers_starts_at_the_image():
    assert steps_of(Linspace().points(1, TABLES["linear"]), TABLES["linear"]) == [50]


def test_leading_with_the_offset_of_stable_diffusion():
    schedulers = pytest.importorskip("diffusers.schedulers")
    path = DiscreteVP(1000, "scaled_linear", 8.5e-4, 0.012)
    theirs = schedulers.DDIMScheduler(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    theirs.set_timesteps(50)
    points = Leading(offset=1, final="first").points(50, path)
    assert steps_of(points, path) == (theirs.timesteps + 1).tolist()
    assert points[0].t == 0.982
    assert points[-1].t == 0.001
    assert points[-1].alpha == float(path.coefficients(torch.tensor(0.001, dtype=torch.float64))[0]) < 1


@pytest.mark.parametrize("path", [EDM(), EDM(0.01, 50.0, rho=3.0), VE(), VP(), DiscreteVP(1000)])
def test_karras_levels_are_those_of_the_paper(path):
    steps, rho = 18, 7.0
    first, *_, last = (point.noise_level for point in Karras(rho).points(steps, path)[:-1])
    low = last if path.steps is None else float(path.at(torch.tensor(1 / path.steps, dtype=torch.float64)).noise_level)
    i = np.arange(steps)
    expected = (first ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - first ** (1 / rho))) ** rho
    found = [point.noise_level for point in Karras(rho).points(steps, path)[:-1]]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_karras_of_edm_with_the_numbers_of_its_sampler():
    # the first, second, middle and last of t_steps for 18 steps, sigma from 80 to 0.002, computed by hand in float64
    def by_hand(i):
        root = 80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
        return root * root * root * root * root * root * root

    found = [point.noise_level for point in Karras().points(18, EDM())]
    np.testing.assert_allclose(found[:-1], [by_hand(i) for i in range(18)], rtol=1e-12)
    np.testing.assert_allclose(found[:3], [80.0, 57.586, 40.785], rtol=1e-4)
    assert found[-1] == 0


@pytest.mark.parametrize("path", [VP(), RectifiedFlow(), EDM()])
def test_log_snr_is_uniform(path):
    points = LogSNR(sigma_min=0.01, sigma_max=80.0).points(9, path)
    values = [point.log_snr for point in points[1:-1]]
    np.testing.assert_allclose(np.diff(values), math.log(80 / 0.01) / 8, rtol=1e-9)


def test_karras_goes_to_log_snr_as_rho_grows():
    far = [point.noise_level for point in Karras(rho=1e6).points(12, EDM())[:-1]]
    limit = [point.noise_level for point in LogSNR().points(12, EDM())[:-1]]
    np.testing.assert_allclose(far, limit, rtol=1e-4)


def test_sigma_max_places_the_levels_but_not_the_start():
    points = Karras(sigma_min=0.01, sigma_max=50.0).points(10, RectifiedFlow())
    assert (points[0].t, points[0].alpha, points[0].sigma) == (1.0, 0.0, 1.0)
    assert points[1].noise_level == pytest.approx((50 ** (1 / 7) + 1 / 9 * (0.01 ** (1 / 7) - 50 ** (1 / 7))) ** 7)
    assert points[-2].noise_level == pytest.approx(0.01)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
def test_shift_of_rectified_flow_multiplies_the_noise_levels(shift):
    plain, shifted = (grid.points(20, RectifiedFlow()) for grid in (Trailing(), Shifted(shift)))
    for one, other in zip(plain[1:-1], shifted[1:-1], strict=True):
        assert other.noise_level == pytest.approx(shift * one.noise_level, rel=1e-12)


def test_shifted_steps_of_a_table_are_the_nearest():
    path = DiscreteVP(1000)
    times = [3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25)]
    assert steps_of(Shifted(3.0).points(4, path), path) == [round(1000 * t) for t in times] == [1000, 900, 750, 500]


def test_continuous_times():
    assert [point.t for point in Trailing().points(4, VP())] == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose([point.t for point in Linspace(t_min=0.1).points(4, VP())], [1.0, 0.7, 0.4, 0.1, 0.0])
    # EDM still has noise at t = 0, the image comes after it
    assert [point.t for point in Karras().points(2, EDM())] == [1.0, 0.0, 0.0]


def test_derivatives_are_those_of_the_path():
    for point in Trailing().points(5, RectifiedFlow())[:-1]:
        assert (point.dalpha, point.dsigma) == (-1.0, 1.0)


def test_trailing_may_end_at_the_first_step():
    path = TABLES["linear"]
    points = Trailing(final="first").points(10, path)
    assert points[-1].t == 1 / 50
    assert 0 < points[-1].noise_level < points[-2].noise_level


@pytest.mark.parametrize("name", GRIDS)
def test_zero_steps_and_more_than_the_table_has_are_refused(name):
    grid = GRIDS[name]()
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"steps={steps}: sampling takes 1 step or more"):
            grid.points(steps, TABLES["linear"])
    with pytest.raises(ValueError, match=r"steps=51: .* 50 steps of DiscreteVP.*Use steps=50 or fewer"):
        grid.points(51, TABLES["linear"])
    assert len(grid.points(50, TABLES["linear"])) == 51


class Twice(Grid):
    def times(self, steps, path):
        return [1.0, 0.5, 0.5][:steps]


@pytest.mark.parametrize(
    ("make", "steps", "path", "message"),
    [
        (lambda: Twice(), 3, VP(), "Twice of 3 steps goes from t = 0.5 to t = 0.5"),
        (lambda: Shifted(1e20), 3, VP(), "without less noise"),
        (lambda: Trailing(final="first"), 50, TABLES["linear"], "without less noise"),
        (lambda: Leading(final="first"), 10, TABLES["linear"], "without less noise"),
        (lambda: Trailing(final="first"), 5, VP(), "VP has no table of steps"),
        (lambda: Leading(), 5, EDM(), "EDM has no table of steps"),
        (lambda: Leading(offset=1), 50, TABLES["linear"], "starts at step 51 of a table of 50: use an offset of 0"),
        (lambda: Karras(), 5, RectifiedFlow(), "give sigma_max"),
        (lambda: Karras(), 1, TABLES["zero_snr"], "give sigma_max"),
        (lambda: LogSNR(), 5, CosineVP(), "give sigma_max"),
        (lambda: Karras(sigma_max=100.0), 5, EDM(), "EDM goes from 0.002 to 80"),
        (lambda: Karras(sigma_min=0.001), 5, EDM(), "EDM goes from 0.002 to 80"),
        (lambda: Karras(sigma_min=1e-6), 5, TABLES["linear"], "choose sigma_min and sigma_max within"),
        (lambda: Karras(sigma_min=90.0), 5, EDM(), "choose sigma_min and sigma_max within"),
    ],
)
def test_grids_that_do_not_fit_are_refused(make, steps, path, message):
    with pytest.raises(ValueError, match=message):
        make().points(steps, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Karras(rho=0.0), "rho above 0"),
        (lambda: Karras(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: Karras(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: LogSNR(sigma_max=math.inf), "0 < sigma_min < sigma_max"),
        (lambda: Shifted(0.0), "shift above 0"),
        (lambda: Linspace(t_min=0.0), "t_min between 0 and 1"),
        (lambda: Leading(offset=-1), "offset of 0 or more"),
        (lambda: Trailing(final="last"), "no last point 'last'"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
