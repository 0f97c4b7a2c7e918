import math

import numpy as np
import pytest
import torch
from fewstep_nets import At, Tiny, Told, column, drawn, none, setting

from lightning_gen.diffusion.denoiser import Denoiser, PointDenoiser
from lightning_gen.diffusion.objectives import Consistency, DenoisingMSE, Fit
from lightning_gen.diffusion.parameterizations import X0, EDMPreconditioning, Epsilon, V, Velocity
from lightning_gen.diffusion.paths import EDM, VE, VP, CosineVP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.solvers import ConsistencySteps, integrate, points_of
from lightning_gen.diffusion.times import LogNormal, Uniform
from lightning_gen.diffusion.weightings import SNR, EDMWeighting, Plain, SoftMinSNR
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.unet import UNet

SHAPE = (1, 2, 2)
MEAN = torch.tensor([0.3, -0.5, 0.0, 0.8], dtype=torch.float64).view(SHAPE)
STD = torch.tensor([0.5, 0.1, 1.0, 2.0], dtype=torch.float64).view(SHAPE)
KINDS = {
    "edm": (EDM(), EDMPreconditioning()),
    "ve": (VE(), Epsilon()),
    "vp": (VP(), Epsilon()),
    "vp_edm": (VP(), EDMPreconditioning(0.7)),
    "cosine": (CosineVP(), V(7.0)),
    "flow": (RectifiedFlow(), Velocity(3.0)),
}
KIND = pytest.mark.parametrize("kind", list(KINDS))


def consistent(x, alpha, sigma, mean=MEAN, std=STD):
    """The end of the flow of Gaussian data: x_t is alpha mean + sqrt(alpha^2 std^2 + sigma^2) z with the same z."""
    return mean + std * (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2).sqrt()


def ideal(path, parameterization, shift=0.0, mean=MEAN, std=STD):
    """The network that, in a parameterization, makes the estimate the end of the flow."""

    def function(x, label, cond):
        if isinstance(parameterization, EDMPreconditioning):
            t = path.time((4 * label).exp())
        else:
            t = label / parameterization.time_scale
        level = path.at(t)
        scales = parameterization.scales(level)
        x = x / scales.input
        return (consistent(x, level.alpha, level.sigma, mean, std) - scales.skip * x) / scales.out

    return Told(function, SHAPE, shift)


def test_the_ratio_follows_the_schedule():
    objective = Consistency(q=2.0, k=8.0, b=1.0, stage_images=1000, stages=4)
    level = torch.tensor([0.0, 1.0, 40.0], dtype=torch.float64)
    n = [1 + 8 / 2, 1 + 8 / (1 + math.e), 1.0]
    for images, a in ((0, 1), (999, 1), (1000, 2), (2500, 3), (3000, 4), (10**9, 4)):
        assert objective.stage(images) == a
        expected = torch.tensor([max(0.0, 1 - each / 2**a) for each in n], dtype=torch.float64)
        torch.testing.assert_close(objective.ratio(level, images), expected, rtol=1e-12, atol=0)


@KIND
@pytest.mark.parametrize("images", [0, 3000])
def test_a_single_point_has_no_loss_and_a_wrong_network_has(kind, images):
    path, parameterization = KINDS[kind]
    t = torch.linspace(0.02, 0.999, 40, dtype=torch.float64)

    def total(shift):
        net = ideal(path, parameterization, shift, std=torch.zeros_like(STD))
        parts = setting(net, path, parameterization, 40, At(t), images=images)
        return Consistency(stage_images=1000, metric="squared")(MEAN.expand(40, *SHAPE), none(), parts).total

    assert total(0.0).abs().max() < 1e-20
    # where there is much noise, two wrong estimates differ little
    assert total(0.1)[:20].min() > 1e-7


@KIND
@pytest.mark.parametrize("metric", ["huber", "squared"])
def test_the_loss_of_the_ideal_network(kind, metric):
    path, parameterization = KINDS[kind]
    n, images, c = 40, 2000, 0.3
    t = torch.linspace(0.02, 0.99, n, dtype=torch.float64)
    x0 = MEAN + STD * torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = setting(ideal(path, parameterization), path, parameterization, n, At(t), images=images)
    losses = Consistency(stage_images=1000, metric=metric, c=c)(x0, none(), parts)

    _, noise = drawn(n, SHAPE, At(t), path)
    alpha, sigma = (column(each) for each in path.coefficients(t))
    s = sigma / alpha
    # stage 3
    s_r = s * (1 - (1 + 8 / (1 + s.exp())) / 8)
    _, lowest = path.coefficients(torch.zeros((), dtype=torch.float64))
    # alpha and sigma of that noise level, as the path has them
    alpha_r, sigma_r = (column(each) for each in path.coefficients(path.time(s_r.flatten())))
    torch.testing.assert_close(sigma_r / alpha_r, s_r, rtol=1e-9, atol=1e-12)
    here = consistent(alpha * x0 + sigma * noise, alpha, sigma)
    there = consistent(alpha_r * x0 + sigma_r * noise, alpha_r, sigma_r)
    there, s_r = torch.where(s_r <= lowest, x0, there), torch.where(s_r <= lowest, 0.0, s_r)
    square = (here - there).square().sum((1, 2, 3))
    distance = square / 4 if metric == "squared" else (square + c**2).sqrt() - c
    torch.testing.assert_close(losses.total, distance / (s - s_r).flatten(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(losses.error, distance, rtol=1e-8, atol=1e-12)


def test_as_r_comes_to_t_the_ideal_network_is_stationary():
    # E (f(x_t) - f(x_r)) g(x_t), over image and noise exactly by quadrature, is of the second order in t - r for
    # the ideal network and of the first for any other
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z, e = (torch.from_numpy(each).flatten() for each in np.meshgrid(nodes, nodes))
    weight = torch.from_numpy(np.outer(weights, weights).flatten()) / (2 * math.pi)
    path, parameterization = KINDS["flow"]
    mean, std = torch.tensor(0.4).double(), torch.tensor(0.6).double()

    def gradient(gap, off):
        net = ideal(path, parameterization, mean=mean, std=std + off)
        den = Denoiser(net, path, parameterization)
        x0, noise = column(mean + std * z).expand(-1, *SHAPE), column(e).expand(-1, *SHAPE)
        t = torch.full_like(z, 0.6)
        x_t, x_r = ((1 - a) * x0 + a * noise for a in (0.6, 0.6 - gap))
        with torch.no_grad():
            difference = den(x_t, path.at(t), None).x0 - den(x_r, path.at(t - gap), None).x0
        return float((weight * (difference[:, 0, 0, 0] * torch.tanh(x_t[:, 0, 0, 0]))).sum())

    first, second = (gradient(gap, 0.0) / gap for gap in (0.02, 0.01))
    assert abs(first) < 0.02
    assert first / second == pytest.approx(2.0, rel=0.05)
    wrong = [gradient(gap, 0.3) / gap for gap in (0.02, 0.01)]
    assert min(map(abs, wrong)) > 0.02
    assert wrong[0] / wrong[1] == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("weighting", [SNR(), Plain(), SoftMinSNR(), EDMWeighting()])
def test_with_the_image_as_target_it_is_the_denoising_loss(weighting):
    torch.manual_seed(2)
    net = Tiny().double()
    x0 = torch.randn(8, 1, 4, 4, dtype=torch.float64)

    def losses(objective):
        net.zero_grad()
        parts = setting(net, EDM(), EDMPreconditioning(), 8, LogNormal(), weighting)
        total = objective(x0, none(), parts).total
        total.mean().backward()
        return total.detach(), *(parameter.grad.clone() for parameter in net.parameters())

    # so large a k has every r at 0
    ours = losses(Consistency(k=1e9, b=0.0, metric="squared", weight="weighting"))
    for a, b in zip(ours, losses(DenoisingMSE()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_the_pseudo_huber_distance():
    a, b = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    square = (a - b).square().sum((1, 2, 3))
    for c, default in ((0.5, False), (0.00054 * math.sqrt(192), True)):
        distance = Consistency(c=None if default else c)._distance(a, b)
        torch.testing.assert_close(distance, (square + c**2).sqrt() - c, rtol=1e-12, atol=0)
    torch.testing.assert_close(Consistency(c=1e5)._distance(a, b), square / 2e5, rtol=1e-6, atol=0)
    torch.testing.assert_close(Consistency(c=1e-8)._distance(a, b), square.sqrt(), rtol=1e-8, atol=0)
    # nothing is lost where a and b are near, and there is a gradient where they are the same
    near = Consistency(c=1.0)._distance(torch.zeros(1, 4), torch.full((1, 4), 1e-6))
    assert float(near) == pytest.approx(2e-12, rel=1e-5)
    same = torch.zeros(1, 4, requires_grad=True)
    Consistency()._distance(same, torch.zeros(1, 4)).sum().backward()
    assert not same.grad.any()


def test_the_target_has_no_gradient():
    torch.manual_seed(3)
    net, (path, parameterization) = Tiny().double(), KINDS["flow"]
    x0, t = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.linspace(0.3, 0.9, 6).double()
    objective = Consistency(k=0.0, metric="squared")
    losses = objective(x0, none(), setting(net, path, parameterization, 6, At(t)))
    losses.total.mean().backward()
    ours = [parameter.grad.clone() for parameter in net.parameters()]
    _, noise = drawn(6, (1, 4, 4), At(t), path)
    s = t / (1 - t)
    # k = 0 and stage 1: half the noise level
    r = s / 2 / (1 + s / 2)
    x_t, x_r = ((1 - column(a)) * x0 + column(a) * noise for a in (t, r))
    here, there = x_t - column(t) * net(x_t, 3 * t), x_r - column(r) * net(x_r, 3 * r)
    loss = ((here - there.detach()).square().mean((1, 2, 3)) / (s / 2)).mean()
    torch.testing.assert_close(losses.total.mean(), loss, rtol=1e-10, atol=0)
    for a, b in zip(ours, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


class Dropping(DenoisingNetwork):
    """Remembers which units it dropped."""

    def __init__(self, fails=False):
        super().__init__(SHAPE)
        self.masks, self.fails = [], fails

    def forward(self, x, noise_label, cond=None, second_label=None):
        self.masks.append(torch.nn.functional.dropout(torch.ones_like(x), 0.5) > 0)
        if self.fails and len(self.masks) == 2:
            raise RuntimeError("out of memory")
        return x * self.masks[-1]


def test_both_evaluations_drop_the_same_units_and_the_generator_goes_on_as_after_one():
    path, parameterization = KINDS["edm"]
    x0 = torch.randn(64, *SHAPE, dtype=torch.float64)

    def run(net, objective):
        torch.manual_seed(4)
        objective(x0, none(), setting(net, path, parameterization, 64, LogNormal()))
        return torch.rand(8)

    net, once = Dropping(), Dropping()
    after = run(net, Consistency())
    assert len(net.masks) == 2
    assert torch.equal(*net.masks)
    assert 0 < net.masks[0].double().mean() < 1
    assert torch.equal(after, run(once, DenoisingMSE()))
    assert torch.equal(net.masks[0], once.masks[0])


def test_the_generator_is_put_back_where_the_second_evaluation_fails():
    path, parameterization = KINDS["edm"]
    net = Dropping(fails=True)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="out of memory"):
        Consistency()(torch.zeros(4, *SHAPE).double(), none(), setting(net, path, parameterization, 4, LogNormal()))
    after = torch.rand(8)
    torch.manual_seed(5)
    torch.nn.functional.dropout(torch.ones(4, *SHAPE, dtype=torch.float64), 0.5)
    assert torch.equal(after, torch.rand(8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_both_evaluations_drop_the_same_units():
    path, parameterization = KINDS["edm"]
    net, n = Dropping(), 64
    parts = setting(net, path, parameterization, n, LogNormal())
    parts.stream.device = torch.device("cuda")
    torch.cuda.manual_seed(6)
    Consistency()(torch.zeros(n, *SHAPE, dtype=torch.float64, device="cuda"), none(), parts)
    after = torch.rand(8, device="cuda")
    assert torch.equal(*net.masks)
    torch.cuda.manual_seed(6)
    torch.nn.functional.dropout(torch.ones(n, *SHAPE, dtype=torch.float64, device="cuda"), 0.5)
    assert torch.equal(after, torch.rand(8, device="cuda"))


@KIND
def test_the_network_is_never_asked_where_there_is_no_noise(kind):
    path, parameterization = KINDS[kind]
    t = torch.tensor([1e-12, 1e-6, 1e-3, 0.01, 0.1, 0.5, 0.999, 1.0], dtype=torch.float64)
    torch.manual_seed(6)
    net = Tiny().double()
    for images in (0, 10**9):
        net.zero_grad()
        parts = setting(net, path, parameterization, 8, At(t), images=images)
        asked = []
        handle = net.register_forward_pre_hook(lambda _, told, seen=asked: seen.append(told[1]))
        losses = Consistency()(torch.randn(8, 1, 4, 4, dtype=torch.float64), none(), parts)
        handle.remove()
        losses.total.mean().backward()
        assert losses.total.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
        here, there = asked
        assert here.isfinite().all()
        assert there.isfinite().all()
        assert (there <= here).all()
        lowest = float(path.at(torch.zeros(())).noise_level)
        if isinstance(parameterization, EDMPreconditioning):
            assert there.min() > (math.log(lowest) / 4 if lowest else -math.inf)
        else:
            assert there.min() > 0


@KIND
def test_one_step_of_the_ideal_network_gives_the_data(kind):
    path, parameterization = KINDS[kind]
    estimate = PointDenoiser(ideal(path, parameterization), path, parameterization)
    noise = torch.randn(5, *SHAPE, dtype=torch.float64)
    alpha, sigma = path.coefficients(torch.ones((), dtype=torch.float64))
    width = ((alpha * STD) ** 2 + sigma**2).sqrt()
    points = [*points_of(path, [1.0]), points_of(RectifiedFlow(), [0.0])[0]]
    with torch.no_grad():
        x = integrate(
            ConsistencySteps(),
            lambda x, here, until: estimate(x, here, until, None),
            alpha * MEAN + width * noise,
            points,
            lambda: noise,
        )
    torch.testing.assert_close(x, MEAN + STD * noise, rtol=0, atol=1e-10)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_all_parameters_learn(kind, autocast):
    torch.manual_seed(7)
    if kind == "dit":
        net = DiT((1, 8, 8), width=16, depth=1, heads=2, dropout=0.1, checkpointing=True)
    else:
        net = UNet((1, 8, 8), 8, [1, 2], blocks=1, norm_groups=4, dropout=0.1, checkpointing=True)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    parts = setting(net, EDM(), EDMPreconditioning(), 8, LogNormal(-1.1, 2.0), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = Consistency()(torch.rand(8, 1, 8, 8) * 2 - 1, none(), parts)
    assert losses.total.dtype == torch.float32
    losses.total.mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("net", "path", "parameterization", "says"),
    [
        (Tiny(two_times=True), EDM(), EDMPreconditioning(), "two_times"),
        (Tiny(learned_variance=True), EDM(), EDMPreconditioning(), "learned_variance"),
        (Tiny(), DiscreteVP(), Epsilon(), "continuous"),
        (Tiny(), EDM(), X0(), "X0"),
        (Tiny(), RectifiedFlow(), X0(), "X0"),
        (Tiny(), EDM(), Velocity(), "Velocity"),
        (Tiny(), VE(), Velocity(), "Velocity"),
    ],
)
def test_what_does_not_fit_is_refused(net, path, parameterization, says):
    with pytest.raises(ValueError, match=says):
        Consistency().check(Fit(Denoiser(net, path, parameterization), Uniform()))


@pytest.mark.parametrize("path", [EDM(), VE(), VP(), CosineVP(), RectifiedFlow()])
@pytest.mark.parametrize("parameterization", [EDMPreconditioning(), V(), Epsilon()])
def test_what_leaves_a_clean_image_alone_fits(path, parameterization):
    Consistency().check(Fit(Denoiser(Tiny(), path, parameterization), Uniform()))


@pytest.mark.parametrize(
    "how",
    [{"q": 1.0}, {"k": -1.0}, {"stage_images": 0}, {"stages": 0}, {"metric": "l1"}, {"c": 0.0}, {"weight": "none"}],
)
def test_numbers_out_of_range_are_refused(how):
    with pytest.raises(ValueError, match=next(iter(how))):
        Consistency(**how)
