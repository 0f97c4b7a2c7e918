"""The fields of diffusers' schedulers, their defaults, and how those are refused that cannot be mapped."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from lightning_gen.errors import choose

_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
_CLIP: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD: dict[str, Any] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
}
_ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": False}
_LEVELS: dict[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_FLOW: dict[str, Any] = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DPM: dict[str, Any] = {
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
}
_EDM: dict[str, Any] = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {
        **_TABLE,
        **_CLIP,
        **_THRESHOLD,
        **_ZERO_SNR,
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
    },
    "DDIMScheduler": {
        **_TABLE,
        **_CLIP,
        **_THRESHOLD,
        **_ZERO_SNR,
        "timestep_spacing": "leading",
        "set_alpha_to_one": True,
    },
    "EulerDiscreteScheduler": {
        **_TABLE,
        **_LEVELS,
        **_ZERO_SNR,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_ZERO_SNR},
    "HeunDiscreteScheduler": {
        **_TABLE,
        **_LEVELS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "clip_sample_range": 1.0,
    },
    "DPMSolverMultistepScheduler": {
        **_TABLE,
        **_THRESHOLD,
        **_LEVELS,
        **_FLOW,
        **_ZERO_SNR,
        **_DPM,
        "use_lu_lambdas": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
    },
    "UniPCMultistepScheduler": {
        **_TABLE,
        **_THRESHOLD,
        **_LEVELS,
        **_FLOW,
        **_ZERO_SNR,
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_LEVELS,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {**_EDM, **_THRESHOLD, **_DPM},
}
"""The schedulers that are mapped, with what they take for a key that a config leaves out."""

# what files hold of other schedulers, as diffusers keeps the fields of the one that a scheduler was made from
_FOREIGN = {"skip_prk_steps", "clip_sample_range"}.union(*DEFAULTS.values())


class NearlyMapped(UserWarning):
    """Something was not mapped exactly, or left out."""


class Fields:
    """The fields of one scheduler's config, diffusers' defaults for those left out.

    Args:
        config: the content of `scheduler_config.json`.
        name: class of the scheduler; None for what the config says.
        strict: whether to refuse what can be mapped nearly, too; else it is warned of.

    Raises:
        ValueError: for a scheduler that is not known, or a field that it does not have.
    """

    def __init__(self, config: Mapping[str, Any], name: str | None = None, strict: bool = True) -> None:
        said = name or config.get("_class_name")
        if not isinstance(said, str):
            raise ValueError(f"The scheduler's config does not say its _class_name; known are {', '.join(DEFAULTS)}.")
        self.name, self.strict = said, strict
        known = choose("scheduler that can be mapped", said, DEFAULTS)
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        self.values = {**known, **{key: value for key, value in given.items() if key in known}}
        for key, value in given.items():
            if key not in known and key not in _FOREIGN and value:
                self.values[key] = value
                self.nearest(key, "the field is not known", "no notice of it")

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str) -> Any:
        """Return a field, None where this scheduler has none of that name."""
        return self.values.get(key)

    def refused(self, key: str, why: str) -> ValueError:
        """Return the error for a field."""
        return ValueError(f"{self._said(key)} cannot be mapped: {why}.")

    def only(self, key: str, allowed: Iterable[Any]) -> Any:
        """Return a field that has one of these values, or that the scheduler has not.

        Raises:
            ValueError: for another value.
        """
        allowed = list(allowed)
        value = self.values.get(key, allowed[0])
        if value not in allowed:
            raise self.refused(key, f"supported is {' or '.join(map(repr, allowed))}")
        return value

    def nearest(self, key: str, why: str, instead: str) -> None:
        """Refuse a field, or say what is taken in its stead.

        Raises:
            ValueError: where the mapping is strict.
        """
        if self.strict:
            raise ValueError(f"{self.refused(key, why)} With strict=False the import takes {instead}.")
        warn_of(f"{self._said(key)}: {why}; taken is {instead}.")

    def _said(self, key: str) -> str:
        value = self.values[key]
        shown = f"a list of {len(value)}" if isinstance(value, list) and len(value) > 8 else repr(value)
        return f"{self.name} with {key}={shown}"


def warn_of(text: str) -> None:
    """Say what was mapped nearly."""
    warnings.warn(text, NearlyMapped, stacklevel=2)
