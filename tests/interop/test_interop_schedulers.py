"""Every scheduler that is mapped against diffusers' own, step by step to the end, in float64.

diffusers computes its tables, and some states, in float32. `exact` runs the same code of diffusers with the names
`torch.float32` and `np.float32` of its module standing for float64: then the whole run has to agree to 1e-10.
"""

import importlib
import inspect
import json
import math

import numpy as np
import pytest
import torch
from exact_diffusers import exact_scheduler

from lightning_gen.diffusion.denoiser import PointDenoiser
from lightning_gen.diffusion.grids import Karras, Leading, Linspace, LogSNR, Shifted, Trailing
from lightning_gen.diffusion.parameterizations import X0, EDMPreconditioning, Epsilon, V, Velocity
from lightning_gen.diffusion.paths import EDM, VP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.solvers import (
    DDIM,
    DDPM,
    ConsistencySteps,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    DPMSolverPP3M,
    EDMStochastic,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
    integrate,
)
from lightning_gen.diffusion.thresholding import Clip, DynamicThreshold, Threshold
from lightning_gen.interop.grids import FlowMatching, MultistepSpacing
from lightning_gen.interop.scheduler_export import scheduler_config
from lightning_gen.interop.scheduler_fields import DEFAULTS
from lightning_gen.interop.schedulers import SchedulerParts, scheduler_parts
from lightning_gen.networks.denoiser import DenoisingNetwork

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests")

# of numpy 2, where diffusers turns a tensor into an array
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 3, 3)
TABLE = {"num_train_timesteps": 20, "beta_start": 0.002, "beta_end": 0.3}
# of the VP schedulers whose state is that of EDM, x / alpha
SCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")


class Function(DenoisingNetwork):
    """A smooth function of state and time that no schedule makes linear."""

    def __init__(self, learned_variance=False):
        super().__init__(SHAPE, learned_variance=learned_variance)

    def forward(self, x, noise_label, cond=None, second_label=None):
        t = noise_label.to(x.dtype).view(-1, 1, 1, 1)
        out = torch.sin(2 * x + 0.3 * t) + 0.5 * x.flip(1).tanh()
        return torch.cat([out, torch.cos(3 * x - 0.2 * t)], 1) if self.learned_variance else out


@pytest.fixture
def exact(monkeypatch):
    """diffusers in float64."""

    def make(name):
        exact_scheduler(monkeypatch, getattr(diffusers, name))

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield make
    torch.set_default_dtype(default)


@pytest.fixture
def noises(monkeypatch):
    """The same noise for both, none in the last step, in which diffusers' DDPM adds 1e-10 of it."""

    def draw(name, steps):
        generator = torch.Generator().manual_seed(5)
        drawn = [torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(steps)]
        drawn[-1].zero_()
        theirs = iter(drawn)
        module = importlib.import_module(getattr(diffusers, name).__module__)
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda *args, dtype=None, **kwargs: next(theirs).to(dtype))
        return iter(drawn)

    return draw


def scale_of(scheduler):
    # flow matching says neither this nor how to scale the state: neither is done
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def scaled(scheduler, x, t):
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def run_theirs(scheduler, net, steps, first, **how):
    """As diffusers' pipelines do; returns all states."""
    scheduler.set_timesteps(steps)
    x, states = first * scale_of(scheduler), []
    learned = "learned" in str(scheduler.config.get("variance_type"))
    for t in scheduler.timesteps:
        output = net(scaled(scheduler, x, t).double(), t.double().expand(len(x)))
        # DPM-Solver takes three channels for the mean, whatever there are
        x = scheduler.step(output if learned else output[:, : SHAPE[0]], t, x, **how).prev_sample
        states.append(x)
    return states


def run_ours(parts, net, steps, first, noises):
    denoiser = PointDenoiser(net, parts.path, parts.parameterization, torch.float64)

    def denoise(x, point, until):
        prediction = denoiser(x, point, until, None)
        return prediction if parts.threshold is None else prediction._replace(x0=parts.threshold(prediction.x0))

    points, states = parts.grid.points(steps, parts.path), []
    integrate(parts.solver, denoise, first, points, lambda: next(noises), lambda x, i: states.append(x) or x)
    return states, points


def normal(seed=1):
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# name, its config, numbers of steps, arguments of its step
CASES = {
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, (20, 10, 7), {}),
    "ddpm clipped": ("DDPMScheduler", {}, (20, 4), {}),
    "ddpm large": ("DDPMScheduler", {"variance_type": "fixed_large"}, (20, 5), {}),
    "ddpm small log": ("DDPMScheduler", {"variance_type": "fixed_small_log"}, (20, 5), {}),
    "ddpm learned": ("DDPMScheduler", {"variance_type": "learned_range"}, (20, 10), {}),
    "ddpm trailing": ("DDPMScheduler", {"timestep_spacing": "trailing"}, (20, 10, 1), {}),
    "ddpm linspace": ("DDPMScheduler", {"timestep_spacing": "linspace"}, (20, 13, 2), {}),
    "ddpm offset": ("DDPMScheduler", {"steps_offset": 1}, (10,), {}),
    "ddpm v": ("DDPMScheduler", {"prediction_type": "v_prediction"}, (10,), {}),
    "ddpm sample": ("DDPMScheduler", {"prediction_type": "sample"}, (10,), {}),
    "ddpm zero snr": (
        "DDPMScheduler",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        (20, 5),
        {},
    ),
    "ddpm threshold": ("DDPMScheduler", {"thresholding": True, "sample_max_value": 1e39}, (10,), {}),
    "ddpm threshold that clips": ("DDPMScheduler", {"thresholding": True}, (10,), {}),
    "ddpm cosine": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, (10,), {}),
    "ddpm scaled": ("DDPMScheduler", {"beta_schedule": "scaled_linear"}, (10,), {}),
    "ddpm sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid"}, (10,), {}),
    "ddpm betas": ("DDPMScheduler", {"trained_betas": [0.01 + 0.02 * i for i in range(20)]}, (10,), {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, (20, 10, 7, 4), {}),
    "ddim trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, (20, 10, 1), {}),
    "ddim clipped": ("DDIMScheduler", {}, (10,), {"use_clipped_model_output": True}),
    "ddim first": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, (10, 5), {}),
    "ddim trailing first": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"},
        (10, 5),
        {},
    ),
    "ddim v": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, (10,), {}),
    "ddim sample": ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}, (10,), {}),
    "ddim zero snr": (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        (10,),
        {},
    ),
    "euler": ("EulerDiscreteScheduler", {}, (20, 2), {}),
    "euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, (20, 10), {}),
    "euler leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, (10, 6), {}),
    "euler v": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, (20,), {}),
    "euler sample": ("EulerDiscreteScheduler", {"prediction_type": "sample"}, (20,), {}),
    "ancestral": ("EulerAncestralDiscreteScheduler", {}, (20, 2), {}),
    "ancestral trailing": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, (10,), {}),
    "ancestral v": ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, (20,), {}),
    "heun": ("HeunDiscreteScheduler", {}, (20, 2), {}),
    "heun trailing": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing", "clip_sample": True}, (10,), {}),
    "dpm": ("DPMSolverMultistepScheduler", {}, (19, 15, 7), {}),
    "dpm trailing": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, (20, 10), {}),
    "dpm leading": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, (9, 6), {}),
    "dpm first": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, (16, 7), {}),
    "dpm one": ("DPMSolverMultistepScheduler", {"solver_order": 1}, (10,), {}),
    "dpm three": ("DPMSolverMultistepScheduler", {"solver_order": 3}, (16, 9), {}),
    "dpm three first": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 3, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
        (10,),
        {},
    ),
    "dpm not lower": ("DPMSolverMultistepScheduler", {"lower_order_final": False, "euler_at_final": True}, (9,), {}),
    "dpm sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, (16, 9), {}),
    "dpm sde one": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 1},
        (9,),
        {},
    ),
    "dpm v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, (9,), {}),
    "dpm threshold": ("DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 1e39}, (9,), {}),
    "unipc": ("UniPCMultistepScheduler", {}, (19, 9), {}),
    "unipc trailing": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing", "solver_order": 3}, (20, 10), {}),
    "unipc first": ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min", "solver_order": 3}, (9,), {}),
    "unipc sample": ("UniPCMultistepScheduler", {"prediction_type": "sample"}, (9,), {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}, (20, 7, 1), {}),
    "flow shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, (20, 7), {}),
    "flow with noise": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, (7,), {}),
    "edm": ("EDMEulerScheduler", {}, (18, 5), {}),
    "edm other": ("EDMEulerScheduler", {"sigma_data": 1.0, "rho": 5.0, "sigma_max": 10.0}, (5,), {}),
    "edm exponential": ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, (6,), {}),
    "edm dpm": ("EDMDPMSolverMultistepScheduler", {}, (18, 6), {}),
    "edm dpm three": ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, (18, 6), {}),
    "edm dpm sde": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, (18,), {}),
}


def config_of(name, fields):
    table = {key: value for key, value in TABLE.items() if key in DEFAULTS[name]}
    return {"_class_name": name, **table, **fields}


def compare(name, config, steps, how, noises, first=None):
    """Return the greatest difference of the states of a run, in their own size."""
    parts = scheduler_parts(config)
    net = Function(learned_variance=config.get("variance_type") == "learned_range")
    scheduler = getattr(diffusers, name)(**{key: value for key, value in config.items() if key != "_class_name"})
    drawn = noises(name, steps)
    theirs = run_theirs(scheduler, net, steps, normal(), **how)
    points = parts.grid.points(steps, parts.path)
    start = normal() * scale_of(scheduler) * (points[0].alpha if name in SCALED else 1.0)
    ours, points = run_ours(parts, net, steps, start, drawn)
    # Heun's second evaluations are steps of their own there
    theirs = [*theirs[1:-1:2], theirs[-1]] if name == "HeunDiscreteScheduler" else theirs
    assert len(ours) == len(theirs) == steps
    differences = []
    for mine, its, point in zip(ours, theirs, points[1:], strict=True):
        its = its * point.alpha if name in SCALED else its
        assert mine.isfinite().all()
        differences.append(((mine - its).abs().max() / its.abs().max()).item())
    return max(differences)


@pytest.mark.parametrize("case", CASES)
def test_every_state_of_a_run_is_that_of_diffusers(case, exact, noises):
    name, fields, numbers, how = CASES[case]
    exact(name)
    for steps in numbers:
        assert compare(name, config_of(name, fields), steps, how, noises) < 1e-10, steps


@pytest.mark.parametrize("case", ["ddpm", "ddim", "euler", "dpm", "unipc", "flow", "edm dpm"])
def test_diffusers_as_it_is_differs_by_the_rounding_of_float32(case, noises):
    """The same without turning diffusers to float64, whose tables and states have seven digits."""
    name, fields, numbers, how = CASES[case]
    difference = compare(name, config_of(name, fields), numbers[0], how, noises)
    assert difference < 5e-5
    assert difference > 1e-12


def test_the_table_of_diffusers_is_that_of_the_path_to_float32():
    scheduler = diffusers.DDIMScheduler()
    path = scheduler_parts({"_class_name": "DDIMScheduler"}).path
    alpha, _ = path.coefficients(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alpha.square(), rtol=2e-5, atol=0)


def test_clipping_in_ddim_needs_the_noise_of_the_clipped_image(exact, noises):
    """Without use_clipped_model_output the noise of diffusers' DDIM belongs to the image before clipping."""
    exact("DDIMScheduler")
    config = config_of("DDIMScheduler", {})
    assert compare("DDIMScheduler", config, 10, {"use_clipped_model_output": False}, noises) > 1e-2


def test_ddim_of_diffusers_at_numbers_that_do_not_divide_the_table(exact, noises):
    exact("DDIMScheduler")
    config = config_of("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"})
    assert compare("DDIMScheduler", config, 7, {}, noises) > 1e-2


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_diffusers(name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    theirs = {key: value.default for key, value in parameters.items() if key != "self"}
    unknown = {key: value for key, value in theirs.items() if DEFAULTS[name].get(key, "missing") != value}
    assert not unknown


@pytest.mark.parametrize("case", CASES)
def test_a_config_goes_out_as_it_came_in(case):
    name, fields, _, _ = CASES[case]
    config = config_of(name, fields)
    parts = scheduler_parts(config)
    written = json.loads(json.dumps(scheduler_config(parts), allow_nan=False))
    assert written["_class_name"] == name
    again = scheduler_parts(written)
    assert scheduler_config(again) == written
    for ours, theirs in zip(parts, again, strict=True):
        assert type(ours) is type(theirs)
        mine, its = (
            {key: value for key, value in vars(part or object).items() if not key.startswith("_")}
            for part in (ours, theirs)
        )
        if ours is not None:
            assert mine == its
    # and diffusers makes of it what it makes of the first one
    made, original = (
        getattr(diffusers, name).from_config({k: v for k, v in c.items() if k != "_class_name"})
        for c in (written, config)
    )
    for scheduler in (made, original):
        scheduler.set_timesteps(5)
    assert torch.equal(made.timesteps, original.timesteps)
    for table in ("alphas_cumprod", "sigmas"):
        if hasattr(original, table):
            assert torch.equal(getattr(made, table), getattr(original, table))


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (SchedulerParts(DiscreteVP(), Epsilon(), Trailing(), DDIM(), None), "DDIMScheduler"),
        (SchedulerParts(DiscreteVP(), Epsilon(), Trailing(), DDPM(), Clip()), "DDPMScheduler"),
        (SchedulerParts(DiscreteVP(), V(), Trailing(), DPMSolverPP2M(), Clip()), "DPMSolverMultistepScheduler"),
        (SchedulerParts(RectifiedFlow(), Velocity(), Linspace(), DDIM(), None), "FlowMatchEulerDiscreteScheduler"),
        (SchedulerParts(EDM(), EDMPreconditioning(), Karras(), DDIM(), None), "EDMEulerScheduler"),
        (
            SchedulerParts(EDM(), EDMPreconditioning(), Karras(), DPMSolverPP2M(), Clip()),
            "EDMDPMSolverMultistepScheduler",
        ),
    ],
)
def test_parts_of_a_model_go_out(parts, name, noises, exact):
    config = scheduler_config(parts)
    assert config["_class_name"] == name
    exact(name)
    how = {} if parts.threshold is None or name != "DDIMScheduler" else {"use_clipped_model_output": True}
    assert compare(name, config, 10, how, noises) < 1e-10


VPREDICTION = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("PNDMScheduler", {}, "There is no scheduler that can be mapped 'PNDMScheduler'; allowed are: DDPMScheduler"),
        ("DDIMSchedular", {}, "Did you mean 'DDIMScheduler'"),
        (
            "DDPMScheduler",
            {"variance_type": "learned"},
            "variance_type='learned' cannot be mapped: supported is 'fixed_",
        ),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type='fixed_large_log'"),
        ("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": "trailing"}, "the image without noise"),
        ("DDPMScheduler", {"variance_type": "learned_range", "steps_offset": 1}, "variance_type='learned_range'"),
        (
            "DDPMScheduler",
            {"beta_schedule": "laplace"},
            "beta_schedule='laplace' cannot be mapped: supported is 'linear",
        ),
        ("DDPMScheduler", {"clip_sample_range": 2.0}, "clip_sample_range=2.0 cannot be mapped: supported is 1"),
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 5.0}, "sample_max_value=5.0"),
        (
            "DDPMScheduler",
            {"trained_betas": [0.1] * 19},
            "num_train_timesteps=20 cannot be mapped: trained_betas has 19",
        ),
        ("DDPMScheduler", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("DDPMScheduler", {"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ("DDPMScheduler", {"timestep_spacing": "even"}, "timestep_spacing='even' cannot be mapped"),
        ("DDPMScheduler", {"new_field": 3}, "new_field=3 cannot be mapped: the field is not known"),
        ("DDPMScheduler", {"beta_start": -1.0}, "0 < beta_start <= beta_end < 1; given were -1.0"),
        ("DDIMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' cannot be mapped"),
        (
            "DDIMScheduler",
            {"timestep_spacing": "linspace"},
            "timestep_spacing='linspace' cannot be mapped: diffusers' DDIM",
        ),
        ("DDIMScheduler", {"set_alpha_to_one": False}, "set_alpha_to_one=False cannot be mapped: with steps_offset=0"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas=True .* the grid Karras"),
        ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, "the grid LogSNR"),
        (
            "EulerDiscreteScheduler",
            {"use_beta_sigmas": True},
            "use_beta_sigmas=True cannot be mapped: supported is False",
        ),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'"),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}, "interpolation_type='log_linear'"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type='continuous'"),
        ("EulerDiscreteScheduler", {**VPREDICTION, "rescale_betas_zero_snr": True}, "2\\^-24"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver'"),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "solver_type='heun'"),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 4},
            "solver_order=4 cannot be mapped: supported is 1 or 2 or 3",
        ),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
            "solver_order=3 cannot be mapped: supported is 1 or 2",
        ),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, "lower_order_final=False"),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "euler_at_final": True}, "euler_at_final"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas=True"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1"),
        ("UniPCMultistepScheduler", {"solver_order": 1}, "solver_order=1 cannot be mapped: supported is 2 or 3"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0=False"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "solver_type='bh1'"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, "disable_corrector=\\[0\\]"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=True"),
        ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal=0.1"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "prediction_type='v_prediction'"),
        ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type='sigma_min'"),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(name, fields, said):
    config = config_of(name, fields) if name in DEFAULTS else {"_class_name": name, **fields}
    with pytest.raises(ValueError, match=said):
        scheduler_parts(config)


@pytest.mark.parametrize(
    ("name", "fields", "taken"),
    [
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"grid": Karras}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"grid": Karras, "solver": DPMSolverPP2M}),
        ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}, {"grid": LogSNR}),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, {"grid": Linspace}),
        ("DDIMScheduler", {"set_alpha_to_one": False}, {"grid": Leading}),
        ("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": "trailing"}, {"grid": Trailing}),
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 5.0}, {"threshold": DynamicThreshold}),
        ("UniPCMultistepScheduler", {**VPREDICTION, "rescale_betas_zero_snr": True}, {"path": DiscreteVP}),
        ("DDPMScheduler", {"new_field": 3}, {"solver": DDPM}),
    ],
)
def test_the_nearest_is_taken_where_that_is_allowed(name, fields, taken):
    with pytest.warns(UserWarning, match=f"{name} with .*; taken is"):
        parts = scheduler_parts(config_of(name, fields), strict=False)
    for part, kind in taken.items():
        assert type(getattr(parts, part)) is kind
    if "rescale_betas_zero_snr" in fields:
        assert parts.path.ends_in_noise
    parts.grid.points(5, parts.path)


def test_fields_of_other_schedulers_are_no_matter():
    """diffusers keeps those of the scheduler that another one was made from, and does not read them."""
    scheduler = diffusers.EulerDiscreteScheduler.from_config(
        diffusers.DDIMScheduler(clip_sample=True, set_alpha_to_one=False, steps_offset=1).config
    )
    config = {**scheduler.config, "skip_prk_steps": True}
    assert {"clip_sample", "set_alpha_to_one"} <= config.keys()
    parts = scheduler_parts(config, "EulerDiscreteScheduler")
    assert type(parts.solver) is Euler
    assert parts.threshold is None


def test_the_class_that_a_pipeline_names_goes_first():
    assert type(scheduler_parts({"_class_name": "DDPMScheduler"}, "DDIMScheduler").solver) is DDIM
    with pytest.raises(ValueError, match="does not say its _class_name"):
        scheduler_parts({"beta_start": 0.1})


class OwnThreshold(Threshold):
    def __call__(self, x0):
        return x0


TRAILING = SchedulerParts(DiscreteVP(), Epsilon(), Trailing(), DDIM(), None)
FLOW = SchedulerParts(RectifiedFlow(), Velocity(), FlowMatching(), Euler(), None)
PRECONDITIONED = SchedulerParts(EDM(), EDMPreconditioning(), Karras(), Euler(), None)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (TRAILING._replace(path=VP()), "the path VP\\(beta_min=0.1, beta_max=20.0\\) of this model"),
        (TRAILING._replace(parameterization=Velocity()), "the parameterization Velocity"),
        (TRAILING._replace(parameterization=EDMPreconditioning()), "on a DiscreteVP it has Epsilon, X0, V"),
        (TRAILING._replace(solver=DDIM(0.5)), "solver DDIM\\(eta=0.5\\) .* strict=False the export takes eta=0"),
        (TRAILING._replace(solver=EulerAncestral(0.5)), "has eta=1"),
        (TRAILING._replace(solver=DPMSolverPP3M(corrected=True)), "published form"),
        (TRAILING._replace(solver=DPMSolverPP2MSDE(0.5)), "sde-dpmsolver\\+\\+ has eta=1"),
        (TRAILING._replace(solver=UniPC(corrector=False)), "without a corrector"),
        (TRAILING._replace(solver=EDMStochastic()), "the solver EDMStochastic"),
        (TRAILING._replace(solver=ConsistencySteps()), "the solver ConsistencySteps"),
        (TRAILING._replace(solver=Heun("time")), "straight in the noise level"),
        (TRAILING._replace(solver=DDPM("large")), "adds noise to the image"),
        (TRAILING._replace(grid=Linspace()), "use Euler\\(\\)"),
        (TRAILING._replace(grid=Shifted()), "the grid Shifted\\(shift=3.0\\)"),
        (TRAILING._replace(grid=Linspace(), solver=UniPC()), "Trailing and interop.grids.MultistepSpacing"),
        (TRAILING._replace(grid=Trailing("first"), solver=Euler()), "it ends in the clean image"),
        (TRAILING._replace(grid=Karras(), solver=Euler()), "use_karras_sigmas"),
        (TRAILING._replace(grid=Karras(rho=3.0), solver=Euler()), "with rho=7"),
        (TRAILING._replace(threshold=Clip(), solver=Euler()), "EulerDiscreteScheduler has none like it"),
        (TRAILING._replace(threshold=OwnThreshold()), "the threshold OwnThreshold"),
        (TRAILING._replace(path=DiscreteVP(schedule="sigmoid")), "DDPMScheduler alone"),
        (
            TRAILING._replace(path=DiscreteVP(zero_terminal_snr=True), parameterization=V(), solver=UniPC()),
            "2\\^-24",
        ),
        (
            TRAILING._replace(path=DiscreteVP(zero_terminal_snr=True), parameterization=V(), solver=Heun()),
            "HeunDiscreteScheduler has no zero terminal SNR",
        ),
        (FLOW._replace(grid=Trailing()), "not to 1/N"),
        (FLOW._replace(grid=Karras(sigma_max=80.0)), "the grid Karras"),
        (FLOW._replace(parameterization=X0()), "on RectifiedFlow it has Velocity"),
        (FLOW._replace(parameterization=Velocity(0.5)), "time_scale is a whole number"),
        (FLOW._replace(solver=Heun()), "Euler, DDIM and ConsistencySteps"),
        (FLOW._replace(threshold=Clip()), "FlowMatchEulerDiscreteScheduler has none like it"),
        (PRECONDITIONED._replace(solver=Heun()), "on EDM it has Euler and DPM-Solver"),
        (PRECONDITIONED._replace(solver=UniPC()), "on EDM it has Euler and DPM-Solver"),
        (PRECONDITIONED._replace(grid=Trailing()), "on EDM it has Karras and LogSNR"),
        (PRECONDITIONED._replace(grid=Karras(sigma_min=0.1)), "from end to end"),
        (PRECONDITIONED._replace(parameterization=X0()), "on EDM it has EDMPreconditioning"),
    ],
)
def test_what_diffusers_has_not_is_refused_by_name(parts, said):
    with pytest.raises(ValueError, match=said):
        scheduler_config(parts)


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        (FLOW._replace(grid=Shifted(2.0)), {"shift": 2.0}),
        (FLOW._replace(grid=Trailing()), {"shift": 1.0}),
        (PRECONDITIONED._replace(solver=Heun()), {"_class_name": "EDMEulerScheduler"}),
        (TRAILING._replace(solver=DDIM(0.5)), {"_class_name": "DDIMScheduler"}),
        (TRAILING._replace(grid=Karras(), solver=DPMSolverPP2M()), {"use_karras_sigmas": True}),
        (TRAILING._replace(solver=DDPM("learned")), {"variance_type": "learned_range"}),
    ],
)
def test_the_nearest_goes_out_where_that_is_allowed(parts, fields):
    with pytest.warns(UserWarning, match="diffusers has not the"):
        config = scheduler_config(parts, strict=False)
    assert fields.items() <= config.items()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grids_are_reached_by_giving_diffusers_the_noise_levels(shift):
    """What the warning of a flow's export says."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7))
    times = Shifted(shift).times(7, RectifiedFlow())
    torch.testing.assert_close(
        scheduler.sigmas.double()[:-1], torch.tensor(times, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_grids_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="RectifiedFlow has no table"):
        MultistepSpacing().points(5, RectifiedFlow())
    with pytest.raises(ValueError, match="continuous paths"):
        FlowMatching().points(5, DiscreteVP())
    with pytest.raises(ValueError, match="offset of 0 or more"):
        MultistepSpacing(offset=-1)
    with pytest.raises(ValueError, match="beyond the table of 20"):
        MultistepSpacing("leading", offset=9).points(9, DiscreteVP(20))
    with pytest.raises(ValueError, match="without less noise"):
        MultistepSpacing().points(20, DiscreteVP(20))
    for wrong in (0.0, math.inf):
        with pytest.raises(ValueError, match="shift above 0"):
            FlowMatching(wrong)
    with pytest.raises(ValueError, match="There is no spacing 'trailing'"):
        MultistepSpacing("trailing")
