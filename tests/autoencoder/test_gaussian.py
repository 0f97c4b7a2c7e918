"""The diagonal Gaussian against torch.distributions, and its divergence at its edges."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from lightning_gen.autoencoder.gaussian import LOGVAR_RANGE, DiagonalGaussian
from lightning_gen.autoencoder.priors import StandardNormal
from lightning_gen.seeding import GeneratorStream


@pytest.fixture
def described():
    return torch.randn(5, 6, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def theirs(q, dims):
    return Independent(Normal(q.mean, q.std), dims)


def test_density_and_divergence_are_those_of_torch(described):
    q = DiagonalGaussian.of(described)
    other = theirs(q, 3)
    z = torch.randn(4, 5, 3, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), other.log_prob(z), rtol=1e-13, atol=0)
    torch.testing.assert_close(q.log_prob(z[0]), other.log_prob(z[0]), rtol=1e-13, atol=0)
    standard = Independent(Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean)), 3)
    torch.testing.assert_close(q.kl(), kl_divergence(other, standard), rtol=1e-13, atol=0)


def test_the_divergence_is_zero_for_the_prior_alone_and_never_below(described):
    zero = DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3))
    assert torch.equal(zero.kl(), torch.zeros(2))
    near = DiagonalGaussian(torch.zeros(1, 200), torch.linspace(-1e-3, 1e-3, 200)[None])
    assert (near.kl_per_dimension() >= 0).all()
    assert (DiagonalGaussian.of(described).kl() > 0).all()


def test_draws_have_its_mean_and_variance_and_pass_gradients():
    mean = torch.tensor([[1.0, -2.0]], requires_grad=True)
    logvar = torch.tensor([[0.5, -1.0]], requires_grad=True)
    q = DiagonalGaussian(mean.expand(100_000, 2), logvar.expand(100_000, 2))
    drawn = q.sample(GeneratorStream(torch.Generator().manual_seed(0), 100_000))
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), logvar[0].exp(), rtol=0.02, atol=0)
    drawn.sum().backward()
    assert torch.equal(mean.grad, torch.full((1, 2), 100_000.0))
    assert logvar.grad.isfinite().all()


def test_a_log_variance_is_kept_in_range():
    q = DiagonalGaussian.of(torch.tensor([[0.0, 0.0, 1e9, -1e9]]))
    assert q.logvar.tolist() == [[LOGVAR_RANGE[1], LOGVAR_RANGE[0]]]
    assert q.kl().isfinite().all()


def test_the_standard_normal_prior(described):
    q = DiagonalGaussian.of(described[:, :, 0, 0])
    prior = StandardNormal(3)
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    expected = Independent(Normal(torch.zeros(3).double(), torch.ones(3).double()), 1).log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(prior.kl(q).sum(1), q.kl(), rtol=0, atol=0)
    assert prior.sample(GeneratorStream(None, 7)).shape == (7, 3)
    with pytest.raises(ValueError, match="latent_dim is 1 or more"):
        StandardNormal(0)
