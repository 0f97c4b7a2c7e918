"""A network read as an estimate of the image, in training and in sampling.

In training every sample has its own time, and the coefficients are tensors. In sampling all have one, known on the
host beforehand: the coefficients are Python floats, and no step waits for a device.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_gen.diffusion.parameterizations import Parameterization, Scales
from lightning_gen.diffusion.paths import Level, Path, scaled
from lightning_gen.diffusion.solvers.base import Point, Prediction
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork


class Denoiser:
    """A network on a path, in a parameterization.

    Args:
        net: the network.
        path: the path.
        parameterization: what the network is asked for.
    """

    def __init__(self, net: DenoisingNetwork, path: Path, parameterization: Parameterization) -> None:
        self.net, self.path, self.parameterization = net, path, parameterization

    def scales(self, level: Level) -> Scales:
        """Return the coefficients at a level."""
        return self.parameterization.scales(level)

    def output(
        self,
        x_t: Tensor,
        level: Level,
        cond: Condition | None,
        scales: Scales | None = None,
        second: Level | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Ask the network.

        Args:
            x_t: noisy images, `(B, C, H, W)`.
            level: their noise, times `(B,)`.
            cond: the condition.
            scales: the coefficients at that level, where they are known.
            second: the level of the second time of a network with two.

        Returns:
            The output `(B, C, H, W)`, and where the variance lies between its bounds, 0 to 1 when in range; None
            where none is learned.
        """
        scales = scales if scales is not None else self.scales(level)
        labels = [self._label(one, x_t) for one in (level, second) if one is not None]
        return split(self.net, self.net(scaled(x_t, scales.input), labels[0], cond, *labels[1:]))

    def _label(self, level: Level, x: Tensor) -> Tensor:
        return self.parameterization.label(level).to(torch.float64 if x.dtype == torch.float64 else torch.float32)

    def image(self, x_t: Tensor, output: Tensor, scales: Scales) -> Tensor:
        """Return the image that an output stands for."""
        return scaled(x_t, scales.skip) + scaled(output.to(x_t.dtype), scales.out)

    def __call__(self, x_t: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """Estimate the images, times `(B,)`."""
        scales = self.scales(level)
        output, variance = self.output(x_t, level, cond, scales)
        return Prediction(self.image(x_t, output, scales), variance)


class PointDenoiser:
    """The same at the points of a grid: one noise level for all samples.

    Args:
        net: the network.
        path: the path.
        parameterization: what the network is asked for.
        dtype: precision of the network's input; None for that of the state.
    """

    def __init__(
        self,
        net: DenoisingNetwork,
        path: Path,
        parameterization: Parameterization,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.net, self.path, self.parameterization, self.dtype = net, path, parameterization, dtype
        self._numbers = lru_cache(maxsize=4096)(self._computed)

    def _computed(self, point: Point) -> tuple[float, float, float, float]:
        level = self.path.at(torch.tensor(point.t, dtype=torch.float64))
        scales = self.parameterization.scales(level)
        numbers = (scales.skip, scales.out, scales.input, self.parameterization.label(level))
        return tuple(float(number) for number in numbers)  # type: ignore[return-value]

    def __call__(self, x: Tensor, point: Point, until: Point, cond: Condition | None) -> Prediction:
        """Estimate the images from the state at a point, in the precision of the state."""
        skip, out, scale, label = self._numbers(point)
        labels = [label, self._numbers(until)[3]] if self.net.two_times else [label]
        given = (x * scale if scale != 1 else x).to(self.dtype or x.dtype)
        output, variance = split(self.net, self._ask(given, labels, cond))
        # one kernel for both products
        image = torch.add(x * skip, output.to(x.dtype), alpha=out) if skip else output.to(x.dtype) * out
        return Prediction(image, variance if variance is None else variance.to(x.dtype))

    def _ask(self, x: Tensor, labels: Sequence[float], cond: Condition | None) -> Tensor:
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        told = [torch.full((len(x),), label, device=x.device, dtype=kind) for label in labels]
        output: Tensor = self.net(x, told[0], cond, *told[1:])
        return output


def split(net: DenoisingNetwork, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Take an output with a learned variance apart: the channels, and where the variance lies between its bounds."""
    if not net.learned_variance:
        return output, None
    value, variance = output.chunk(2, dim=1)
    return value, (variance + 1) / 2
