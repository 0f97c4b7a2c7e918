"""Solvers: from noise to an image along a grid of noise levels, by estimates of the image.

| name              | class               | order | evaluations in N steps | noise  |
|-------------------|---------------------|-------|------------------------|--------|
| `ddpm`            | `DDPM`              | 1     | N                      | yes    |
| `ddim`            | `DDIM`              | 1     | N                      | by eta |
| `euler`           | `Euler`             | 1     | N                      | no     |
| `euler_ancestral` | `EulerAncestral`    | 1     | N                      | yes    |
| `heun`            | `Heun`              | 2     | 2N - 1                 | no     |
| `edm`             | `EDMStochastic`     | 2     | 2N - 1                 | churn  |
| `dpmpp_2m`        | `DPMSolverPP2M`     | 2     | N                      | no     |
| `dpmpp_2m_sde`    | `DPMSolverPP2MSDE`  | 2     | N                      | yes    |
| `dpmpp_3m`        | `DPMSolverPP3M`     | 2, 3  | N                      | no     |
| `unipc`           | `UniPC`             | 3, 4  | N                      | no     |
| `consistency`     | `ConsistencySteps`  |       | N                      | yes    |

All of them begin at an infinite noise level as well (zero terminal SNR, rectified flow), by a step of order one,
and end in the clean image by another.
"""

from lightning_gen.diffusion.solvers.ancestral import DDIM, DDPM, ConsistencySteps, Euler, EulerAncestral
from lightning_gen.diffusion.solvers.base import (
    Denoise,
    Normal,
    Point,
    Prediction,
    Solver,
    integrate,
    points_of,
    to_clean,
)
from lightning_gen.diffusion.solvers.dpm import DPMSolverPP2M, DPMSolverPP2MSDE, DPMSolverPP3M
from lightning_gen.diffusion.solvers.heun import EDMStochastic, Heun
from lightning_gen.diffusion.solvers.points import Points
from lightning_gen.diffusion.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "SOLVERS",
    "ConsistencySteps",
    "DPMSolverPP2M",
    "DPMSolverPP2MSDE",
    "DPMSolverPP3M",
    "Denoise",
    "EDMStochastic",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Normal",
    "Point",
    "Points",
    "Prediction",
    "Solver",
    "UniPC",
    "integrate",
    "points_of",
    "to_clean",
]

SOLVERS: dict[str, type[Solver]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "edm": EDMStochastic,
    "dpmpp_2m": DPMSolverPP2M,
    "dpmpp_2m_sde": DPMSolverPP2MSDE,
    "dpmpp_3m": DPMSolverPP3M,
    "unipc": UniPC,
    "consistency": ConsistencySteps,
}
