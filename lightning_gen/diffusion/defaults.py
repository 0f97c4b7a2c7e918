"""The parts a path usually goes with, where none are given."""

from lightning_gen.diffusion.grids import Grid, Karras, Trailing
from lightning_gen.diffusion.parameterizations import EDMPreconditioning, Epsilon, Parameterization, V, Velocity
from lightning_gen.diffusion.paths import EDM, VE, Path, RectifiedFlow
from lightning_gen.diffusion.solvers import DDIM, Heun, Solver
from lightning_gen.diffusion.times import LogitNormal, LogNormal, TimeSampler, Uniform


def parameterization_for(path: Path) -> Parameterization:
    """Return the velocity for rectified flow, EDM's for exploding variance, v for zero terminal SNR, else the noise."""
    if isinstance(path, RectifiedFlow):
        return Velocity()
    if isinstance(path, (EDM, VE)):
        return EDMPreconditioning()
    return V() if path.ends_in_noise else Epsilon()


def times_for(path: Path) -> TimeSampler:
    """Return logit-normal times for rectified flow, lognormal noise levels for exploding variance, else uniform."""
    if isinstance(path, RectifiedFlow):
        return LogitNormal()
    return LogNormal() if isinstance(path, (EDM, VE)) else Uniform()


def solver_for(path: Path) -> Solver:
    """Return Heun's solver for exploding variance, else DDIM, which is Euler's for rectified flow."""
    return Heun() if isinstance(path, (EDM, VE)) else DDIM()


def grid_for(path: Path) -> Grid:
    """Return Karras's noise levels for exploding variance, else even times from the end of the path."""
    return Karras() if isinstance(path, (EDM, VE)) else Trailing()
