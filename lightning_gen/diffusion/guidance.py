r"""Guidance: sharper samples by two estimates of the image instead of one.

.. math:: \hat x_0 = D_\text{weak} + s\,(D - D_\text{weak})

A scale s of 1 is no guidance, everywhere in this package. In classifier-free guidance the weak estimate is the
network's own without the condition; in autoguidance that of a worse network with the condition. On the image, the
noise and v the formula is the same one. All channels are guided.

References:
    Classifier-Free Diffusion Guidance (its w is s - 1 here)
    https://arxiv.org/abs/2207.12598
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models
    https://arxiv.org/abs/2404.07724
    Guiding a Diffusion Model with a Bad Version of Itself
    https://arxiv.org/abs/2406.02507
    Common Diffusion Noise Schedules and Sample Steps are Flawed (rescale)
    https://arxiv.org/abs/2305.08891
"""

import copy
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_gen.diffusion.solvers.base import Point, Prediction
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork

RescaleSpace = Literal["v", "noise", "image"]


class Estimate(Protocol):
    """A network's estimate of the image at a point; see `denoiser.PointDenoiser`."""

    net: DenoisingNetwork

    def __call__(self, x: Tensor, point: Point, until: Point, cond: Condition | None) -> Prediction:
        """Estimate the images."""
        ...


class Guidance(ABC):
    """Base class of the guidances.

    Args:
        scale: s; 1 is none.
        low: noise level sigma / alpha, at and below which there is no guidance.
        high: noise level above which there is none; None for no such bound.
    """

    def __init__(self, scale: float = 1.0, low: float = 0.0, high: float | None = None) -> None:
        if not 0 <= low < (high if high is not None else float("inf")):
            raise ValueError(f"Guidance takes noise levels 0 <= low < high; given were {low} and {high}.")
        self.scale, self.low, self.high = float(scale), low, high

    def with_scale(self, scale: float) -> "Guidance":
        """Return the same guidance with another scale."""
        other = copy.copy(self)
        other.scale = float(scale)
        return other

    def active(self, point: Point) -> bool:
        """Tell whether a point is guided; elsewhere the weak estimate is not computed."""
        within = self.low < point.noise_level and (self.high is None or point.noise_level <= self.high)
        return self.scale != 1 and within

    def check(self, net: DenoisingNetwork) -> None:  # noqa: B027  # most networks will do
        """Refuse a network that cannot be guided like this.

        Raises:
            ValueError: says what is missing.
        """

    @abstractmethod
    def __call__(
        self, estimate: Estimate, weak: Estimate | None, x: Tensor, point: Point, until: Point, cond: Condition
    ) -> Prediction:
        """Estimate the image.

        Args:
            estimate: the network's.
            weak: a worse network's, where there is one.
            x: the state, `(B, C, H, W)`.
            point: where it is.
            until: where the step goes.
            cond: the condition.
        """


class ClassifierFree(Guidance):
    """Classifier-free guidance, in one pass of twice the batch.

    Args:
        scale: s; 1 is no guidance, 0 no condition.
        low: noise level at and below which there is no guidance.
        high: noise level above which there is none; None for no such bound.
        rescale: share, 0 to 1, of bringing the estimate back to the standard deviation of the unguided one.
        rescale_space: what the deviations are of: v as in the paper, the noise or the image; they differ.
    """

    def __init__(
        self,
        scale: float = 1.0,
        low: float = 0.0,
        high: float | None = None,
        rescale: float = 0.0,
        rescale_space: RescaleSpace = "v",
    ) -> None:
        super().__init__(scale, low, high)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale is 0 to 1; given was {rescale}.")
        if rescale_space not in ("v", "noise", "image"):
            raise ValueError(f"rescale_space is v, noise or image; given was {rescale_space!r}.")
        self.rescale, self.rescale_space = rescale, rescale_space

    def check(self, net: DenoisingNetwork) -> None:
        """Refuse a network that was never trained without its condition."""
        if self.scale != 1 and not net.conditional:
            has = "no null class" if net.num_classes is not None else "no condition that could be left out"
            raise ValueError(
                f"A guidance scale of {self.scale:g} compares with the estimate without the condition, and this"
                f" {type(net).__name__} has {has}: train one with null_class=true and label_dropout above 0, or set"
                " the scale to 1."
            )

    def __call__(
        self, estimate: Estimate, weak: Estimate | None, x: Tensor, point: Point, until: Point, cond: Condition
    ) -> Prediction:
        """Estimate the image with and without the condition."""
        if not self.active(point):
            return estimate(x, point, until, cond)
        none = cond.dropped(torch.ones(len(x), dtype=torch.bool, device=x.device), estimate.net.num_classes)
        pairs = zip(cond, none, strict=True)
        both = Condition(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))
        x0, variance = estimate(torch.cat([x, x]), point, until, both)
        with_condition, without = x0.chunk(2)
        guided = torch.lerp(without, with_condition, self.scale)
        if self.rescale:
            guided = self._rescaled(guided, with_condition, x, point)
        return Prediction(guided, None if variance is None else variance.chunk(2)[0])

    def _rescaled(self, guided: Tensor, x0: Tensor, x: Tensor, point: Point) -> Tensor:
        """Bring the guided estimate to the deviation of the other, per sample, in the space asked for."""
        # v = (alpha x - (alpha^2 + sigma^2) x0) / sigma, the noise (x - alpha x0) / sigma; sigma cancels in the ratio
        of_x, of_x0 = {
            "v": (point.alpha, -(point.alpha**2 + point.sigma**2)),
            "noise": (1.0, -point.alpha),
            "image": (0.0, 1.0),
        }[self.rescale_space]
        if of_x0 == 0:
            return guided
        there, plain = (of_x * x + of_x0 * value for value in (guided, x0))
        ratio = plain.flatten(1).std(1) / there.flatten(1).std(1).clamp_min(1e-12)
        back = (there * ratio.view(-1, *[1] * (x.ndim - 1)) - of_x * x) / of_x0
        return torch.lerp(guided, back, self.rescale)


class Autoguidance(Guidance):
    """Autoguidance: the weak estimate is a worse network's, given to `sample` as `guide`.

    Args:
        scale: s; 1 is no guidance.
        low: noise level at and below which there is no guidance.
        high: noise level above which there is none; None for no such bound.
    """

    def __call__(
        self, estimate: Estimate, weak: Estimate | None, x: Tensor, point: Point, until: Point, cond: Condition
    ) -> Prediction:
        """Estimate the image by both networks."""
        strong = estimate(x, point, until, cond)
        if not self.active(point):
            return strong
        if weak is None:
            raise ValueError(
                "Autoguidance compares with a worse network: give sample(guide=...) a checkpoint of the same kind of"
                " model, smaller or trained for less long (--guide PATH on the command line)."
            )
        return strong._replace(x0=torch.lerp(weak(x, point, until, cond).x0, strong.x0, self.scale))
