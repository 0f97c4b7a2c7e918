r"""From the config of a diffusers scheduler to path, parameterization, grid, solver and threshold.

| scheduler                | path          | solver                         | grid                        |
|--------------------------|---------------|--------------------------------|-----------------------------|
| `DDPM`                   | DiscreteVP    | DDPM                           | Leading, Trailing, Linspace |
| `DDIM`                   | DiscreteVP    | DDIM                           | Leading, Trailing           |
| `EulerDiscrete`          | DiscreteVP    | Euler                          | Leading, Trailing, Linspace |
| `EulerAncestralDiscrete` | DiscreteVP    | EulerAncestral                 | Leading, Trailing, Linspace |
| `HeunDiscrete`           | DiscreteVP    | Heun                           | Leading, Trailing, Linspace |
| `DPMSolverMultistep`     | DiscreteVP    | DPMSolverPP2M, 3M, 2MSDE; DDIM | MultistepSpacing, Trailing  |
| `UniPCMultistep`         | DiscreteVP    | UniPC                          | MultistepSpacing, Trailing  |
| `FlowMatchEulerDiscrete` | RectifiedFlow | Euler, ConsistencySteps        | FlowMatching                |
| `EDMEuler`               | EDM           | Euler                          | Karras, LogSNR              |
| `EDMDPMSolverMultistep`  | EDM           | DPMSolverPP2M, 3M, 2MSDE; DDIM | Karras, LogSNR              |

(The names go on with `Scheduler`.) From the same first state both compute the same samples, to the float32 of
diffusers' tables. This holds for numbers of steps whose times are whole steps of the table: N divides T for
"trailing", and N - 1 divides T - 1 for "linspace". For others diffusers takes steps of DDIM that end where no other
begins, and times between those that the network knows in its Euler's and Heun's; here the grid is rounded and goes on
where a step ended. What else is mapped nearly or not at all is refused.

Four things are arguments of diffusers' calls and not in a config: the number of steps; eta of DDIM, taken for 0;
`use_clipped_model_output` of DDIM, which here is always so (without it the noise in diffusers does not belong to the
clipped image); and the first state. It is noise times the sigma of the first time here, :math:`\sigma_T`, and for
some schedulers noise of variance 1 there, or :math:`\sigma^2 + 1` for EDM's: a factor of 1 to within 0.3 % for
tables in use.

References:
    diffusers, schedulers
    https://huggingface.co/docs/diffusers/api/schedulers/overview
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lightning_gen.diffusion.grids import Final, Grid, Karras, Leading, Linspace, LogSNR, Trailing
from lightning_gen.diffusion.parameterizations import (
    X0,
    EDMPreconditioning,
    Epsilon,
    Parameterization,
    V,
    Velocity,
)
from lightning_gen.diffusion.paths import EDM, BetaSchedule, DiscreteVP, Path, RectifiedFlow
from lightning_gen.diffusion.solvers import (
    DDIM,
    DDPM,
    ConsistencySteps,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    DPMSolverPP3M,
    Euler,
    EulerAncestral,
    Heun,
    Solver,
    UniPC,
)
from lightning_gen.diffusion.solvers.ancestral import Variance
from lightning_gen.diffusion.thresholding import Clip, DynamicThreshold, Threshold
from lightning_gen.interop.grids import FlowMatching, MultistepSpacing
from lightning_gen.interop.scheduler_fields import Fields

BETAS: dict[str, BetaSchedule] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS: dict[str, type[Parameterization]] = {"epsilon": Epsilon, "sample": X0, "v_prediction": V}
VARIANCES: dict[str, Variance] = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned",
}
# a bound that no value of float32 exceeds
UNBOUNDED = 3.4e38


class SchedulerParts(NamedTuple):
    """What a scheduler is made of.

    Attributes:
        path: how images become noise.
        parameterization: what the network is asked for.
        grid: where steps are taken.
        solver: what takes them.
        threshold: what keeps estimated images in range.
    """

    path: Path
    parameterization: Parameterization
    grid: Grid
    solver: Solver
    threshold: Threshold | None


def scheduler_parts(config: Mapping[str, Any], name: str | None = None, strict: bool = True) -> SchedulerParts:
    """Return the parts that do what a scheduler of diffusers does.

    Args:
        config: the content of `scheduler_config.json`.
        name: class of the scheduler, where a pipeline names another one than the config does.
        strict: whether to refuse what can only be mapped nearly; else the nearest is taken, with a warning.

    Raises:
        ValueError: names the field and its value, and what is supported.
    """
    fields = Fields(config, name, strict)
    made = _MAKERS[fields.name](fields)
    made.parameterization.check(made.path)
    return made


def _ddpm(fields: Fields) -> SchedulerParts:
    variance = VARIANCES[fields.only("variance_type", VARIANCES)]
    spacing, offset = fields["timestep_spacing"], fields["steps_offset"]
    if variance != "small" and (spacing == "trailing" or (spacing == "leading" and offset)):
        fields.nearest(
            "variance_type",
            f"with timestep_spacing={spacing!r} and steps_offset={offset} the last step does not start at the first"
            " time of the table, and diffusers adds noise to its image",
            "the image without noise",
        )
    return _table_parts(fields, _grid(fields), DDPM(variance))


def _ddim(fields: Fields) -> SchedulerParts:
    final: Final = "clean" if fields["set_alpha_to_one"] else "first"
    if final == "first" and fields["timestep_spacing"] == "leading" and not fields["steps_offset"]:
        fields.nearest("set_alpha_to_one", "with steps_offset=0 the last step has the length zero", "a clean image")
        final = "clean"
    if fields["timestep_spacing"] == "linspace":
        fields.nearest(
            "timestep_spacing",
            "diffusers' DDIM ends its steps elsewhere than the next ones begin; supported is 'leading' or 'trailing'",
            "the same times, each step ending at the next one",
        )
        final = "clean"
    return _table_parts(fields, _grid(fields, final), DDIM())


def _euler(fields: Fields) -> SchedulerParts:
    fields.only("interpolation_type", ["linear"])
    fields.only("timestep_type", ["discrete"])
    if fields["final_sigmas_type"] != "zero":
        fields.only("final_sigmas_type", ["zero", "sigma_min"])
        fields.nearest("final_sigmas_type", "the samples would keep noise, scaled to alpha = 1", "a clean image")
    return _table_parts(fields, _levels(fields) or _grid(fields), Euler())


def _euler_ancestral(fields: Fields) -> SchedulerParts:
    return _table_parts(fields, _grid(fields), EulerAncestral())


def _heun(fields: Fields) -> SchedulerParts:
    return _table_parts(fields, _levels(fields) or _grid(fields), Heun())


def _dpm(fields: Fields) -> SchedulerParts:
    fields.only("use_lu_lambdas", [False])
    fields.only("lambda_min_clipped", [float("-inf"), None])
    # the network's variance is not used
    fields.only("variance_type", [None, "learned", "learned_range"])
    grid, final = _multistep_grid(fields)
    return _table_parts(fields, grid, _dpm_solver(fields, final))


def _unipc(fields: Fields) -> SchedulerParts:
    fields.only("predict_x0", [True])
    fields.only("solver_type", ["bh2", "midpoint", "heun", "logrho"])
    fields.only("lower_order_final", [True])
    fields.only("disable_corrector", [[], None])
    fields.only("solver_p", [None])
    grid, _ = _multistep_grid(fields)
    return _table_parts(fields, grid, UniPC(fields.only("solver_order", [2, 3])))


def _flow(fields: Fields) -> SchedulerParts:
    for key in ("use_dynamic_shifting", "invert_sigmas", *_LEVEL_KEYS):
        fields.only(key, [False])
    fields.only("shift_terminal", [None])
    steps = fields["num_train_timesteps"]
    solver = ConsistencySteps() if fields["stochastic_sampling"] else Euler()
    grid = FlowMatching(float(fields["shift"]), steps)
    return SchedulerParts(RectifiedFlow(), Velocity(float(steps)), grid, solver, None)


def _edm(fields: Fields) -> SchedulerParts:
    fields.only("prediction_type", ["epsilon"])
    fields.only("final_sigmas_type", ["zero"])
    schedule = fields.only("sigma_schedule", ["karras", "exponential"])
    path = EDM(fields["sigma_min"], fields["sigma_max"], fields["rho"])
    grid = Karras(fields["rho"]) if schedule == "karras" else LogSNR()
    solver = Euler() if fields.name == "EDMEulerScheduler" else _dpm_solver(fields, "clean")
    return SchedulerParts(path, EDMPreconditioning(fields["sigma_data"]), grid, solver, _threshold(fields))


_MAKERS: dict[str, Callable[[Fields], SchedulerParts]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "DPMSolverMultistepScheduler": _dpm,
    "UniPCMultistepScheduler": _unipc,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
}


def _table_parts(fields: Fields, grid: Grid, solver: Solver) -> SchedulerParts:
    prediction = PREDICTIONS[fields.only("prediction_type", PREDICTIONS)]
    return SchedulerParts(_path(fields), prediction(), grid, solver, _threshold(fields))


def _path(fields: Fields) -> DiscreteVP:
    steps, zero = fields["num_train_timesteps"], bool(fields.get("rescale_betas_zero_snr"))
    if zero and fields.name not in ("DDPMScheduler", "DDIMScheduler"):
        fields.nearest("rescale_betas_zero_snr", "diffusers puts 2^-24 for the last alpha^2 here", "0")
    betas = fields["trained_betas"]
    if betas is not None:
        if len(betas) != steps:
            raise fields.refused("num_train_timesteps", f"trained_betas has {len(betas)} entries")
        return DiscreteVP(betas=[float(beta) for beta in betas], zero_terminal_snr=zero)
    schedule = BETAS[fields.only("beta_schedule", [*BETAS][: None if fields.name == "DDPMScheduler" else 3])]
    if schedule == "cosine":
        return DiscreteVP(steps, schedule, zero_terminal_snr=zero)
    return DiscreteVP(steps, schedule, fields["beta_start"], fields["beta_end"], zero)


def _threshold(fields: Fields) -> Threshold | None:
    if fields.get("thresholding"):
        most = fields["sample_max_value"]
        if most == 1:
            return Clip()
        if not most >= UNBOUNDED:
            fields.nearest(
                "sample_max_value",
                f"supported is 1, which clips, or {UNBOUNDED:g} and more, which is no bound",
                "no bound",
            )
        return DynamicThreshold(fields["dynamic_thresholding_ratio"])
    if fields.get("clip_sample"):
        fields.only("clip_sample_range", [1])
        return Clip()
    return None


def _grid(fields: Fields, final: Final = "clean") -> Grid:
    spacing = fields.only("timestep_spacing", ["leading", "trailing", "linspace"])
    if spacing == "leading":
        return Leading(fields["steps_offset"], final)
    return Trailing(final) if spacing == "trailing" else Linspace()


_LEVEL_KEYS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def _levels(fields: Fields) -> Grid | None:
    """Return a grid of noise levels between the steps of the table, where one is asked for."""
    fields.only("use_beta_sigmas", [False])
    for key, grid in (("use_karras_sigmas", Karras), ("use_exponential_sigmas", LogSNR)):
        if fields.get(key):
            fields.nearest(
                key,
                "diffusers tells the network other times between the steps of the table",
                f"the grid {grid.__name__}",
            )
            for end in ("sigma_min", "sigma_max"):
                fields.only(end, [None])
            return grid()
    return None


def _multistep_grid(fields: Fields) -> tuple[Grid, Final]:
    fields.only("use_flow_sigmas", [False])
    fields.only("use_dynamic_shifting", [False])
    final: Final = "clean" if fields.only("final_sigmas_type", ["zero", "sigma_min"]) == "zero" else "first"
    levels = _levels(fields)
    if levels is not None:
        fields.only("final_sigmas_type", ["zero"])
        return levels, final
    spacing = fields.only("timestep_spacing", ["linspace", "leading", "trailing"])
    if spacing == "trailing":
        return Trailing(final), final
    offset = fields["steps_offset"] if spacing == "leading" else 0
    return MultistepSpacing(spacing, offset, final), final


def _dpm_solver(fields: Fields, final: Final) -> Solver:
    fields.only("solver_type", ["midpoint", "logrho", "bh1", "bh2"])
    noisy = fields.only("algorithm_type", ["dpmsolver++", "deis", "sde-dpmsolver++"]) == "sde-dpmsolver++"
    order = fields.only("solver_order", [1, 2] if noisy else [1, 2, 3])
    # a step to the clean image is of order one anyway
    if final == "first" or order == 3:
        fields.only("lower_order_final", [True])
    if final == "first":
        fields.only("euler_at_final", [False])
    if order == 1:
        return DDIM(1.0 if noisy else 0.0)
    if noisy:
        return DPMSolverPP2MSDE()
    return DPMSolverPP2M() if order == 2 else DPMSolverPP3M()
