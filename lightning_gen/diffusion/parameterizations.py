r"""What a denoising network is asked for, and how its answer gives the image back.

Every parameterization is linear. With :math:`F` the network's output,

.. math::
    \hat x_0 = c_\text{skip}\,x_t + c_\text{out}\,F(c_\text{in}\,x_t;\, c_\text{noise}),
    \qquad F^* = c_0\,x_0 + c_\varepsilon\,\varepsilon,

the second being the target of training. The coefficients are functions of the noise level, written out so that
none is a difference of large numbers, in float64.

References:
    Denoising Diffusion Probabilistic Models (the noise)
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (the learned variance)
    https://arxiv.org/abs/2102.09672
    Progressive Distillation for Fast Sampling of Diffusion Models (v)
    https://arxiv.org/abs/2202.00512
    Elucidating the Design Space of Diffusion-Based Generative Models (preconditioning)
    https://arxiv.org/abs/2206.00364
    Flow Matching for Generative Modeling (velocity)
    https://arxiv.org/abs/2210.02747
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.diffusion.paths import Level, Path


class Scales(NamedTuple):
    """Coefficients of a parameterization at some noise levels, each of the shape of the times.

    Attributes:
        skip: of x_t in the image.
        out: of the output in the image.
        input: of x_t before the network.
        clean: of the image in the target.
        noise: of the noise in the target.
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    clean: Tensor
    noise: Tensor


class Parameterization(ABC):
    """Base class of the parameterizations.

    Args:
        time_scale: the network's noise label is the time times this; the steps of a discrete path are told
            as numbers from 0 instead.
    """

    def __init__(self, time_scale: float = 1000.0) -> None:
        if not time_scale > 0:
            raise ValueError(f"time_scale is above 0; given was {time_scale}.")
        self.time_scale = time_scale

    @abstractmethod
    def scales(self, level: Level) -> Scales:
        """Return the coefficients."""

    def label(self, level: Level) -> Tensor:
        """Return the network's noise label, of the shape of the times."""
        if level.path.steps is not None:
            return level.t * level.path.steps - 1
        return level.t * self.time_scale

    def check(self, path: Path) -> None:  # noqa: B027  # most refuse none
        """Refuse a path on which the parameterization says nothing.

        Raises:
            ValueError: says which would do.
        """


class Epsilon(Parameterization):
    """The noise: the image is (x_t - sigma F) / alpha. Without meaning where alpha = 0."""

    def scales(self, level: Level) -> Scales:
        """Return the coefficients."""
        one = torch.ones_like(level.alpha)
        return Scales(1 / level.alpha, -level.sigma / level.alpha, one, torch.zeros_like(one), one)

    def check(self, path: Path) -> None:
        """Refuse a path that ends in noise alone, from which the noise tells nothing."""
        if path.ends_in_noise:
            raise ValueError(
                f"{type(path).__name__} ends with nothing of the image left (zero terminal SNR), where a network that"
                " predicts the noise says nothing: use the parameterization V, X0 or Velocity."
            )


class X0(Parameterization):
    """The image itself."""

    def scales(self, level: Level) -> Scales:
        """Return the coefficients."""
        one, none = torch.ones_like(level.alpha), torch.zeros_like(level.alpha)
        return Scales(none, one, one, one, none)


class V(Parameterization):
    """v = alpha noise - sigma x_0, on any path: the image is (alpha x_t - sigma F) / (alpha^2 + sigma^2)."""

    def scales(self, level: Level) -> Scales:
        """Return the coefficients."""
        alpha, sigma = level.alpha, level.sigma
        power = alpha.square() + sigma.square()
        return Scales(alpha / power, -sigma / power, torch.ones_like(alpha), -sigma, alpha)


class Velocity(Parameterization):
    """The velocity of x_t along the path, alpha' x_0 + sigma' noise; noise - x_0 for rectified flow."""

    def scales(self, level: Level) -> Scales:
        """Return the coefficients: alpha x_0 + sigma noise = x_t and alpha' x_0 + sigma' noise = F, solved."""
        (dalpha, dsigma), alpha, sigma = level.derivatives, level.alpha, level.sigma
        wronskian = dsigma * alpha - sigma * dalpha
        return Scales(dsigma / wronskian, -sigma / wronskian, torch.ones_like(alpha), dalpha, dsigma)

    def check(self, path: Path) -> None:
        """Refuse a path whose slope at t = 1, where sampling starts, is infinite."""
        if not all(torch.isfinite(slope) for slope in path.at(torch.ones(())).derivatives):
            raise ValueError(
                f"{type(path).__name__} ends with an infinite slope, where its velocity says nothing: use the"
                " parameterization V or X0."
            )


class EDMPreconditioning(Parameterization):
    r"""EDM's: input, output and target have variance one at every noise level (table 1).

    With the noise level :math:`s = \sigma/\alpha` the paper's coefficients act on :math:`x_t/\alpha`; here they
    are written for x_t. The noise label is :math:`\ln(s)/4`.

    Args:
        sigma_data: standard deviation of the data.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data is above 0; given was {sigma_data}.")
        self.sigma_data = sigma_data

    def scales(self, level: Level) -> Scales:
        """Return the coefficients."""
        alpha, sigma, data = level.alpha, level.sigma, self.sigma_data
        root = (sigma.square() + (alpha * data).square()).sqrt()
        return Scales(
            skip=data**2 * alpha / root.square(),
            out=sigma * data / root,
            input=1 / root,
            clean=sigma / (data * root),
            noise=-data * alpha / root,
        )

    def label(self, level: Level) -> Tensor:
        """Return ln(sigma / alpha) / 4."""
        return level.noise_level.log() / 4

    def check(self, path: Path) -> None:
        """Refuse a path with an infinite noise level, whose logarithm the network would be told."""
        if path.ends_in_noise:
            raise ValueError(
                f"{type(path).__name__} ends at an infinite noise level, whose logarithm EDMPreconditioning would tell"
                " the network: use the path EDM or VE, or the parameterization Velocity or V."
            )


PARAMETERIZATIONS: dict[str, type[Parameterization]] = {
    "epsilon": Epsilon,
    "x0": X0,
    "v": V,
    "velocity": Velocity,
    "edm": EDMPreconditioning,
}
