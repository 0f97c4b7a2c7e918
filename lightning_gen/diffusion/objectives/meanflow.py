r"""MeanFlow: one network that tells the average velocity between two times, so that one step takes it all.

On the straight path :math:`x_t = (1 - t) x_0 + t \varepsilon` with the velocity :math:`v = \varepsilon - x_0`, the
average velocity u of the flow from t back to r fulfills

.. math::
    u(x_t, r, t) = v - (t - r) \frac{\mathrm{d}}{\mathrm{d}t} u(x_t, r, t), \qquad
    \frac{\mathrm{d}u}{\mathrm{d}t} = v \cdot \partial_x u + \partial_t u,

the total derivative being one forward-mode product with the tangents (v, 0, 1) of (x, r, t). The right side, without
a gradient, is the target; with e the difference, summed over pixels, the loss is

.. math:: L = \mathbb{E}\; \frac{\lVert e \rVert^2}{\operatorname{sg}(\lVert e \rVert^2 + c)^p}.

At r = t it is the loss of flow matching. Only the samples with r below t need the derivative: it is taken of these
alone and apart, without a graph, and the pass that is differentiated is an ordinary one. In sampling,
:math:`x_r = x_t - (t - r)\, u(x_t, r, t)`, which is what the solver DDIM does.

With guidance in training, the velocity is replaced by

.. math:: \tilde v = \omega v + \kappa\, u(x_t, t, t \mid c) + (1 - \omega - \kappa)\, u(x_t, t, t \mid \varnothing)

where a condition is given, which amounts to guidance of the scale :math:`\omega / (1 - \kappa)` in sampling and costs
no evaluation there.

References:
    Mean Flows for One-step Generative Modeling
    https://arxiv.org/abs/2505.13447
"""

import warnings

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_gen.diffusion.denoiser import Denoiser
from lightning_gen.diffusion.objectives.base import Fit, Losses, Objective, Setting
from lightning_gen.diffusion.parameterizations import Scales, Velocity
from lightning_gen.diffusion.paths import RectifiedFlow, diffuse, scaled
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import mix


class MeanFlow(Objective):
    """MeanFlow: goes with the path RectifiedFlow, the parameterization Velocity and the solver DDIM.

    The derivative in t grows with the parameterization's time_scale, and with it the target's noise: take 1 to 10,
    not 1000. Dropout draws masks of its own for the target.

    Args:
        ratio: share of the samples with r below t; the others have r = t.
        power: p; 0 is the squared error, 1 makes every sample's loss count alike.
        c: keeps the adaptive weight finite.
        guidance: omega, the weight of the sample's velocity; 1 without guidance.
        kappa: weight of the network's own velocity with the condition, from 0 to below 1.
        guided_until: largest time that is guided.
    """

    def __init__(
        self,
        ratio: float = 0.25,
        power: float = 1.0,
        c: float = 1e-3,
        guidance: float = 1.0,
        kappa: float = 0.0,
        guided_until: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is a share, 0 to 1; given was {ratio}.")
        if not (power >= 0 and c > 0):
            raise ValueError(f"MeanFlow takes power of 0 or more and c above 0; given were {power} and {c}.")
        if not (guidance > 0 and 0 <= kappa < 1):
            raise ValueError(f"MeanFlow takes guidance above 0 and kappa in [0, 1); given were {guidance} and {kappa}.")
        if not 0 <= guided_until <= 1:
            raise ValueError(f"guided_until is a time, 0 to 1; given was {guided_until}.")
        self.ratio, self.power, self.c = ratio, power, c
        self.guidance, self.kappa, self.guided_until = guidance, kappa, guided_until

    @property
    def guided(self) -> bool:
        """Whether there is guidance in training."""
        return self.guidance != 1 or self.kappa != 0

    def check(self, fit: Fit) -> None:
        """Refuse networks, paths, parameterizations and times of which the identity does not hold."""
        net, path, parameterization = fit.denoiser.net, fit.denoiser.path, fit.denoiser.parameterization
        if not net.two_times:
            raise ValueError("MeanFlow asks for two times: set two_times of the network to true.")
        if not isinstance(path, RectifiedFlow) or not isinstance(parameterization, Velocity):
            raise ValueError(
                "MeanFlow needs the path RectifiedFlow and the parameterization Velocity; given were"
                f" {type(path).__name__} and {type(parameterization).__name__}."
            )
        if net.learned_variance:
            raise ValueError("MeanFlow learns no variance: set learned_variance of the network to false.")
        if fit.times.learns:
            raise ValueError(
                f"MeanFlow draws two times a sample, and {type(fit.times).__name__} learns from the loss of one: use"
                " Uniform or LogitNormal."
            )
        if self.guided and not net.conditional:
            raise ValueError(
                f"MeanFlow with guidance={self.guidance:g} and kappa={self.kappa:g} compares with the estimate without"
                f" the condition, and this {type(net).__name__} has none that could be left out: set num_classes and"
                " null_class=true, or guidance to 1 and kappa to 0."
            )
        _refuse_batch_norm(net)
        if parameterization.time_scale > 100:
            warnings.warn(
                f"MeanFlow differentiates the network in t, and time_scale={parameterization.time_scale:g} multiplies"
                " that derivative: set parameterization to Velocity with a time_scale of 1 to 10.",
                stacklevel=2,
            )

    def forward(self, x0: Tensor, cond: Condition, setting: Setting) -> Losses:
        """Return the losses of images `(B, C, H, W)`; the first samples are those with r below t."""
        denoiser, stream = setting.denoiser, setting.stream
        moving = self._moving(len(x0), setting)
        t, r = self._times(setting, moving)
        x0, noise, cond = setting.coupling(x0, stream.normal(*x0.shape[1:]), cond, stream)
        level = denoiser.path.at(t)
        scales = denoiser.scales(level)
        x_t = diffuse(x0, noise, level)
        # With the gradient first: older releases of torch keep what autocast casts without one, and use it again.
        u, _ = denoiser.output(x_t, level, cond, scales, denoiser.path.at(r))
        with torch.no_grad():
            velocity = self._velocity(denoiser, x_t, t, cond, noise - x0)
            target = velocity
            if moving:
                first = slice(moving)
                some = cond.map(lambda value: value[first])
                moved = average_velocity(denoiser, x_t[first], t[first], r[first], velocity[first], some)
                target = torch.cat([moved, velocity[moving:]])
        # half precision has too few digits for a sum of squares
        kind = torch.promote_types(target.dtype, torch.float32)
        error = (u.to(kind) - target.to(kind)).square().flatten(1).sum(1)
        loss = setting.weighting(error / (error.detach() + self.c).pow(self.power), level, scales)
        return Losses(loss, t, error.detach(), {"squared_error": error.detach().mean() / x0[0].numel()})

    def _moving(self, n: int, setting: Setting) -> int:
        """Return how many of n samples have r below t: the share, rounded up or down so that the average is right."""
        chance = mix(setting.images, setting.rank) / 2**63
        return min(int(self.ratio * n + chance), n)

    def _times(self, setting: Setting, moving: int) -> tuple[Tensor, Tensor]:
        """Draw t and r, the larger and the smaller of two times, the same where a sample does not move."""
        drawn = []
        for _ in range(2):
            times = setting.times(setting.denoiser.path, setting.stream, setting.rank, setting.world).t
            if setting.times.stratified:
                # the times of a stratified sampler rise from sample to sample: in order they would all be pairs
                times = times[setting.stream.uniform().argsort()]
            drawn.append(times)
        t, r = torch.maximum(*drawn), torch.minimum(*drawn)
        return t, torch.cat([r[:moving], t[moving:]])

    def _velocity(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition, velocity: Tensor) -> Tensor:
        """Return the velocity that the flow is to have: the sample's, guided where a condition is given."""
        if not self.guided:
            return velocity
        level = denoiser.path.at(t)
        scales = denoiser.scales(level)
        none = cond.dropped(torch.ones(len(x_t), dtype=torch.bool, device=x_t.device), denoiser.net.num_classes)
        without, _ = denoiser.output(x_t, level, none, scales, level)
        guided = self.guidance * velocity + (1 - self.guidance - self.kappa) * without
        if self.kappa:
            guided = guided + self.kappa * denoiser.output(x_t, level, cond, scales, level)[0]
        plain = _same(cond, none) | (t > self.guided_until)
        return torch.where(plain.view(-1, *[1] * (x_t.ndim - 1)), velocity, guided.to(velocity.dtype))


def average_velocity(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, r: Tensor, velocity: Tensor, cond: Condition | None
) -> Tensor:
    """Return the right side of the identity, v - (t - r) du/dt.

    Args:
        denoiser: with a network of two times.
        x_t: noisy images, `(B, C, H, W)`.
        t: their times, `(B,)`.
        r: the times below, `(B,)`.
        velocity: v at x_t, `(B, C, H, W)`.
        cond: the condition.
    """
    path = denoiser.path
    one = torch.ones_like(t)
    # on this path the input is not scaled; the coefficients must not be differentiated once more
    scales = Scales(one, one, one, one, one)

    def ask(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return denoiser.output(x, path.at(t), cond, scales, path.at(r))[0]

    # Neither the fused kernels of attention nor compiled graphs have forward-mode derivatives. Autocast is off: a
    # derivative has fewer digits than what it is of, and normalization of half precision by float32 has none.
    plain = torch.autocast(x_t.device.type, enabled=False)
    with plain, sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        derivative: Tensor = torch.func.jvp(ask, (x_t, t, r), (velocity, one, torch.zeros_like(r)))[1]
    return velocity - scaled(derivative.to(velocity.dtype), t - r)


def _same(a: Condition, b: Condition) -> Tensor:
    """Tell of which samples class, vector and tokens are the same, bool `(B,)`."""
    pairs = [(a.label, b.label), (a.vector, b.vector), (a.tokens, b.tokens)]
    return torch.stack([(x == y).reshape(len(x), -1).all(1) for x, y in pairs if x is not None and y is not None]).all(
        0
    )


def _refuse_batch_norm(net: torch.nn.Module) -> None:
    names = [name for name, layer in net.named_modules() if isinstance(layer, _BatchNorm) and layer.training]
    if names:
        raise ValueError(
            f"MeanFlow differentiates the network in forward mode, which batch normalization in training does not"
            f" allow, and {type(net).__name__} has it in {', '.join(names)}: use group or layer normalization."
        )
