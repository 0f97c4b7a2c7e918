"""The adversarial losses against independent forms, their optima and their limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.gan.losses import (
    LOSSES,
    AdversarialLoss,
    Hinge,
    LeastSquares,
    NonSaturating,
    RelativisticPairing,
    Saturating,
    Wasserstein,
)


def logits(seed: int, n: int = 7) -> Tensor:
    return 3 * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


REAL, FAKE = logits(0), logits(1)
EVERY = pytest.mark.parametrize("name", sorted(LOSSES))


def bce(x: Tensor, target: float) -> float:
    return float(F.binary_cross_entropy_with_logits(x, torch.full_like(x, target)))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def expected(name: str, r: Tensor, f: Tensor) -> tuple[float, float]:
    """Both losses, from cross-entropies or one sample after the other."""
    rs, fs = r.tolist(), f.tolist()
    if name == "non_saturating":
        return bce(r, 1) + bce(f, 0), bce(f, 1)
    if name == "saturating":
        return bce(r, 1) + bce(f, 0), -bce(f, 0)
    if name == "least_squares":
        d = mean([(a - 1) ** 2 / 2 for a in rs]) + mean([a**2 / 2 for a in fs])
        return d, mean([(a - 1) ** 2 / 2 for a in fs])
    if name == "hinge":
        return mean([max(0.0, 1 - a) for a in rs]) + mean([max(0.0, 1 + a) for a in fs]), -mean(fs)
    if name == "wasserstein":
        return mean(fs) - mean(rs), -mean(fs)
    pairs = list(zip(rs, fs, strict=True))
    d = mean([math.log1p(math.exp(-(a - b))) for a, b in pairs])
    return d, mean([math.log1p(math.exp(-(b - a))) for a, b in pairs])


@EVERY
def test_values_match_independent_forms(name: str) -> None:
    loss = LOSSES[name]()
    d, g = expected(name, REAL, FAKE)
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(d, rel=1e-13)
    assert float(loss.generator(FAKE, REAL)) == pytest.approx(g, rel=1e-13)


@EVERY
def test_gradients_match_finite_differences(name: str) -> None:
    loss = LOSSES[name]()
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda f: loss.generator(f, REAL), (fake,))
    if name not in ("hinge", "wasserstein"):  # linear pieces have no second derivative to compare
        assert torch.autograd.gradgradcheck(loss.discriminator, (real, fake))


@EVERY
def test_the_generator_of_an_unpaired_loss_ignores_real_logits(name: str) -> None:
    loss = LOSSES[name]()
    if not loss.paired:
        assert torch.equal(loss.generator(FAKE), loss.generator(FAKE, REAL))
        assert torch.isfinite(loss.discriminator(REAL, FAKE[:3]))  # unequal batches are fine


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sure_discriminators_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]()
    for r, f in [(1000.0, -1000.0), (-1000.0, 1000.0), (1000.0, 1000.0)]:
        real = torch.full((4,), r, dtype=dtype, requires_grad=True)
        fake = torch.full((4,), f, dtype=dtype, requires_grad=True)
        for value in (loss.discriminator(real, fake), loss.generator(fake, real)):
            gradients = torch.autograd.grad(value, (real, fake), allow_unused=True)
            assert torch.isfinite(value)
            assert all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_logistic_limits_are_exact() -> None:
    loss = NonSaturating()
    x = torch.tensor([-1000.0, 1000.0], dtype=torch.float64, requires_grad=True)
    value = loss.generator(x)  # softplus(1000) = 1000 and softplus(-1000) = 0
    assert value.item() == 500.0
    assert torch.autograd.grad(value, x)[0].tolist() == [-0.5, 0.0]
    value = loss.discriminator(x, x)
    assert value.item() == 1000.0
    assert torch.autograd.grad(value, x)[0].tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("a", [19.0, 20.5, 25.0, 33.0, -19.0, -25.0, -700.0])
def test_softplus_has_no_seam(a: float) -> None:
    value = NonSaturating().generator(torch.tensor([-a], dtype=torch.float64))
    assert value.item() == pytest.approx(max(a, 0.0) + math.log1p(math.exp(-abs(a))), rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@EVERY
def test_half_precision_logits_are_computed_in_full(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]()
    real, fake = (300 * REAL / REAL.abs().max()).to(dtype), (300 * FAKE / FAKE.abs().max()).to(dtype)
    for value, full in [
        (loss.discriminator(real, fake), loss.discriminator(real.double(), fake.double())),
        (loss.generator(fake, real), loss.generator(fake.double(), real.double())),
    ]:
        assert value.dtype == torch.float32  # 300^2 would overflow float16
        assert value.item() == pytest.approx(float(full), rel=1e-6)


@pytest.mark.parametrize("loss", [NonSaturating(), Saturating()])
def test_zero_logits_cost_two_bits(loss: AdversarialLoss) -> None:
    zero = torch.zeros(5, dtype=torch.float64)
    assert float(loss.discriminator(zero, zero)) == pytest.approx(2 * math.log(2), rel=1e-15)


def test_the_optimal_discriminator_is_the_density_ratio() -> None:
    # Two distributions on four points, as batches with these counts.
    p, q = torch.tensor([5, 1, 2, 2]), torch.tensor([1, 4, 2, 3])
    best = (p.double() / q).log().requires_grad_()
    value = NonSaturating().discriminator(best.repeat_interleave(p), best.repeat_interleave(q))
    (gradient,) = torch.autograd.grad(value, best)
    assert gradient.abs().max() < 1e-16
    p, q = p.double() / 10, q.double() / 10
    m = (p + q) / 2
    jsd = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    assert value.item() == pytest.approx(2 * math.log(2) - 2 * float(jsd), rel=1e-14)


def test_least_squares_optimum_is_the_posterior() -> None:
    p, q = torch.tensor([5, 1, 2, 2]), torch.tensor([1, 4, 2, 3])
    best = (p.double() / (p + q)).requires_grad_()
    value = LeastSquares().discriminator(best.repeat_interleave(p), best.repeat_interleave(q))
    assert torch.autograd.grad(value, best)[0].abs().max() < 1e-16


def test_saturating_is_the_minimax_game() -> None:
    loss = Saturating()
    fake = FAKE.clone().requires_grad_()
    (of_d,) = torch.autograd.grad(loss.discriminator(REAL, fake), fake)
    (of_g,) = torch.autograd.grad(loss.generator(fake), fake)
    torch.testing.assert_close(of_g, -of_d, rtol=0, atol=0)
    value = REAL.sigmoid().log().mean() + (1 - FAKE.sigmoid()).log().mean()
    assert float(-loss.discriminator(REAL, FAKE)) == pytest.approx(value.item(), rel=1e-13)
    assert float(loss.generator(FAKE)) == pytest.approx(float((1 - FAKE.sigmoid()).log().mean()), rel=1e-13)


def test_the_saturating_gradient_vanishes_and_the_other_does_not() -> None:
    fake = torch.full((2,), -30.0, dtype=torch.float64, requires_grad=True)
    (saturating,) = torch.autograd.grad(Saturating().generator(fake), fake)
    (strong,) = torch.autograd.grad(NonSaturating().generator(fake), fake)
    assert saturating.abs().max() < 1e-12
    torch.testing.assert_close(strong, torch.full_like(strong, -0.5))


def test_hinge_by_hand() -> None:
    real = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([-3.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    value = Hinge().discriminator(real, fake)
    assert value.item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3, rel=1e-15)
    of_real, of_fake = torch.autograd.grad(value, (real, fake))
    torch.testing.assert_close(of_real, torch.tensor([0.0, -1.0, -1.0], dtype=torch.float64) / 3)
    torch.testing.assert_close(of_fake, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64) / 3)


@pytest.mark.parametrize("loss", [Wasserstein(), RelativisticPairing()])
def test_a_constant_added_to_the_critic_changes_nothing(loss: AdversarialLoss) -> None:
    moved = loss.discriminator(REAL + 5, FAKE + 5)
    assert float(moved) == pytest.approx(float(loss.discriminator(REAL, FAKE)), rel=1e-13)


def test_relativistic_pairing_is_symmetric_and_paired() -> None:
    loss = RelativisticPairing()
    assert loss.paired
    assert torch.equal(loss.generator(FAKE, REAL), loss.discriminator(FAKE, REAL))
    assert float(loss.discriminator(REAL, REAL)) == pytest.approx(math.log(2), rel=1e-15)
    # Partners matter: another order of one batch is another value.
    assert float(loss.discriminator(REAL, FAKE)) != pytest.approx(
        float(loss.discriminator(REAL, FAKE.flip(0))), rel=1e-3
    )


def test_relativistic_pairing_without_real_logits_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"got no real logits.*generator\(fake, real\).*non_saturating"):
        RelativisticPairing().generator(FAKE)


@pytest.mark.parametrize("other", [REAL[:5], REAL[:, None], REAL[:1]])
def test_relativistic_pairing_refuses_unequal_batches(other: Tensor) -> None:
    loss = RelativisticPairing()
    with pytest.raises(ValueError, match="same shape"):
        loss.discriminator(other, FAKE)
    with pytest.raises(ValueError, match="same shape"):
        loss.generator(FAKE, other)


def test_names() -> None:
    assert set(LOSSES) == {
        "saturating",
        "non_saturating",
        "least_squares",
        "hinge",
        "wasserstein",
        "relativistic_pairing",
    }
    assert [name for name, loss in LOSSES.items() if loss.paired] == ["relativistic_pairing"]
    assert repr(LOSSES["hinge"]()) == "Hinge()"
