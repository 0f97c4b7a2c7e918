"""Diffusion and flow matching.

The module is imported when it is first asked for, so that paths, solvers and losses, which other families use
too, come without it and without Lightning.
"""

from typing import TYPE_CHECKING, Any

from lightning_gen.diffusion.augmentation import NonLeakyAugmentation
from lightning_gen.diffusion.conditioners import Conditioner, InpaintingMask, SuperResolution
from lightning_gen.diffusion.couplings import Coupling, Independent, MinibatchOT
from lightning_gen.diffusion.denoiser import Denoiser, PointDenoiser
from lightning_gen.diffusion.grids import (
    GRIDS,
    Grid,
    Karras,
    Leading,
    Linspace,
    LogSNR,
    Shifted,
    Trailing,
)
from lightning_gen.diffusion.guidance import Autoguidance, ClassifierFree, Guidance
from lightning_gen.diffusion.objectives import Consistency, DenoisingMSE, MeanFlow, Objective
from lightning_gen.diffusion.parameterizations import (
    PARAMETERIZATIONS,
    X0,
    EDMPreconditioning,
    Epsilon,
    Parameterization,
    V,
    Velocity,
)
from lightning_gen.diffusion.paths import (
    EDM,
    VE,
    VP,
    CosineVP,
    DiscreteVP,
    Level,
    Path,
    RectifiedFlow,
    SigmoidVP,
    diffuse,
)
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
    Solver,
    UniPC,
)
from lightning_gen.diffusion.thresholding import Clip, DynamicThreshold, Threshold
from lightning_gen.diffusion.times import Importance, LogitNormal, LogNormal, TimeSampler, Uniform
from lightning_gen.diffusion.weightings import (
    SNR,
    EDMWeighting,
    LearnedUncertainty,
    MinSNR,
    Plain,
    SoftMinSNR,
    Weighting,
)

if TYPE_CHECKING:
    from lightning_gen.diffusion.module import Diffusion

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "GRIDS",
    "PARAMETERIZATIONS",
    "SNR",
    "SOLVERS",
    "VE",
    "VP",
    "X0",
    "Autoguidance",
    "ClassifierFree",
    "Clip",
    "Conditioner",
    "Consistency",
    "ConsistencySteps",
    "CosineVP",
    "Coupling",
    "DPMSolverPP2M",
    "DPMSolverPP2MSDE",
    "DPMSolverPP3M",
    "Denoiser",
    "DenoisingMSE",
    "Diffusion",
    "DiscreteVP",
    "DynamicThreshold",
    "EDMPreconditioning",
    "EDMStochastic",
    "EDMWeighting",
    "Epsilon",
    "Euler",
    "EulerAncestral",
    "Grid",
    "Guidance",
    "Heun",
    "Importance",
    "Independent",
    "InpaintingMask",
    "Karras",
    "Leading",
    "LearnedUncertainty",
    "Level",
    "Linspace",
    "LogNormal",
    "LogSNR",
    "LogitNormal",
    "MeanFlow",
    "MinSNR",
    "MinibatchOT",
    "NonLeakyAugmentation",
    "Objective",
    "Parameterization",
    "Path",
    "Plain",
    "PointDenoiser",
    "RectifiedFlow",
    "Shifted",
    "SigmoidVP",
    "SoftMinSNR",
    "Solver",
    "SuperResolution",
    "Threshold",
    "TimeSampler",
    "Trailing",
    "UniPC",
    "Uniform",
    "V",
    "Velocity",
    "Weighting",
    "diffuse",
]


def __getattr__(name: str) -> Any:
    if name == "Diffusion":
        from lightning_gen.diffusion.module import Diffusion

        return Diffusion
    raise AttributeError(f"module 'lightning_gen.diffusion' has no attribute '{name}'")
