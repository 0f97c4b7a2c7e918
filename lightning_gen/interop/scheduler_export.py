"""The config of the diffusers scheduler that samples as given parts do; the reverse of `schedulers`.

References:
    diffusers, schedulers
    https://huggingface.co/docs/diffusers/api/schedulers/overview
"""

from collections.abc import Callable
from typing import Any

from lightning_gen.diffusion.grids import Grid, Karras, Leading, Linspace, LogSNR, Shifted, Trailing
from lightning_gen.diffusion.parameterizations import EDMPreconditioning, Velocity
from lightning_gen.diffusion.paths import EDM, DiscreteVP, RectifiedFlow
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
from lightning_gen.diffusion.thresholding import Clip, DynamicThreshold
from lightning_gen.interop.grids import FlowMatching, MultistepSpacing
from lightning_gen.interop.scheduler_fields import DEFAULTS, warn_of
from lightning_gen.interop.schedulers import BETAS, PREDICTIONS, UNBOUNDED, VARIANCES, SchedulerParts

_SCHEDULES = {ours: theirs for theirs, ours in BETAS.items()}
_PREDICTIONS = {ours: theirs for theirs, ours in PREDICTIONS.items()}
# the first name of each, "fixed_small"
_VARIANCES = {ours: theirs for theirs, ours in reversed(VARIANCES.items())}


def scheduler_config(parts: SchedulerParts, strict: bool = True) -> dict[str, Any]:
    """Return the content of a `scheduler_config.json`.

    Args:
        parts: path, parameterization, grid, solver and threshold.
        strict: whether to refuse what can only be mapped nearly; else the nearest is taken, with a warning.

    Raises:
        ValueError: names the part that no scheduler of diffusers has.
    """
    export = _Export(parts, strict)
    makers: dict[type, Callable[[_Export], tuple[str, dict[str, Any]]]] = {
        DiscreteVP: _table,
        RectifiedFlow: _flow,
        EDM: _edm,
    }
    maker = makers.get(type(parts.path))
    if maker is None:
        names = ", ".join(kind.__name__ for kind in makers)
        raise export.refused("path", parts.path, f"it has those of {names}")
    name, fields = maker(export)
    if more := fields.keys() - DEFAULTS[name].keys():
        raise ValueError(f"{name} has no field {', '.join(sorted(more))}.")
    # infinities are no JSON, and this one is the default
    kept = {key: value for key, value in (DEFAULTS[name] | fields).items() if key != "lambda_min_clipped"}
    return {"_class_name": name, **kept}


class _Export:
    """The parts, and how they are refused."""

    def __init__(self, parts: SchedulerParts, strict: bool) -> None:
        self.parts, self.strict = parts, strict

    def refused(self, what: str, part: object, why: str) -> ValueError:
        return ValueError(f"No scheduler of diffusers has the {what} {_shown(part)} of this model: {why}.")

    def nearest(self, what: str, part: object, why: str, instead: str) -> None:
        if self.strict:
            raise ValueError(f"{self.refused(what, part, why)} With strict=False the export takes {instead}.")
        warn_of(f"diffusers has not the {what} {_shown(part)} of this model: {why}; taken is {instead}.")


def _shown(part: object) -> str:
    values = {name: value for name, value in vars(part).items() if isinstance(value, (bool, int, float, str))}
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


# ---------------------------------------------------------------------- tables


def _table(export: _Export) -> tuple[str, dict[str, Any]]:
    name, fields = _solver_of_table(export)
    path, parameterization = export.parts.path, export.parts.parameterization
    if not isinstance(path, DiscreteVP):
        raise TypeError(f"expected a DiscreteVP, not a {type(path).__name__}")
    prediction = _PREDICTIONS.get(type(parameterization))
    if prediction is None:
        names = ", ".join(kind.__name__ for kind in _PREDICTIONS)
        raise export.refused("parameterization", parameterization, f"on a DiscreteVP it has {names}")
    if path.zero_terminal_snr and name == "HeunDiscreteScheduler":
        raise export.refused("path", path, f"{name} has no zero terminal SNR")
    if path.zero_terminal_snr and name not in ("DDPMScheduler", "DDIMScheduler"):
        export.nearest("path", path, f"{name} puts 2^-24 for the last alpha^2, 0", "that")
    if path.schedule == "sigmoid" and path.betas is None and name != "DDPMScheduler":
        raise export.refused("path", path, f"the schedule 'sigmoid' is that of DDPMScheduler alone, and this is {name}")
    table = {
        "num_train_timesteps": path.steps,
        "beta_schedule": _SCHEDULES[path.schedule],
        "beta_start": path.beta_start,
        "beta_end": path.beta_end,
        "trained_betas": path.betas,
        "prediction_type": prediction,
    }
    zero = {"rescale_betas_zero_snr": True} if path.zero_terminal_snr else {}
    return name, {**table, **zero, **fields, **_threshold(export, name)}


def _solver_of_table(export: _Export) -> tuple[str, dict[str, Any]]:
    """Return the scheduler and its fields of solver and grid."""
    solver, grid = export.parts.solver, export.parts.grid
    kind = type(solver)
    if kind in _MULTISTEP or (isinstance(grid, MultistepSpacing) and kind in (DDIM, Euler)):
        name, fields = _multistep(export)
        return name, {**fields, **_multistep_grid(export, name)}
    if isinstance(solver, DDPM):
        return "DDPMScheduler", {"variance_type": _VARIANCES[solver.variance], **_ddpm_grid(export, solver)}
    if kind is DDIM and isinstance(solver, DDIM):
        if solver.eta:
            export.nearest("solver", solver, "eta is an argument of diffusers' calls, not of the scheduler", "eta=0")
        fields = _grid(export, ends=True)
        if fields["timestep_spacing"] == "linspace":
            export.nearest("grid", grid, "its DDIM ends steps elsewhere than the next begin; use Euler()", "that")
        return "DDIMScheduler", fields
    if isinstance(solver, EulerAncestral):
        if solver.eta != 1:
            raise export.refused("solver", solver, "EulerAncestralDiscreteScheduler has eta=1")
        return "EulerAncestralDiscreteScheduler", _grid(export)
    if kind is Euler:
        return "EulerDiscreteScheduler", _levels(export) or _grid(export)
    if kind is Heun and isinstance(solver, Heun):
        if solver.coordinate != "noise_level":
            raise export.refused("solver", solver, "HeunDiscreteScheduler's steps are straight in the noise level")
        return "HeunDiscreteScheduler", _levels(export) or _grid(export)
    raise export.refused("solver", solver, "on a DiscreteVP it has DDPM, DDIM, Euler, EulerAncestral, Heun, DPM, UniPC")


def _grid(export: _Export, ends: bool = False) -> dict[str, Any]:
    """Return the fields of a grid; `ends`: whether the scheduler may end at the first step of the table."""
    grid = export.parts.grid
    fields: dict[str, Any]
    if isinstance(grid, Linspace):
        return {"timestep_spacing": "linspace"}
    if isinstance(grid, Leading):
        fields = {"timestep_spacing": "leading", "steps_offset": grid.offset}
    elif isinstance(grid, Trailing):
        fields = {"timestep_spacing": "trailing"}
    else:
        raise export.refused(
            "grid", grid, f"with {type(export.parts.solver).__name__} it has Leading, Trailing, Linspace"
        )
    if ends:
        return {**fields, "set_alpha_to_one": grid.final == "clean"}
    if grid.final != "clean":
        raise export.refused("grid", grid, f"with {type(export.parts.solver).__name__} it ends in the clean image")
    return fields


def _ddpm_grid(export: _Export, solver: DDPM) -> dict[str, Any]:
    fields = _grid(export)
    late = fields["timestep_spacing"] == "trailing" or fields.get("steps_offset")
    if solver.variance != "small" and late:
        export.nearest(
            "grid",
            export.parts.grid,
            f"with variance={solver.variance!r} diffusers adds noise to the image of a last step that does not start at"
            " the first time of the table; use Leading() or Linspace()",
            "the grid, with that noise",
        )
    return fields


def _levels(export: _Export) -> dict[str, Any] | None:
    """Return the fields of a grid of noise levels, None for another grid."""
    grid = export.parts.grid
    if not isinstance(grid, (Karras, LogSNR)):
        return None
    if grid.sigma_min is not None or grid.sigma_max is not None or getattr(grid, "rho", 7.0) != 7.0:
        raise export.refused("grid", grid, "on a table its noise levels go from end to end, with rho=7")
    key = "use_karras_sigmas" if isinstance(grid, Karras) else "use_exponential_sigmas"
    export.nearest("grid", grid, "it tells the network other times between the steps of the table", key)
    return {key: True}


# ---------------------------------------------------------------------- multistep solvers

_MULTISTEP: dict[type[Solver], dict[str, Any]] = {
    DPMSolverPP2M: {"solver_order": 2, "algorithm_type": "dpmsolver++"},
    DPMSolverPP3M: {"solver_order": 3, "algorithm_type": "dpmsolver++"},
    DPMSolverPP2MSDE: {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
    UniPC: {},
}


def _multistep(export: _Export) -> tuple[str, dict[str, Any]]:
    solver = export.parts.solver
    if isinstance(solver, UniPC):
        if not solver.corrector:
            raise export.refused("solver", solver, "UniPCMultistepScheduler names the steps without a corrector")
        return "UniPCMultistepScheduler", {"solver_order": solver.order}
    return "DPMSolverMultistepScheduler", _dpm(export)


def _dpm(export: _Export) -> dict[str, Any]:
    solver = export.parts.solver
    if isinstance(solver, DDIM):
        if solver.eta not in (0, 1):
            raise export.refused("solver", solver, "of order one it has eta=0 and eta=1")
        return {"solver_order": 1, "algorithm_type": "sde-dpmsolver++" if solver.eta else "dpmsolver++"}
    if isinstance(solver, DPMSolverPP3M) and solver.corrected:
        raise export.refused("solver", solver, "it has the published form, corrected=False")
    if isinstance(solver, DPMSolverPP2MSDE) and solver.eta != 1:
        raise export.refused("solver", solver, "sde-dpmsolver++ has eta=1")
    return _MULTISTEP[type(solver)]


def _multistep_grid(export: _Export, name: str) -> dict[str, Any]:
    grid = export.parts.grid
    levels = _levels(export)
    if levels is not None:
        return levels
    if not isinstance(grid, (Trailing, MultistepSpacing)):
        raise export.refused("grid", grid, f"{name} has Trailing and interop.grids.MultistepSpacing")
    last = {"final_sigmas_type": "zero" if grid.final == "clean" else "sigma_min"}
    if isinstance(grid, Trailing):
        return {"timestep_spacing": "trailing", **last}
    return {"timestep_spacing": grid.spacing, "steps_offset": grid.offset, **last}


def _threshold(export: _Export, name: str) -> dict[str, Any]:
    threshold, known = export.parts.threshold, DEFAULTS[name]
    none = {"clip_sample": False} if "clip_sample" in known else {}
    if threshold is None:
        return none
    if type(threshold) is Clip and "clip_sample" in known:
        return {"clip_sample": True}
    if isinstance(threshold, (Clip, DynamicThreshold)) and "thresholding" in known:
        # with the bound 1 a dynamic threshold clips
        bound = {"sample_max_value": 1.0 if isinstance(threshold, Clip) else UNBOUNDED}
        ratio = getattr(threshold, "percentile", known["dynamic_thresholding_ratio"])
        return {**none, "thresholding": True, "dynamic_thresholding_ratio": ratio, **bound}
    raise export.refused("threshold", threshold, f"{name} has none like it")


# ---------------------------------------------------------------------- other paths


def _flow(export: _Export) -> tuple[str, dict[str, Any]]:
    parts, name = export.parts, "FlowMatchEulerDiscreteScheduler"
    if not isinstance(parts.parameterization, Velocity):
        raise export.refused("parameterization", parts.parameterization, "on RectifiedFlow it has Velocity")
    scale = parts.parameterization.time_scale
    if scale != int(scale) or scale < 2:
        raise export.refused("parameterization", parts.parameterization, "time_scale is a whole number of 2 or more")
    if isinstance(parts.solver, DDIM) and type(parts.solver) in (DDIM, Euler):
        if parts.solver.eta:
            raise export.refused("solver", parts.solver, f"{name} has eta=0")
    elif type(parts.solver) is not ConsistencySteps:
        raise export.refused("solver", parts.solver, "on RectifiedFlow it has Euler, DDIM and ConsistencySteps")
    return name, {
        "num_train_timesteps": int(scale),
        "shift": _flow_shift(export, scale),
        "stochastic_sampling": type(parts.solver) is ConsistencySteps,
        **_threshold(export, name),
    }


def _flow_shift(export: _Export, scale: float) -> float:
    grid: Grid = export.parts.grid
    if isinstance(grid, FlowMatching) and grid.table == scale:
        return grid.shift
    if isinstance(grid, Linspace) and grid.t_min == 1 / scale:
        return 1.0
    if isinstance(grid, Shifted) or (isinstance(grid, Trailing) and grid.final == "clean"):
        export.nearest(
            "grid",
            grid,
            "its set_timesteps(N) goes down to 1/T and not to 1/N; use interop.grids.FlowMatching for the same times",
            "the shift; set_timesteps(sigmas=numpy.linspace(1, 1 / N, N)) then gives the times of this grid",
        )
        return getattr(grid, "shift", 1.0)
    raise export.refused("grid", grid, f"on RectifiedFlow it has FlowMatching(table={int(scale)}) and Linspace(1 / T)")


def _edm(export: _Export) -> tuple[str, dict[str, Any]]:
    parts = export.parts
    path, grid, parameterization = parts.path, parts.grid, parts.parameterization
    if not isinstance(path, EDM) or not isinstance(parameterization, EDMPreconditioning):
        raise export.refused("parameterization", parameterization, "on EDM it has EDMPreconditioning")
    ends = (path.sigma_min, path.sigma_max)
    if not isinstance(grid, (Karras, LogSNR)) or not (
        grid.sigma_min in (None, ends[0]) and grid.sigma_max in (None, ends[1])
    ):
        raise export.refused("grid", grid, "on EDM it has Karras and LogSNR, from end to end of the path")
    fields = {
        "sigma_min": path.sigma_min,
        "sigma_max": path.sigma_max,
        "sigma_data": parameterization.sigma_data,
        "sigma_schedule": "karras" if isinstance(grid, Karras) else "exponential",
        "rho": grid.rho if isinstance(grid, Karras) else path.rho,
    }
    solver = parts.solver
    if type(solver) in _MULTISTEP and not isinstance(solver, UniPC):
        name, fields = "EDMDPMSolverMultistepScheduler", {**fields, **_dpm(export)}
    else:
        name = "EDMEulerScheduler"
        if type(solver) is Heun:
            export.nearest("solver", solver, "on EDM it has Euler and DPM-Solver++; use Euler()", name)
        elif not (isinstance(solver, DDIM) and type(solver) in (DDIM, Euler) and not solver.eta):
            raise export.refused("solver", solver, "on EDM it has Euler and DPM-Solver++")
    return name, {**fields, **_threshold(export, name)}
