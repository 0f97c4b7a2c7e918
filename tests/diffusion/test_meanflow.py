import itertools

import pytest
import torch
from fewstep_nets import At, Tiny, Told, column, drawn, none, setting

from lightning_gen.diffusion.denoiser import Denoiser, PointDenoiser
from lightning_gen.diffusion.objectives import DenoisingMSE, Fit, MeanFlow
from lightning_gen.diffusion.objectives.meanflow import average_velocity
from lightning_gen.diffusion.parameterizations import V, Velocity
from lightning_gen.diffusion.paths import VP, RectifiedFlow
from lightning_gen.diffusion.solvers import DDIM, integrate, points_of
from lightning_gen.diffusion.times import Importance, LogitNormal, Uniform
from lightning_gen.diffusion.weightings import SNR
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.unet import UNet

SHAPE = (1, 2, 2)
MEAN = torch.tensor([0.3, -0.5, 0.0, 0.8], dtype=torch.float64).view(SHAPE)
STD = torch.tensor([0.5, 0.1, 1.0, 2.0], dtype=torch.float64).view(SHAPE)
SCALE = 7.0


def width(t, std):
    """Standard deviation of x_t for data of that deviation."""
    return (((1 - t) * std) ** 2 + t**2).sqrt()


def mean_velocity(x, t, r, mean=MEAN, std=STD):
    """The average velocity of Gaussian data: on the way x_t is (1 - t) mean + width(t) z with the same z.

    So u = (x_t - x_r) / (t - r) = -mean + z (width(t) - width(r)) / (t - r), the quotient written without a 0 / 0.
    """
    z = (x - (1 - t) * mean) / width(t, std)
    return -mean + z * ((t + r) - std**2 * (2 - t - r)) / (width(t, std) + width(r, std))


def ideal(shift=0.0, mean=MEAN, std=STD):
    return Told(lambda x, a, b, _: mean_velocity(x, a / SCALE, b / SCALE, mean, std), SHAPE, shift, two_times=True)


def denoiser(net, scale=SCALE):
    return Denoiser(net, RectifiedFlow(), Velocity(scale))


def pairs():
    grid = torch.linspace(0, 1, 9, dtype=torch.float64)
    t, r = torch.cartesian_prod(grid, grid).unbind(1)
    return t[(r <= t) & (t > 0)], r[(r <= t) & (t > 0)]


def test_the_closed_form_is_the_displacement_over_the_time():
    t, r = (column(times) for times in (torch.tensor([0.9]).double(), torch.tensor([0.2]).double()))
    x = torch.randn(1, *SHAPE, dtype=torch.float64)
    x_r = (1 - r) * MEAN + width(r, STD) / width(t, STD) * (x - (1 - t) * MEAN)
    torch.testing.assert_close(mean_velocity(x, t, r), (x - x_r) / (t - r), rtol=1e-12, atol=1e-12)


def test_the_average_velocity_fulfills_the_identity_at_all_times():
    t, r = pairs()
    x = torch.randn(len(t), *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    velocity = mean_velocity(x, column(t), column(t))
    told = average_velocity(denoiser(ideal()), x, t, r, velocity, none())
    torch.testing.assert_close(told, mean_velocity(x, column(t), column(r)), rtol=0, atol=1e-10)
    off = average_velocity(denoiser(ideal(mean=MEAN + 0.1)), x, t, r, velocity, none())
    assert (off - told).abs().flatten(1).amax(1)[t > r].min() > 1e-3


def test_the_loss_of_the_ideal_network_is_the_spread_of_the_velocity():
    # with v - E[v | x_t] the spread, the identity leaves -(v - E[v | x_t]) width(r) / width(t)
    t, r = pairs()
    n, times = len(t), At(r, t)
    x0 = MEAN + STD * torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parts = setting(ideal(), RectifiedFlow(), Velocity(SCALE), n, times)
    losses = MeanFlow(ratio=1.0, power=0.0)(x0, none(), parts)
    *_, noise = drawn(n, SHAPE, At(r, t), RectifiedFlow(), pairs=2)
    x_t = (1 - column(t)) * x0 + column(t) * noise
    spread = noise - x0 - mean_velocity(x_t, column(t), column(t))
    expected = (spread * width(column(r), STD) / width(column(t), STD)).square().sum((1, 2, 3))
    torch.testing.assert_close(losses.total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses.t, t)


def test_a_single_point_has_no_loss_and_a_wrong_network_has():
    t, r = pairs()
    # the closed form is without a derivative at r = 0, where its width vanishes
    r = r.clamp_min(1e-6)
    x0, nothing = MEAN.expand(len(t), *SHAPE), torch.zeros_like(STD)

    def total(shift):
        parts = setting(ideal(shift, std=nothing), RectifiedFlow(), Velocity(SCALE), len(t), At(r, t))
        return MeanFlow(ratio=1.0, power=0.0)(x0, none(), parts).total

    assert total(0.0).abs().max() < 1e-20
    assert total(1e-3).min() > 1e-7


def network(kind, shape, **how):
    if kind == "unet":
        net = UNet(shape, 8, [1, 2], blocks=1, norm_groups=4, **how)
    else:
        net = Tiny(shape, **how) if kind == "tiny" else DiT(shape, width=16, depth=2, heads=2, **how)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if kind != "unet" else 0.1)
    return net


@pytest.mark.parametrize("kind", ["tiny", "dit", "unet"])
def test_the_derivative_is_that_of_finite_differences(kind):
    torch.manual_seed(3)
    net = network(kind, (1, 4, 4), num_classes=3, two_times=True).double()
    x, velocity = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    t, r = torch.rand(5, dtype=torch.float64) / 2 + 0.5, torch.rand(5, dtype=torch.float64) / 2
    cond = Condition(label=torch.tensor([0, 1, 2, 3, 0]))
    h = 1e-4
    with torch.no_grad():
        target = average_velocity(denoiser(net, 2.0), x, t, r, velocity, cond)
        at = {s: net(x + s * h * velocity, 2 * (t + s * h), cond, 2 * r) for s in (-2, -1, 1, 2)}
    # differences of order 4
    expected = velocity - column(t - r) * (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
    torch.testing.assert_close(target, expected, rtol=1e-8, atol=1e-9)


def test_where_both_times_are_one_it_is_flow_matching():
    torch.manual_seed(4)
    net = Tiny(two_times=True).double()

    class OneTime(DenoisingNetwork):
        def __init__(self):
            super().__init__(net.image_shape)
            self.net = net

        def forward(self, x, noise_label, cond=None, second_label=None):
            return net(x, noise_label, cond, noise_label)

    x0 = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    times = [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]

    def gradient(objective, network, sampler):
        net.zero_grad()
        losses = objective(x0, none(), setting(network, RectifiedFlow(), Velocity(SCALE), 6, sampler))
        losses.total.mean().backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    class TwoDraws(DenoisingMSE):
        """Draws times twice, so that the noise is the same."""

        def forward(self, x0, cond, parts):
            parts.times(parts.denoiser.path, parts.stream)
            return super().forward(x0, cond, parts)

    ours = gradient(MeanFlow(ratio=0.0, power=0.0), net, At(times))
    plain = gradient(TwoDraws(), OneTime(), At(times))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, 16 * b, rtol=1e-12, atol=1e-13)


def test_the_target_and_the_adaptive_weight_have_no_gradient():
    torch.manual_seed(5)
    net = Tiny(two_times=True).double()
    x0, power, c = torch.randn(8, 1, 4, 4, dtype=torch.float64), 0.75, 0.01
    t, r = torch.linspace(0.5, 1, 8).double(), torch.linspace(0, 0.4, 8).double()
    objective = MeanFlow(ratio=1.0, power=power, c=c)
    losses = objective(x0, none(), setting(net, RectifiedFlow(), Velocity(SCALE), 8, At(t, r)))
    losses.total.mean().backward()
    ours = [parameter.grad.clone() for parameter in net.parameters()]
    *_, noise = drawn(8, (1, 4, 4), At(t, r), RectifiedFlow(), pairs=2)
    x_t = (1 - column(t)) * x0 + column(t) * noise
    u = net(x_t, SCALE * t, none(), SCALE * r)
    h = 1e-6
    up, down = (net(x_t + s * (noise - x0), SCALE * (t + s), none(), SCALE * r) for s in (h, -h))
    e = u.detach() - (noise - x0 - column(t - r) * (up - down).detach() / (2 * h))
    square = e.square().sum((1, 2, 3))
    torch.testing.assert_close(losses.total, square / (square + c) ** power, rtol=1e-7, atol=0)
    torch.testing.assert_close(losses.logs["squared_error"], square.mean() / 16, rtol=1e-7, atol=0)
    weight = column(1 / (square + c) ** power)
    expected = torch.autograd.grad((2 * weight * e * u).sum() / 8, list(net.parameters()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_modules_weighting_counts():
    x0, times = MEAN.expand(4, *SHAPE) + 0.3, At([0.2, 0.4, 0.6, 0.8])

    def total(weighting):
        parts = setting(ideal(), RectifiedFlow(), Velocity(SCALE), 4, times, weighting)
        return MeanFlow(ratio=0.0, power=0.0)(x0, none(), parts).total

    t = times.times[0]
    # the error of the velocity counts SNR t^2 = (1 - t)^2
    torch.testing.assert_close(total(SNR()), total(None) * (1 - t) ** 2, rtol=1e-12, atol=0)


def by_class():
    """Classes 0 and 1 with their own means, class 2 standing for none: the velocity of points."""
    means = torch.tensor([0.5, -0.7, 0.1], dtype=torch.float64)
    return means, Told(
        lambda x, a, b, cond: (x - column(means[cond.label])) / (a / SCALE), SHAPE, num_classes=2, two_times=True
    )


def test_the_guided_velocity():
    _, net = by_class()
    label, t = torch.tensor([0, 1, 2, 0]), torch.tensor([0.5, 0.6, 0.7, 0.95], dtype=torch.float64)
    x0 = torch.randn(4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    omega, kappa = 1.5, 0.4
    objective = MeanFlow(ratio=0.0, power=0.0, guidance=omega, kappa=kappa, guided_until=0.9)
    losses = objective(x0, Condition(label=label), setting(net, RectifiedFlow(), Velocity(SCALE), 4, At(t)))
    *_, noise = drawn(4, SHAPE, At(t), RectifiedFlow(), pairs=2)
    x_t = (1 - column(t)) * x0 + column(t) * noise
    with_class, without = (
        net(x_t, SCALE * t, Condition(label=each), SCALE * t).detach() for each in (label, torch.full_like(label, 2))
    )
    velocity = omega * (noise - x0) + kappa * with_class + (1 - omega - kappa) * without
    # without a class, and above guided_until, the velocity is the sample's
    velocity[2:] = (noise - x0)[2:]
    expected = (with_class - velocity).square().sum((1, 2, 3))
    torch.testing.assert_close(losses.total, expected, rtol=1e-12, atol=0)


def test_guidance_amounts_to_the_scale_omega_over_one_minus_kappa():
    means, plain = by_class()
    omega, kappa = 1.2, 0.4
    scale = omega / (1 - kappa)

    def guided(x, a, b, cond):
        own, none_ = ((x - column(means[each])) / (a / SCALE) for each in (cond.label, torch.full_like(cond.label, 2)))
        return none_ + scale * (own - none_)

    net = Told(guided, SHAPE, num_classes=2, two_times=True)
    label, t = torch.tensor([0, 1, 0]), torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    cond = Condition(label=label)
    velocity = plain(x, SCALE * t, cond, SCALE * t).detach()
    objective = MeanFlow(guidance=omega, kappa=kappa)
    told = objective._velocity(denoiser(net), x, t, cond, velocity)
    torch.testing.assert_close(told, guided(x, column(SCALE * t), None, cond), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.6, 0.25, 0.0]])
def test_steps_of_ddim_are_exact(times):
    net = ideal()
    estimate = PointDenoiser(net, RectifiedFlow(), Velocity(SCALE))
    noise = torch.randn(5, *SHAPE, dtype=torch.float64)
    points = points_of(RectifiedFlow(), times)
    with torch.no_grad():
        x = integrate(DDIM(), lambda x, here, until: estimate(x, here, until, None), noise, points, lambda: None)
    torch.testing.assert_close(x, MEAN + STD * noise, rtol=0, atol=1e-12)
    told = [(float(first[0]), float(second[0])) for first, second in net.calls]
    expected = [(SCALE * a, SCALE * b) for a, b in itertools.pairwise(times)]
    torch.testing.assert_close(torch.tensor(told), torch.tensor(expected))


@pytest.mark.parametrize("stratified", [False, True])
def test_the_two_times_of_a_sample(stratified):
    n = 4000
    parts = setting(ideal(), RectifiedFlow(), Velocity(SCALE), n, Uniform(stratified=stratified))
    t, r = MeanFlow()._times(parts, 1000)
    assert (r[:1000] < t[:1000]).all()
    assert torch.equal(r[1000:], t[1000:])
    # of two independent uniform times the larger is 2/3 and the smaller 1/3 in the mean, moving or not
    for values, mean, count in ((t[:1000], 2 / 3, 1000), (r[:1000], 1 / 3, 1000), (t[1000:], 2 / 3, 3000)):
        assert abs(float(values.mean()) - mean) < 5 * (1 / 18 / count) ** 0.5


def test_the_share_of_moving_samples_is_right_in_the_mean():
    objective = MeanFlow(ratio=0.25)
    counts = [
        objective._moving(6, setting(ideal(), RectifiedFlow(), Velocity(), 6, Uniform(), images=6 * i, rank=i % 2))
        for i in range(2000)
    ]
    assert set(counts) == {1, 2}
    assert abs(sum(counts) / 2000 - 1.5) < 5 * 0.5 / 2000**0.5
    for ratio, count in ((0.0, 0), (0.5, 3), (1.0, 6)):
        assert MeanFlow(ratio=ratio)._moving(6, setting(ideal(), RectifiedFlow(), Velocity(), 6, Uniform())) == count


class Fused(torch.nn.Module):
    """Attention by the fused kernels alone, which have no forward-mode derivative."""

    def forward(self, x):
        tokens = x.flatten(2).mT[:, None]
        mixed = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed[:, 0].mT.reshape(x.shape)


def test_fused_attention_takes_the_derivative_too():
    fused = Fused()
    net = Told(lambda x, a, b, _: fused(x) * torch.sin(a - b), SHAPE, two_times=True)
    x, velocity = torch.randn(2, 3, *SHAPE, dtype=torch.float64)
    t, r = torch.tensor([0.5, 0.7, 0.9]).double(), torch.tensor([0.1, 0.2, 0.3]).double()
    target = average_velocity(denoiser(net, 1.0), x, t, r, velocity, None)
    h = 1e-5
    up, down = (net(x + s * velocity, t + s, None, r).detach() for s in (h, -h))
    torch.testing.assert_close(target, velocity - column(t - r) * (up - down) / (2 * h), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", ["dit", "unet"])
@pytest.mark.parametrize("mode", ["plain", "autocast", "no_grad", "inference"])
def test_all_parameters_learn_in_every_mode(kind, mode):
    torch.manual_seed(7)
    net = network(kind, (1, 8, 8), num_classes=3, two_times=True, checkpointing=True)
    parts = setting(net, RectifiedFlow(), Velocity(2.0), 8, LogitNormal(), dtype=torch.float32)
    objective = MeanFlow(ratio=0.5, guidance=1.5, kappa=0.3)
    context = {
        "plain": torch.enable_grad(),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "no_grad": torch.no_grad(),
        "inference": torch.inference_mode(),
    }[mode]
    with context:
        x0, label = torch.rand(8, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
        losses = objective(x0, Condition(label=label), parts)
    assert losses.total.isfinite().all()
    assert losses.total.dtype == torch.float32
    if mode in ("plain", "autocast"):
        losses.total.mean().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.slow
def test_a_compiled_network_is_differentiated_without_its_graph():
    torch.manual_seed(8)
    net = network("tiny", (1, 4, 4), two_times=True).double()
    x0, runs = torch.randn(4, 1, 4, 4, dtype=torch.float64), []

    def backend(graph, inputs):
        def run(*given):
            runs.append(len(given[0]))
            return graph(*given)

        return run

    def total():
        parts = setting(net, RectifiedFlow(), Velocity(2.0), 4, LogitNormal())
        return MeanFlow(ratio=0.5)(x0, none(), parts).total

    plain = total()
    net.compile(backend=backend)
    torch.testing.assert_close(total(), plain, rtol=1e-10, atol=1e-10)
    assert len(runs) == 1
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"net": Tiny()}, "two_times"),
        ({"path": VP()}, "RectifiedFlow"),
        ({"parameterization": V()}, "Velocity"),
        ({"net": Tiny(two_times=True, learned_variance=True)}, "variance"),
        ({"times": Importance()}, "Importance"),
        ({"net": Tiny(two_times=True, batch_norm=True)}, "norm"),
        ({"objective": MeanFlow(guidance=2.0)}, "null_class"),
    ],
)
def test_what_does_not_fit_is_refused(parts, says):
    objective = parts.get("objective", MeanFlow())
    net = parts.get("net", Tiny(two_times=True))
    den = Denoiser(net, parts.get("path", RectifiedFlow()), parts.get("parameterization", Velocity(1.0)))
    with pytest.raises(ValueError, match=says):
        objective.check(Fit(den, parts.get("times", Uniform())))


def test_what_fits_passes_and_a_large_scale_of_time_is_warned_of():
    fit = Fit(denoiser(Tiny(two_times=True, batch_norm=True).eval(), 10.0), Uniform())
    MeanFlow().check(fit)
    with pytest.warns(UserWarning, match="time_scale"):
        MeanFlow().check(Fit(denoiser(Tiny(two_times=True), 1000.0), Uniform()))


@pytest.mark.parametrize(
    "how", [{"ratio": 1.5}, {"power": -1}, {"c": 0}, {"guidance": 0}, {"kappa": 1.0}, {"guided_until": 2}]
)
def test_numbers_out_of_range_are_refused(how):
    with pytest.raises(ValueError, match=next(iter(how))):
        MeanFlow(**how)
