r"""Consistency training: one network that tells, from any point of a path, the image at its end.

With :math:`x_t` and :math:`x_r` made of the same image and the same noise, r below t,

.. math::
    L = \mathbb{E}\; w(s_t, s_r)\; d\big(f(x_t, t),\, \operatorname{sg} f(x_r, r)\big), \qquad
    d(a, b) = \sqrt{\lVert a - b \rVert^2 + c^2} - c,

f being the estimate of the image and s the noise level sigma / alpha. The published weight is
:math:`1 / (s_t - s_r)`. How near r is to t follows the schedule of easy consistency tuning,

.. math:: \frac{s_r}{s_t} = 1 - \frac{n(s_t)}{q^a}, \qquad n(s) = 1 + \frac{k}{1 + e^{b s}}, \qquad a = 1, 2, \dots

which starts near the denoising loss, r = 0 nearly everywhere, and comes q times nearer at each stage. Where the
ratio is below 0, or the noise below what the path takes for none, the target is the image itself: the network is
never asked where there is no noise. That f(x, 0) = x holds by the parameterization. The teacher is the network, no
average of it; both evaluations drop the same units out.

Best begun from a trained denoising network on the same path and parameterization: then all that it needs of it are
the weights.

References:
    Consistency Models Made Easy (the schedule)
    https://arxiv.org/abs/2406.14548
    Improved Techniques for Training Consistency Models (the distance, the weight, no average as teacher)
    https://arxiv.org/abs/2310.14189
    Consistency Models
    https://arxiv.org/abs/2303.01469
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.diffusion.objectives.base import Fit, Losses, Objective, Setting
from lightning_gen.diffusion.paths import Level, Path, diffuse
from lightning_gen.networks.denoiser import Condition

# A path may end at an infinite noise level, of which there is no part: from here on all is one.
LARGEST_LEVEL = 1e4


class Consistency(Objective):
    """Consistency training. Goes with the solver ConsistencySteps and times LogNormal(-1.1, 2.0).

    Args:
        q: how many times nearer r comes to t at each stage.
        k: how much farther r is from t at small noise levels.
        b: how fast that fades as the noise level grows.
        stage_images: images of a stage.
        stages: number of stages; the last one lasts.
        metric: "huber" for the pseudo-Huber distance over all pixels, "squared" for the mean squared error.
        c: where the pseudo-Huber distance turns from squared to linear; None for 0.00054 times the root of the
            number of dimensions.
        weight: "interval" for 1 / (s_t - s_r), or "weighting" for the module's own.
    """

    def __init__(
        self,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        stage_images: int = 6_400_000,
        stages: int = 8,
        metric: Literal["huber", "squared"] = "huber",
        c: float | None = None,
        weight: Literal["interval", "weighting"] = "interval",
    ) -> None:
        super().__init__()
        if not (q > 1 and k >= 0 and b >= 0):
            raise ValueError(f"Consistency takes q above 1, k and b of 0 or more; given were {q}, {k} and {b}.")
        if stage_images < 1 or stages < 1:
            raise ValueError(f"stage_images and stages are 1 or more; given were {stage_images} and {stages}.")
        if metric not in ("huber", "squared"):
            raise ValueError(f"metric is huber or squared; given was {metric!r}.")
        if c is not None and not c > 0:
            raise ValueError(f"c is above 0 (1e-8 for the plain norm), or null; given was {c}.")
        if weight not in ("interval", "weighting"):
            raise ValueError(f"weight is interval or weighting; given was {weight!r}.")
        self.q, self.k, self.b, self.stage_images, self.stages = q, k, b, stage_images, stages
        self.metric, self.c, self.weight = metric, c, weight

    def check(self, fit: Fit) -> None:
        """Refuse two times, a learned variance, discrete paths, and estimates that may change a clean image."""
        super().check(fit)
        denoiser = fit.denoiser
        if denoiser.net.learned_variance:
            raise ValueError("Consistency learns no variance: set learned_variance of the network to false.")
        if denoiser.path.steps is not None:
            raise ValueError(
                f"Consistency needs times between the steps, and {type(denoiser.path).__name__} has"
                f" {denoiser.path.steps} steps: use a path of continuous times, EDM, VP or RectifiedFlow."
            )
        level = denoiser.path.at(denoiser.path.time(torch.tensor(max(_lowest(denoiser.path), 1e-4))))
        if float(denoiser.scales(level).out.abs()) > 10 * float(level.noise_level):
            raise ValueError(
                f"Consistency needs f(x, 0) = x, and {type(denoiser.parameterization).__name__} on"
                f" {type(denoiser.path).__name__} adds the network's output where no noise is left: use the"
                " parameterization EDMPreconditioning, V or Epsilon, or Velocity on RectifiedFlow."
            )

    def stage(self, images: int) -> int:
        """Return a, from 1, after so many images."""
        return 1 + min(images // self.stage_images, self.stages - 1)

    def ratio(self, noise_level: Tensor, images: int) -> Tensor:
        """Return s_r / s_t, from 0 to below 1, after so many images."""
        adjusted = 1 + self.k * torch.sigmoid(-self.b * noise_level)
        return (1 - adjusted / self.q ** self.stage(images)).clamp_min(0)

    def forward(self, x0: Tensor, cond: Condition, setting: Setting) -> Losses:
        """Return the losses of images `(B, C, H, W)`."""
        denoiser, stream = setting.denoiser, setting.stream
        times = setting.times(denoiser.path, stream, setting.rank, setting.world)
        x0, noise, cond = setting.coupling(x0, stream.normal(*x0.shape[1:]), cond, stream)
        level = denoiser.path.at(times.t)
        below, clean, interval = self._below(level, setting.images)
        scales = denoiser.scales(level)
        before = _states(x0.device)
        # With the gradient first: older releases of torch keep what autocast casts without one, and use it again.
        x_t = diffuse(x0, noise, level)
        output, _ = denoiser.output(x_t, level, cond, scales)
        here = denoiser.image(x_t, output, scales)
        with torch.no_grad(), _drawing_again(x0.device, before):
            there = denoiser(diffuse(x0, noise, below), below, cond).x0
            there = torch.where(clean.view(-1, *[1] * (x0.ndim - 1)), x0, there)
        distance = self._distance(here, there)
        if self.weight == "interval":
            weight = 1 / interval
        else:
            weight = setting.weighting.of_output(level, scales) / scales.out.square()
        loss = distance * weight.to(distance.dtype)
        logs = {"consistency_stage": torch.tensor(float(self.stage(setting.images)))}
        if times.weight is not None:
            return Losses(loss * times.weight.to(loss.dtype), times.t, loss.detach(), logs)
        return Losses(loss, times.t, distance.detach(), logs)

    def _below(self, level: Level, images: int) -> tuple[Level, Tensor, Tensor]:
        """Return the level r, where it stands for the image itself (then it is t), and s_t - s_r."""
        here = level.noise_level.clamp(max=LARGEST_LEVEL)
        there = here * self.ratio(here, images)
        clean = there <= _lowest(level.path)
        below = level.path.at(torch.where(clean, level.t, level.path.time(there)))
        return below, clean, torch.where(clean, here, here - there)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        # half precision has too few digits for a sum of squares
        kind = torch.promote_types(a.dtype, torch.float32)
        squares = (a.to(kind) - b.to(kind)).square().flatten(1)
        if self.metric == "squared":
            return squares.mean(1)
        c = self.c if self.c is not None else 0.00054 * math.sqrt(squares.shape[1])
        total = squares.sum(1)
        # sqrt(total + c^2) - c without the difference of near numbers
        return total / ((total + c**2).sqrt() + c)


def _lowest(path: Path) -> float:
    """Return the noise level that a path takes for none; known on the host."""
    return float(path.at(torch.zeros((), dtype=torch.float64)).noise_level)


def _generators(device: torch.device) -> list[torch.Generator]:
    """Return the global generators that a network on the device may draw from."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    return generators


def _states(device: torch.device) -> list[Tensor]:
    """Return the states of the generators; they lie on the CPU, and no device is waited for."""
    return [generator.get_state() for generator in _generators(device)]


@contextmanager
def _drawing_again(device: torch.device, states: Sequence[Tensor]) -> Iterator[None]:
    """Within, draw what was drawn from these states on; afterwards, go on as if nothing had been drawn."""
    generators, after = _generators(device), _states(device)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in zip(generators, after, strict=True):
            generator.set_state(state)
