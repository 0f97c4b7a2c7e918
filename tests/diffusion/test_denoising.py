"""The loss against loops written by hand, the variational bound against published formulas and in closed form."""

import math

import numpy as np
import pytest
import torch
from affine import AffineDenoiser
from scipy import stats
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from lightning_gen.diffusion.couplings import Independent
from lightning_gen.diffusion.denoiser import Denoiser
from lightning_gen.diffusion.objectives.base import Fit, Setting
from lightning_gen.diffusion.objectives.denoising import (
    DenoisingMSE,
    byte_log_likelihood,
    posterior,
    variational_bound,
)
from lightning_gen.diffusion.parameterizations import X0, EDMPreconditioning, Epsilon, V, Velocity
from lightning_gen.diffusion.paths import EDM, VP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.times import Importance, Times, TimeSampler, Uniform
from lightning_gen.diffusion.weightings import EDMWeighting, MinSNR, Plain, SoftMinSNR
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import GeneratorStream

B = 6


class These(TimeSampler):
    """Times that the test chose."""

    def __init__(self, t):
        super().__init__()
        self.t = t

    def quantile(self, u, path):
        raise NotImplementedError

    def forward(self, path, stream, rank=0, world=1):
        return Times(self.t)


def stream(seed=0, n=B):
    return GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=torch.float64)


def images(shape=(2, 4, 4), n=B, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).double() / 127.5 - 1


def setting(denoiser, times, weighting=None, coupling=None):
    return Setting(denoiser, times, weighting or Plain(), coupling or Independent(), stream())


def vp_pair(t):
    alpha = math.exp(-0.25 * t * t * 19.9 - 0.05 * t)
    return alpha, math.sqrt(1 - alpha**2)


def edm_pair(t):
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return 1.0, (low + t * (high - low)) ** 7


def ddpm(net, x0, noise, t):
    alpha, sigma = vp_pair(t)
    return (net(alpha * x0 + sigma * noise, 1000 * t) - noise).square().mean()


def ddpm_min_snr(net, x0, noise, t):
    alpha, sigma = vp_pair(t)
    return min(5 / (alpha / sigma) ** 2, 1.0) * ddpm(net, x0, noise, t)


def image_soft_min_snr(net, x0, noise, t):
    alpha, sigma = vp_pair(t)
    return (net(alpha * x0 + sigma * noise, 1000 * t) - x0).square().mean() / ((sigma / alpha) ** 2 + 0.25)


def distillation_v(net, x0, noise, t):
    """Max(SNR, ...) aside, the loss of v as it is: SNR + 1 on the image."""
    alpha, sigma = vp_pair(t)
    x_t = alpha * x0 + sigma * noise
    image = alpha * x_t - sigma * net(x_t, 1000 * t)
    return ((alpha / sigma) ** 2 + 1) * (image - x0).square().mean()


def flow_matching(net, x0, noise, t):
    return (net((1 - t) * x0 + t * noise, 1000 * t) - (noise - x0)).square().mean()


def edm(net, x0, noise, t):
    """Eq. 8 with the columns of table 1: lambda of the squared error of D, averaged over the image."""
    s, d = edm_pair(t)[1], 0.5
    y = x0 + s * noise
    given, label = y / math.sqrt(s**2 + d**2), math.log(s) / 4
    image = d**2 / (s**2 + d**2) * y + s * d / math.sqrt(s**2 + d**2) * net(given, label)
    return (s**2 + d**2) / (s * d) ** 2 * (image - x0).square().mean()


CASES = {
    "ddpm": (Epsilon(), VP(), Plain(), ddpm),
    "ddpm, min-SNR": (Epsilon(), VP(), MinSNR(5.0), ddpm_min_snr),
    "image, soft-min-SNR": (X0(), VP(), SoftMinSNR(0.5), image_soft_min_snr),
    "v": (V(), VP(), Plain(), distillation_v),
    "flow matching": (Velocity(), RectifiedFlow(), Plain(), flow_matching),
    "edm": (EDMPreconditioning(), EDM(), EDMWeighting(), edm),
    "edm, plain": (EDMPreconditioning(), EDM(), Plain(), edm),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradient_by_hand(name):
    parameterization, path, weighting, loss = CASES[name]
    net, x0 = AffineDenoiser(num_classes=3).double(), images()
    label = torch.tensor([0, 1, 2, 3, 0, 1])
    t = torch.tensor([0.02, 0.1, 0.35, 0.5, 0.8, 0.99], dtype=torch.float64)
    losses = DenoisingMSE()(x0, Condition(label), setting(Denoiser(net, path, parameterization), These(t), weighting))
    ours = torch.autograd.grad(losses.total.mean(), net.parameters(), allow_unused=True)
    noise = stream().normal(2, 4, 4)
    byhand = []
    for i, time in enumerate(t.tolist()):

        def alone(x, noise_label, i=i):
            return net(x[None], torch.tensor([noise_label], dtype=torch.float64), Condition(label[i : i + 1]))[0]

        byhand.append(loss(alone, x0[i], noise[i], time))
    torch.testing.assert_close(losses.total, torch.stack(byhand), rtol=1e-11, atol=0)
    theirs = torch.autograd.grad(torch.stack(byhand).mean(), net.parameters(), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    assert torch.equal(losses.t, t)
    assert not losses.logs
    assert not losses.error.requires_grad


def test_plain_noise_loss_is_the_expectation_in_closed_form():
    """Of a network that says nothing, it is the second moment of the target."""
    net = AffineDenoiser().double()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    n = 4000
    x0 = images(n=n)
    given = setting(Denoiser(net, RectifiedFlow(), Velocity()), Uniform())
    given.stream = stream(n=n)
    losses = DenoisingMSE()(x0, Condition(), given)
    expected = 1 + x0.square().mean()
    spread = losses.total.std() / math.sqrt(n)
    assert abs(losses.total.mean() - expected) < 3 * spread
    assert spread < 0.01


def test_the_coupling_pairs_images_noise_and_conditions():
    class Reversed(Independent):
        def __call__(self, x0, noise, cond, stream):
            return x0.flip(0), noise, cond.map(lambda value: value.flip(0))

    net, label = AffineDenoiser(num_classes=3).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    denoiser = Denoiser(net, RectifiedFlow(), Velocity())
    t = torch.full((B,), 0.5, dtype=torch.float64)
    x0 = images()
    other = DenoisingMSE()(x0, Condition(label), setting(denoiser, These(t), coupling=Reversed()))
    plain = DenoisingMSE()(x0.flip(0), Condition(label.flip(0)), setting(denoiser, These(t)))
    assert torch.equal(other.total, plain.total)


def test_importance_weighs_the_loss_and_learns_from_the_rest():
    path = DiscreteVP(4, beta_start=0.1, beta_end=0.5)
    times = Importance(history=1, uniform_share=0.1, buckets=4)
    times.update(path, torch.arange(1, 5) / 4, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    net, x0 = AffineDenoiser().double(), images()
    denoiser = Denoiser(net, path, Epsilon())
    losses = DenoisingMSE()(x0, Condition(), setting(denoiser, times, MinSNR(1.0)))
    weight = 1 / (4 * times.probabilities()[(losses.t * 4).round().long() - 1])
    torch.testing.assert_close(losses.total, losses.error * weight, rtol=1e-14, atol=0)
    # the part learned from is the weighted loss without the sampler's own weights
    again = setting(denoiser, These(losses.t), MinSNR(1.0))
    again.stream.uniform()  # the sampler's draw
    torch.testing.assert_close(DenoisingMSE()(x0, Condition(), again).total, losses.error, rtol=1e-14, atol=0)


def test_in_half_precision_the_loss_is_a_float32():
    net = AffineDenoiser().bfloat16()
    given = setting(Denoiser(net, RectifiedFlow(), Velocity()), Uniform())
    given.stream.dtype = torch.bfloat16
    losses = DenoisingMSE()(images().bfloat16(), Condition(), given)
    assert losses.total.dtype == torch.float32
    assert net.seen[0][0].dtype == torch.bfloat16
    assert net.seen[0][1].dtype == torch.float32


# ---------------------------------------------------------------------- the variational bound

T = 8
BETAS = np.linspace(0.02, 0.4, T)
PRODUCT = np.cumprod(1 - BETAS)


def published_bound(x0, x_t, x0_hat, share, step):
    """Of one image at a step counted from 0, from the table of betas alone."""
    before = np.append(1.0, PRODUCT[:-1])
    variance = BETAS * (1 - before) / (1 - PRODUCT)
    log_variance = np.log(np.append(variance[1], variance[1:]))
    of_x0 = BETAS * np.sqrt(before) / (1 - PRODUCT)
    of_x_t = (1 - before) * np.sqrt(1 - BETAS) / (1 - PRODUCT)
    true_mean, mean = (of_x0[step] * image + of_x_t[step] * x_t for image in (x0, x0_hat))
    log_v = share * math.log(BETAS[step]) + (1 - share) * log_variance[step]
    std = (0.5 * log_v).exp()
    if step > 0:
        true = Normal(true_mean, torch.full_like(mean, math.exp(0.5 * log_variance[step])))
        return kl_divergence(true, Normal(mean, std)).mean() / math.log(2)
    # the density, integrated over the byte by Gauss-Legendre quadrature; beyond the outermost ones, its whole tail
    normal, (nodes, weights) = stats.norm(mean.numpy(), std.numpy()), np.polynomial.legendre.leggauss(30)
    inside = [
        normal.logpdf(x0.numpy() + node / 255) + math.log(weight / 255)
        for node, weight in zip(nodes, weights, strict=True)
    ]
    logs = np.logaddexp.reduce(inside)
    logs = np.where(x0.numpy() < -0.999, normal.logcdf(x0.numpy() + 1 / 255), logs)
    logs = np.where(x0.numpy() > 0.999, normal.logsf(x0.numpy() - 1 / 255), logs)
    return -logs.mean() / math.log(2)


def test_the_bound_by_the_published_formulas():
    path = DiscreteVP(betas=BETAS.tolist())
    generator = torch.Generator().manual_seed(3)
    x0 = images((3, 4, 4), T)
    x0[0, 0, 0] = torch.tensor([-1.0, 1.0, -1 + 2 / 255, 1 - 2 / 255])
    noise, error, share = (torch.randn(T, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    level = path.at(torch.arange(1, T + 1, dtype=torch.float64) / T)
    x_t = level.alpha.view(-1, 1, 1, 1) * x0 + level.sigma.view(-1, 1, 1, 1) * noise
    x0_hat, share = x0 + 0.05 * error, torch.sigmoid(share)
    found = variational_bound(x0, x_t, x0_hat, share, level)
    expected = [float(published_bound(x0[k], x_t[k], x0_hat[k], share[k], k)) for k in range(T)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


def test_the_bound_does_not_depend_on_the_order_of_the_batch():
    path = DiscreteVP(betas=BETAS.tolist())
    t = torch.tensor([1, 5, 2, 1, 8, 3]) / T
    x0, noise = images(), stream().normal(2, 4, 4)
    level, order = path.at(t), torch.tensor([3, 1, 0, 5, 2, 4])
    share = torch.full_like(x0, 0.3)
    forward = variational_bound(x0, noise, x0 * 0.9, share, level)
    assert torch.equal(
        variational_bound(x0[order], noise[order], x0[order] * 0.9, share, path.at(t[order])), forward[order]
    )


@pytest.mark.parametrize("path", [DiscreteVP(betas=BETAS.tolist()), DiscreteVP(50, zero_terminal_snr=True)])
def test_the_posterior_is_bayes_rule(path):
    """The precision of x_s given x_t and x_0 is the sum of those of the step back and of the marginal."""
    k = torch.arange(2, path.steps + 1, dtype=torch.float64)
    level, below = path.at(k / path.steps), path.at((k - 1) / path.steps)
    kept, log_small, log_large = posterior(level, below)
    ratio = level.alpha / below.alpha
    step = 1 - ratio**2  # the variance that the step adds, where alpha^2 + sigma^2 = 1
    precision = ratio**2 / step + 1 / below.sigma**2
    torch.testing.assert_close(log_large.exp(), step, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_small.exp(), 1 / precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(kept, ratio / step / precision, rtol=1e-12, atol=1e-16)


def test_the_bounds_of_gaussian_data_add_up_to_mutual_information():
    """With the best estimate and variance, sum over t > 1 of E[L_t] = I(x_0; x_1) - I(x_0; x_T).

    I(x_0; x_t) = log(1 + s^2 SNR) / 2 for data of deviation s; expectations by Gauss-Hermite quadrature, which is
    exact for squares.
    """
    path, s = DiscreteVP(50, beta_start=1e-3, beta_end=0.2), 0.6
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    x0 = (s * nodes).repeat_interleave(4).view(-1, 1, 1, 1)
    noise = nodes.repeat(4).view(-1, 1, 1, 1)
    weight = torch.outer(weights, weights).flatten()
    total = 0.0
    for step in range(2, 51):
        level = path.at(torch.full((16,), step / 50, dtype=torch.float64))
        below = path.at(level.t - 1 / 50)
        alpha, sigma = float(level.alpha[0]), float(level.sigma[0])
        x_t = alpha * x0 + sigma * noise
        power = (alpha * s) ** 2 + sigma**2
        best = alpha * s**2 / power * x_t
        # the variance of x_s given x_t alone, for which the data and the noise are normal
        alpha_s, sigma_s = float(below.alpha[0]), float(below.sigma[0])
        spread = (alpha_s * s) ** 2 + sigma_s**2
        variance = spread - (alpha / alpha_s * spread) ** 2 / power
        _, log_small, log_large = posterior(level, below)
        share = (math.log(variance) - log_small[0]) / (log_large[0] - log_small[0])
        assert 0 < share < 1
        bound = variational_bound(x0, x_t, best, torch.full_like(x0, float(share)), level)
        total += float((weight * bound).sum())
    first, last = (path.at(torch.tensor(t, dtype=torch.float64)).snr.item() for t in (1 / 50, 1.0))
    expected = 0.5 * math.log2((1 + s**2 * first) / (1 + s**2 * last))
    assert total == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 5.0])
@pytest.mark.parametrize("mean", [-1.2, -1.0, -0.3141, 0.0, 0.77, 1.0])
def test_the_probabilities_of_all_bytes_add_up_to_one(mean, std):
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    spread = torch.full_like(values, math.log(std))
    logs = byte_log_likelihood(values, torch.full_like(values, mean), spread)
    assert bool(torch.isfinite(logs).all())
    assert float(torch.logsumexp(logs, 0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (-0.9, 0.02), (0.5, 0.01), (0.2, 3.0)])
def test_the_probability_of_a_byte_is_an_integral(mean, std):
    """In far tails too, where differences of the distribution function have no digits left."""
    values = torch.tensor([1, 17, 128, 200, 254], dtype=torch.float64) / 127.5 - 1
    found = byte_log_likelihood(values, torch.full_like(values, mean), torch.full_like(values, math.log(std)))
    for value, ours in zip(values.tolist(), found.tolist(), strict=True):
        low, high = ((value + side / 255 - mean) / std for side in (-1, 1))
        near = 0.0 if low < 0 < high else min(abs(low), abs(high))
        area, _ = quad(lambda u, near=near: math.exp((near**2 - u**2) / 2), low, high, epsabs=0, epsrel=1e-13)
        expected = math.log(area) - near**2 / 2 - 0.5 * math.log(2 * math.pi)
        assert ours == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_bytes_have_finite_gradients_in_single_precision():
    values = (torch.arange(256) / 127.5 - 1).repeat(3)
    mean = torch.linspace(-3, 3, 768).requires_grad_()
    log_std = torch.tensor([-8.0, -3.0, 1.0]).repeat_interleave(256).requires_grad_()
    byte_log_likelihood(values, mean, log_std).sum().backward()
    assert bool(torch.isfinite(mean.grad).all())
    assert bool(torch.isfinite(log_std.grad).all())


def hybrid(vlb_weight, t, parameterization=None):
    path = DiscreteVP(betas=BETAS.tolist())
    net = AffineDenoiser(learned_variance=True).double()
    denoiser = Denoiser(net, path, parameterization or Epsilon())
    losses = DenoisingMSE(vlb_weight)(images(), Condition(), setting(denoiser, These(t)))
    return net, denoiser, losses


@pytest.mark.parametrize("parameterization", [Epsilon(), X0(), V()])
def test_the_hybrid_loss_is_the_sum(parameterization):
    t = torch.tensor([1, 2, 3, 5, 7, 8], dtype=torch.float64) / T
    net, denoiser, losses = hybrid(0.02, t, parameterization)
    _, _, plain = hybrid(0.0, t, parameterization)
    x0, noise, level = images(), stream().normal(2, 4, 4), denoiser.path.at(t)
    x_t = level.alpha.view(-1, 1, 1, 1) * x0 + level.sigma.view(-1, 1, 1, 1) * noise
    x0_hat, share = denoiser(x_t, level)
    raw = net(x_t, torch.tensor([0.0, 1, 2, 4, 6, 7], dtype=torch.float64))
    torch.testing.assert_close(share, (raw[:, 2:] + 1) / 2)
    bound = torch.stack(
        [
            torch.as_tensor(
                published_bound(*(value[i].detach() for value in (x0, x_t, x0_hat, share)), round(t * T) - 1)
            )
            for i, t in enumerate(t.tolist())
        ]
    )
    torch.testing.assert_close(losses.total, plain.total + 0.02 * T * bound, rtol=1e-10, atol=0)
    torch.testing.assert_close(losses.logs["vlb"], bound.mean(), rtol=1e-10, atol=0)
    assert torch.equal(losses.error, plain.error)
    assert not plain.logs


def test_the_bound_moves_the_variance_alone():
    """In improved DDPM its gradient stops before the mean."""
    t = torch.tensor([1, 2, 3, 5, 7, 8], dtype=torch.float64) / T
    nets = []
    for weight in (0.0, 1.0):
        net, _, losses = hybrid(weight, t)
        losses.total.mean().backward()
        nets.append(net)
    without, with_bound = nets
    for name in ("weight", "bias"):
        one, other = getattr(without.mix, name).grad, getattr(with_bound.mix, name).grad
        torch.testing.assert_close(other[:2], one[:2], rtol=1e-13, atol=1e-16)
        assert not one[2:].any()
        assert bool((other[2:].flatten(1).abs().sum(1) > 0).all() if name == "weight" else other[2:].any())


@pytest.mark.parametrize(
    ("path", "told", "message"),
    [
        (RectifiedFlow(), {"two_times": True}, "two_times=true.*MeanFlow"),
        (RectifiedFlow(), {"learned_variance": True}, "DiscreteVP, or set learned_variance"),
    ],
)
def test_networks_that_do_not_fit_are_refused(path, told, message):
    with pytest.raises(ValueError, match=message):
        DenoisingMSE().check(Fit(Denoiser(AffineDenoiser(**told), path, V()), Uniform()))
    DenoisingMSE().check(Fit(Denoiser(AffineDenoiser(learned_variance=True), DiscreteVP(), V()), Uniform()))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="vlb_weight is 0 or more; given was -1"):
        DenoisingMSE(-1.0)
