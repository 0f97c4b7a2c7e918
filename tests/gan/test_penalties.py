"""The gradient penalties against closed forms and finite differences, and their traps."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_gen.gan.penalties import (
    DRAGAN,
    PENALTIES,
    R1,
    R2,
    WGANGP,
    Penalty,
    clip_weights_,
    image_gradients,
    lazy_adam,
    refuse_batch_norm,
    sample_norms,
)

SHAPE = (2, 3, 3)  # C, H, W of the toy images
D = math.prod(SHAPE)
ALL = pytest.mark.parametrize("penalty", [WGANGP(), DRAGAN(), R1(), R2()], ids=lambda p: type(p).__name__)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


REAL, FAKE = draw(5, *SHAPE, seed=1), draw(5, *SHAPE, seed=2)
W = draw(D, seed=3)
A = draw(D, D, seed=4)
A = (A + A.T) / 2


def linear(x: Tensor) -> Tensor:
    """D(x) = <w, x> + b, whose gradient is w everywhere."""
    return x.flatten(1) @ W + 0.7


def quadratic(x: Tensor) -> Tensor:
    """D(x) = 1/2 x^T A x, whose gradient is A x."""
    x = x.flatten(1)
    return 0.5 * ((x @ A) * x).sum(1)


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 6), nn.Softplus(), nn.Linear(6, 1), nn.Flatten(0)).double()


class Recorder:
    """A critic that keeps the points it was asked at."""

    def __init__(self, critic: Callable[[Tensor], Tensor]) -> None:
        self.critic, self.points = critic, torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        self.points = x.detach()
        return self.critic(x)


# ---------------------------------------------------------------- closed forms


def test_linear_critic() -> None:
    norm = W.norm().item()
    assert WGANGP(7.0)(linear, REAL, FAKE).item() == pytest.approx(7 * (norm - 1) ** 2, rel=1e-13)
    assert DRAGAN(7.0)(linear, REAL, FAKE).item() == pytest.approx(7 * (norm - 1) ** 2, rel=1e-13)
    assert R1(0.3)(linear, REAL, FAKE).item() == pytest.approx(0.15 * norm**2, rel=1e-13)
    assert R2(0.3)(linear, REAL, FAKE).item() == pytest.approx(0.15 * norm**2, rel=1e-13)


def test_quadratic_critic() -> None:
    at_real = (REAL.flatten(1) @ A).square().sum(1).mean().item()
    at_fake = (FAKE.flatten(1) @ A).square().sum(1).mean().item()
    assert R1(0.3)(quadratic, REAL, FAKE).item() == pytest.approx(0.15 * at_real, rel=1e-13)
    assert R2(0.3)(quadratic, REAL, FAKE).item() == pytest.approx(0.15 * at_fake, rel=1e-13)
    for penalty in (WGANGP(7.0), DRAGAN(7.0)):
        critic = Recorder(quadratic)
        value = penalty(critic, REAL, FAKE).item()
        norms = [(point.flatten() @ A).norm().item() for point in critic.points]
        assert value == pytest.approx(7 * math.fsum((n - 1) ** 2 for n in norms) / len(norms), rel=1e-13)


def test_r1_of_a_quadratic_critic_over_a_gaussian() -> None:
    # The 2d points +-sqrt(d) e_i have the mean and covariance of N(0, I), and the integrand is quadratic,
    # so the mean over them IS the expectation: E ||A x + b||^2 = ||A||_F^2 + ||b||^2.
    points = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)]).double().view(-1, *SHAPE)
    value = R1(2.0)(lambda x: quadratic(x) + x.flatten(1) @ W, points, points)
    assert value.item() == pytest.approx((A.square().sum() + W.square().sum()).item(), rel=1e-13)


@ALL
def test_parameter_gradients_match_finite_differences(penalty: Penalty) -> None:
    network = mlp()
    names = [name for name, _ in network.named_parameters()]

    def value(*parameters: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same points each time
        state = dict(zip(names, parameters, strict=True))
        return penalty(lambda x: functional_call(network, state, (x,)), REAL, FAKE)

    parameters = tuple(p.detach().clone().requires_grad_() for p in network.parameters())
    assert torch.autograd.gradcheck(value, parameters)


@ALL
def test_the_penalty_teaches_every_weight_and_nothing_else(penalty: Penalty) -> None:
    network, real, fake = mlp(), REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    value = penalty(network, real, fake)
    assert all(p.grad is None for p in network.parameters())  # the inner gradient is of the images alone
    value.backward()
    # The last bias alone has no part in a gradient with respect to the images.
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert grads.pop("3.bias") is None
    assert all(g is not None and g.abs().max() > 0 for g in grads.values())
    assert real.grad is None
    assert fake.grad is None


# ---------------------------------------------------------------- where the gradient is taken


def test_wgan_gp_draws_one_alpha_a_sample() -> None:
    critic = Recorder(linear)
    WGANGP()(critic, REAL, FAKE)
    alpha = ((critic.points - FAKE) / (REAL - FAKE)).flatten(1)
    assert (alpha.amax(1) - alpha.amin(1)).max() < 1e-12  # one for all pixels
    assert len(set(alpha[:, 0].tolist())) == len(REAL)  # another for each sample
    real, fake = torch.ones(20_000, 1, 1, 1), torch.zeros(20_000, 1, 1, 1)
    critic = Recorder(lambda x: x.flatten())
    WGANGP()(critic, real, fake)
    edges = torch.linspace(0, 1, 11)
    shares = torch.histogram(critic.points.flatten(), edges).hist / 20_000
    assert (shares - 0.1).abs().max() < 4 * math.sqrt(0.09 / 20_000)


def test_wgan_gp_refuses_unequal_batches() -> None:
    with pytest.raises(ValueError, match=r"\(5, 2, 3, 3\).*\(4, 2, 3, 3\).*Generate as many"):
        WGANGP()(linear, REAL, FAKE[:4])
    with pytest.raises(ValueError, match="same shape"):
        WGANGP()(linear, REAL, FAKE[:1])  # would broadcast


def test_unpaired_penalties_take_unequal_batches() -> None:
    for penalty in (DRAGAN(), R1(), R2()):
        assert torch.isfinite(penalty(quadratic, REAL, FAKE[:3]))


def test_dragan_points() -> None:
    real = draw(64, 3, 32, 32, seed=5)
    critic = Recorder(lambda x: x.flatten(1).sum(1))
    torch.manual_seed(0)
    DRAGAN()(critic, real, real)
    x = real.flatten()
    half_std = 0.5 * math.sqrt((x - x.mean()).square().mean())  # one number, population
    scaled = ((critic.points - real) / half_std).flatten(1)
    assert scaled.min() > -1e-12
    assert scaled.max() < 1
    # Given its alpha a sample's entries are uniform on [0, alpha): the mean is half of the maximum.
    assert (scaled.amax(1) - 2 * scaled.mean(1)).abs().max() < 0.05
    # alpha is uniform over samples.
    alpha = scaled.amax(1)
    assert abs(alpha.mean() - 0.5) < 4 * math.sqrt(1 / 12 / 64)
    assert alpha.min() < 0.1
    assert alpha.max() > 0.9


def test_r1_reads_real_and_r2_fake_images() -> None:
    assert (WGANGP.on, DRAGAN.on, R1.on, R2.on) == ("between", "real", "real", "fake")
    for penalty, points in [(R1(), REAL), (R2(), FAKE)]:
        critic = Recorder(linear)
        penalty(critic, REAL, FAKE)
        assert torch.equal(critic.points, points)


# ---------------------------------------------------------------- traps


def test_the_norm_is_per_sample_over_all_entries() -> None:
    # Linear on each sample with ||grad|| = 1: the right penalty is 0.
    real = draw(8, *SHAPE, seed=6)
    unit = (W / W.norm()).view(SHAPE)

    def critic(x: Tensor) -> Tensor:
        return (x * unit).flatten(1).sum(1)

    assert WGANGP(1.0)(critic, real, real).item() == pytest.approx(0, abs=1e-28)
    gradients = image_gradients(critic, real)
    of_the_batch = (gradients.norm() - 1).square().item()  # one norm for all samples
    per_pixel = (gradients.norm(dim=1) - 1).square().mean().item()  # over channels only
    of_the_mean_logit = ((gradients / len(real)).flatten(1).norm(dim=1) - 1).square().mean().item()
    assert of_the_batch == pytest.approx((math.sqrt(8) - 1) ** 2, rel=1e-12)
    assert per_pixel > 0.4
    assert of_the_mean_logit == pytest.approx((1 / 8 - 1) ** 2, rel=1e-12)


def test_the_weight_counts_once() -> None:
    torch.manual_seed(0)
    once = WGANGP(1.0)(quadratic, REAL, FAKE).item()
    torch.manual_seed(0)
    assert WGANGP(10.0)(quadratic, REAL, FAKE).item() == pytest.approx(10 * once, rel=1e-14)
    torch.manual_seed(0)
    assert WGANGP(10.0, every=4).scaled(quadratic, REAL, FAKE).item() == pytest.approx(40 * once, rel=1e-14)


def test_a_mean_logit_is_refused() -> None:
    for critic in (lambda x: linear(x).mean(), lambda x: linear(x)[:, None]):
        with pytest.raises(ValueError, match=r"one logit an image.*\(5,\)"):
            R1()(critic, REAL, FAKE)


@ALL
def test_two_half_batches_equal_one_batch(penalty: Penalty) -> None:
    # On points that do not depend on drawn numbers: the mean over samples is a mean of means.
    if isinstance(penalty, R1 | R2):
        halves = [penalty(quadratic, r, f) for r, f in zip(REAL[:4].split(2), FAKE[:4].split(2), strict=True)]
        whole = penalty(quadratic, REAL[:4], FAKE[:4])
    else:
        halves = [penalty(linear, REAL[:2], FAKE[:2])] * 2
        whole = penalty(linear, REAL[:4], FAKE[:4])
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=1e-14, atol=0)


@ALL
def test_autocast_changes_nothing(penalty: Penalty) -> None:
    network = mlp().float()
    real, fake = REAL.float(), FAKE.float()

    def run(enabled: bool) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = penalty(network, real, fake)
        return value, list(torch.autograd.grad(value, list(network.parameters())[:3]))

    (value, gradients), (plain, plain_gradients) = run(True), run(False)
    assert value.dtype == torch.float32
    assert torch.equal(value, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain_gradients, strict=True))


@ALL
def test_half_precision_images_are_taken_to_float32(penalty: Penalty) -> None:
    network = mlp().float()
    value = penalty(network, REAL.bfloat16(), FAKE.bfloat16())
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


@ALL
def test_a_loss_scale_passes_through(penalty: Penalty) -> None:
    network = mlp()

    def gradients(scale: float) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return torch.autograd.grad(scale * penalty(network, REAL, FAKE), list(network.parameters())[:3])

    for scaled, plain in zip(gradients(65536.0), gradients(1.0), strict=True):
        assert torch.equal(scaled / 65536, plain)


@ALL
def test_the_value_without_gradients(penalty: Penalty) -> None:
    network = mlp()
    torch.manual_seed(1)
    value = penalty(network, REAL, FAKE)
    torch.manual_seed(1)
    with torch.no_grad():
        plain = penalty(network, REAL, FAKE)
    assert torch.equal(value, plain)
    assert value.requires_grad
    assert not plain.requires_grad


def test_a_flat_critic_gives_finite_gradients() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).double()
    with torch.no_grad():
        network[1].bias.fill_(-1000.0)  # every ReLU is dead: the gradient is zero everywhere
    for penalty in (WGANGP(), DRAGAN()):
        value = penalty(network, REAL, FAKE)
        assert value.item() == 10.0
        gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-30, 1.0, 1e30])
def test_sample_norms_neither_overflow_nor_underflow(size: float) -> None:
    direction = torch.tensor([[3.0, -4.0, 0.0]])
    x = (direction * size).requires_grad_()
    norms = sample_norms(x)
    (gradient,) = torch.autograd.grad(norms.sum(), x)
    smallest = 1.4e-45  # float32 has nothing finer
    assert norms.item() == pytest.approx(5 * size, rel=1e-6, abs=2 * smallest)
    assert torch.isfinite(gradient).all()
    if size == 0:
        assert gradient.abs().max() == 0  # the subgradient we take
    elif size > 1e-38:
        torch.testing.assert_close(gradient, direction / 5)


def test_sample_norms_are_differentiable_twice() -> None:
    x = draw(3, 2, 2, seed=8).requires_grad_()
    torch.testing.assert_close(sample_norms(x), x.flatten(1).norm(dim=1), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(sample_norms, (x,))
    assert torch.autograd.gradgradcheck(sample_norms, (x,))


# ---------------------------------------------------------------- laziness


@pytest.mark.parametrize("every", [1, 4, 16])
def test_lazy_penalties_add_up(every: int) -> None:
    penalty = R1(0.3, every=every)
    plain = penalty(quadratic, REAL, FAKE)
    total = sum(penalty.scaled(quadratic, REAL, FAKE) for step in range(48) if penalty.due(step))
    torch.testing.assert_close(total, 48 * plain, rtol=1e-14, atol=0)
    assert penalty.due(0)


def test_lazy_adam() -> None:
    lr, (beta1, beta2) = lazy_adam(0.0025, (0.0, 0.99), every=16)
    assert lr == pytest.approx(0.0025 * 16 / 17, rel=1e-15)
    assert beta1 == 0.0
    # 17 updates with the lazy beta forget as much as 16 with the plain one.
    assert beta2**17 == pytest.approx(0.99**16, rel=1e-14)
    assert lazy_adam(2e-4, (0.5, 0.999), every=1) == (2e-4, (0.5, 0.999))
    with pytest.raises(ValueError, match="every=0"):
        lazy_adam(1e-4, (0.5, 0.9), every=0)


@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_bad_settings_are_refused(name: str) -> None:
    penalty = PENALTIES[name]
    with pytest.raises(ValueError, match="every=0"):
        penalty(every=0)
    keyword = "gamma" if name in ("r1", "r2") else "weight"
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{keyword}="):
            penalty(**{keyword: value})


# ---------------------------------------------------------------- clipping and batch norm


def test_clip_weights() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module[1].running_var.fill_(5.0)
    clip_weights_(module, 0.01)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name].clamp(-0.01, 0.01))
        assert p.requires_grad
    assert (module[1].running_var == 5).all()
    for bound in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            clip_weights_(module, bound)


def normalized(layer: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 2), layer, nn.Softplus(), nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0)
    ).double()


def cross_gradient(network: nn.Module) -> float:
    """Largest gradient of the first sample's logit with respect to the other samples."""
    x = REAL.clone().requires_grad_()
    return torch.autograd.grad(network(x)[0], x)[0][1:].abs().max().item()


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_batch_norm_is_refused(layer: nn.Module) -> None:
    network = normalized(layer)
    if not isinstance(layer, nn.SyncBatchNorm):  # needs a GPU to run
        assert cross_gradient(network) > 1e-4  # why
    with pytest.raises(ValueError, match=rf"in 1 \({type(layer).__name__}\).*GroupNorm"):
        refuse_batch_norm(network)


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Identity()])
def test_sample_wise_norms_pass(layer: nn.Module) -> None:
    network = normalized(layer)
    assert cross_gradient(network) == 0
    refuse_batch_norm(network)


def test_batch_norm_by_running_statistics_passes() -> None:
    network = normalized(nn.BatchNorm2d(4)).eval()
    assert cross_gradient(network) == 0
    refuse_batch_norm(network)
    untracked = normalized(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert cross_gradient(untracked) > 1e-4
    with pytest.raises(ValueError, match="BatchNorm2d"):
        refuse_batch_norm(untracked)
    with pytest.raises(ValueError, match="the module itself"):
        refuse_batch_norm(nn.BatchNorm1d(3))
