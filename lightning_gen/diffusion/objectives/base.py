"""What an objective is given, and what it gives back: the loss of every sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from lightning_gen.diffusion.couplings import Coupling
from lightning_gen.diffusion.denoiser import Denoiser
from lightning_gen.diffusion.times import TimeSampler
from lightning_gen.diffusion.weightings import Weighting
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import RandomStream


@dataclass
class Setting:
    """The parts of a module that an objective uses, and where it is in training.

    Attributes:
        denoiser: network, path and parameterization.
        times: draws times.
        weighting: weighs them.
        coupling: pairs images with noise.
        stream: all random numbers, a row a sample.
        rank: this process.
        world: number of processes.
        images: images trained on so far.
    """

    denoiser: Denoiser
    times: TimeSampler
    weighting: Weighting
    coupling: Coupling
    stream: RandomStream
    rank: int = 0
    world: int = 1
    images: int = 0


@dataclass
class Losses:
    """The losses of a batch.

    Attributes:
        total: of each sample, `(B,)`; its mean is what is minimized.
        t: the time of each, `(B,)`.
        error: the part that importance sampling learns from, unweighted by its own weights, `(B,)`.
        logs: further values worth showing, scalars.
    """

    total: Tensor
    t: Tensor
    error: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Fit(NamedTuple):
    """What an objective has to know before training, to refuse what does not fit."""

    denoiser: Denoiser
    times: TimeSampler


class Objective(nn.Module, ABC):
    """Base class of the objectives."""

    @abstractmethod
    def forward(self, x0: Tensor, cond: Condition, setting: Setting) -> Losses:
        """Return the losses of images `(B, C, H, W)` in [-1, 1] with their conditions."""

    def check(self, fit: Fit) -> None:
        """Refuse parts that the objective cannot be computed with.

        Raises:
            ValueError: says which would do.
        """
        if fit.denoiser.net.two_times:
            raise ValueError(
                f"{type(self).__name__} asks for one time, and the network has two_times=true: set it to false, or use"
                " the objective MeanFlow."
            )
