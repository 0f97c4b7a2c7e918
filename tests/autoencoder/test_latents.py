"""Latents in one layer and in several, bent by a flow, or drawn from a mixture of posteriors."""

import copy
import math

import pytest
import torch
from linear import Affine
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from lightning_gen.autoencoder import Bernoulli, GaussianLatents, Ladder, StandardNormal, VAENet, VampPrior
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.ladder import divergence, merged
from lightning_gen.networks.latent_mlp import MLPDecoder, MLPEncoder
from lightning_gen.seeding import GeneratorStream, SampleStreams

SHAPE = (1, 2, 3)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net_of(latents, seed=0):
    torch.manual_seed(seed)
    return VAENet(MLPEncoder([5], SHAPE, activation="tanh"), MLPDecoder([5], SHAPE), latents, Bernoulli()).double()


def test_a_flow_gives_the_density_of_what_it_makes():
    """An affine flow of a Gaussian is a Gaussian."""
    model, features, noise = GaussianLatents(3, flow=Affine(3)), normal(4, 12), normal(5, 4, 3, seed=1)
    assert model.inputs == 12
    drawn = model.infer(features, noise)
    mean, logvar, log_scale, shift = features.chunk(4, dim=1)
    bent = Normal(mean * log_scale.exp() + shift, (0.5 * logvar + log_scale).exp())
    torch.testing.assert_close(drawn.log_q, bent.log_prob(drawn.z).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn.kl[..., 0], drawn.log_q - drawn.log_p, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.mean(features), bent.mean, rtol=0, atol=1e-12)
    assert drawn.posterior is None


def test_one_layer_is_told_by_the_encoder():
    model, features, noise = GaussianLatents(3), normal(4, 6), normal(5, 4, 3, seed=1)
    drawn = model.infer(features, noise)
    posterior = Normal(features[:, :3], (0.5 * features[:, 3:]).exp())
    torch.testing.assert_close(drawn.z, posterior.mean + posterior.stddev * noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn.log_q, posterior.log_prob(drawn.z).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn.log_p, Normal(0.0, 1.0).log_prob(drawn.z).sum(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(drawn.kl[0], kl_divergence(posterior, Normal(0.0, 1.0)), rtol=0, atol=1e-12)
    assert drawn.kl.shape == (5, 4, 3)


def test_a_temperature_is_a_factor_of_the_draws():
    cold = GaussianLatents(3).sample(SampleStreams(0, 0, 4), 0.5)
    assert torch.equal(cold, 0.5 * GaussianLatents(3).sample(SampleStreams(0, 0, 4)))
    with pytest.raises(ValueError, match="leave temperature at 1"):
        net_of(GaussianLatents(3, VampPrior(3, 4))).latents.sample(SampleStreams(0, 0, 4), 0.5)


# ---------------------------------------------------------------------- ladder


def test_the_merge_is_the_product_of_both_densities():
    first, second = (DiagonalGaussian(normal(4, 3, seed=s), normal(4, 3, seed=s + 5)) for s in (0, 1))
    joined = merged(first, second)
    points = normal(7, 1, 3, seed=3)
    product = first.log_prob(points) + second.log_prob(points) - joined.log_prob(points)
    torch.testing.assert_close(product, product[:1].expand_as(product), rtol=0, atol=1e-10)  # constant in z
    precision = torch.exp(-first.logvar) + torch.exp(-second.logvar)
    torch.testing.assert_close(torch.exp(-joined.logvar), precision, rtol=1e-12, atol=0)


def test_divergences_of_gaussians_are_torchs():
    q, p = (DiagonalGaussian(normal(4, 3, seed=s), normal(4, 3, seed=s + 5)) for s in (0, 1))
    expected = kl_divergence(Normal(q.mean, q.std), Normal(p.mean, p.std))
    torch.testing.assert_close(divergence(q, p), expected, rtol=0, atol=1e-12)
    assert torch.equal(divergence(q, q), torch.zeros(4, 3, dtype=torch.float64))


def test_a_ladder_goes_down_by_the_papers_equations():
    torch.manual_seed(0)
    ladder = Ladder([3, 2], [6, 4], "tanh").double()
    features, noise = normal(5, 6), normal(7, 5, 5, seed=1)
    drawn = ladder.infer(features, noise)
    d1 = torch.tanh(features)
    d2 = torch.tanh(ladder.up[0][0](d1))
    mean1, logvar1 = ladder.estimates[0](d1).chunk(2, dim=1)
    mean2, logvar2 = ladder.estimates[1](d2).chunk(2, dim=1)
    top = Normal(mean2, (0.5 * logvar2).exp())
    z2 = top.mean + top.stddev * noise[..., 3:]
    told, told_logvar = ladder.down[0](z2).chunk(2, dim=-1)
    prior = Normal(told, (0.5 * told_logvar).exp())
    precisions = torch.exp(-logvar1), torch.exp(-told_logvar)
    variance = 1 / (precisions[0] + precisions[1])
    posterior = Normal((mean1 * precisions[0] + told * precisions[1]) * variance, variance.sqrt())
    z1 = posterior.mean + posterior.stddev * noise[..., :3]
    torch.testing.assert_close(drawn.z, z1, rtol=0, atol=1e-10)
    standard = Normal(0.0, 1.0)
    log_q = top.log_prob(z2).sum(-1) + posterior.log_prob(z1).sum(-1)
    log_p = standard.log_prob(z2).sum(-1) + prior.log_prob(z1).sum(-1)
    torch.testing.assert_close(drawn.log_q, log_q, rtol=0, atol=1e-10)
    torch.testing.assert_close(drawn.log_p, log_p, rtol=0, atol=1e-10)
    kl = torch.cat([kl_divergence(posterior, prior), kl_divergence(top, standard).expand(7, -1, -1)], dim=-1)
    torch.testing.assert_close(drawn.kl, kl, rtol=0, atol=1e-10)
    assert ladder.layers == (3, 2)
    assert (ladder.latent_dim, ladder.inputs, ladder.noise_dim) == (3, 6, 5)
    torch.testing.assert_close(ladder.mean(features), ladder.infer(features, 0 * noise).z[0], rtol=0, atol=1e-12)


def test_draws_of_a_ladder_come_down_from_the_top():
    torch.manual_seed(0)
    ladder, n = Ladder([3, 2], [6, 4], "tanh").double(), 50_000
    drawn = ladder.sample(GeneratorStream(torch.Generator().manual_seed(1), n, dtype=torch.float64))
    above = normal(n, 2, seed=2)
    told, logvar = ladder.down[0](above).chunk(2, dim=-1)
    torch.testing.assert_close(drawn.mean(0), told.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), told.var(0) + logvar.exp().mean(0), rtol=0.05, atol=0)
    frozen = ladder.sample(SampleStreams(0, 0, 3, dtype=torch.float64), temperature=0.0)
    assert torch.equal(frozen[0], frozen[1])


def test_one_rung_is_one_layer():
    torch.manual_seed(0)
    ladder = Ladder([3], [6], "tanh").double()
    features, noise = normal(4, 6), normal(5, 4, 3, seed=1)
    plain = GaussianLatents(3).infer(ladder.estimates[0](torch.tanh(features)), noise)
    for first, second in zip(ladder.infer(features, noise)[:4], plain[:4], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_wrong_ladders_are_refused():
    with pytest.raises(ValueError, match="a number of hidden units for each"):
        Ladder([3, 2], [6])
    with pytest.raises(ValueError, match="one or more layers"):
        Ladder([], [])


# ---------------------------------------------------------------------- mixture of posteriors


def test_the_vamp_prior_is_a_mixture_of_posteriors():
    net = net_of(GaussianLatents(3, VampPrior(3, 4)))
    prior = net.latents.prior
    mean, logvar = net.encoder(prior.pseudo.clamp(-1, 1)).chunk(2, dim=1)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(4, dtype=torch.float64)), Independent(Normal(mean, (0.5 * logvar).exp()), 1)
    )
    z = normal(2, 5, 3)
    torch.testing.assert_close(prior.log_prob(z), mixture.log_prob(z), rtol=0, atol=1e-12)
    n = 50_000
    drawn = prior.sample(GeneratorStream(torch.Generator().manual_seed(1), n, dtype=torch.float64))
    torch.testing.assert_close(drawn.mean(0), mixture.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), mixture.variance, rtol=0.05, atol=0)
    gradient = torch.autograd.grad(prior.log_prob(z).sum(), [prior.pseudo, net.encoder.head.weight])
    assert all(part.abs().sum() > 0 for part in gradient)


def test_the_best_prior_for_one_image_is_its_posterior():
    """With the image as the one pseudo-input, the divergence is 0 for every draw."""
    net = net_of(GaussianLatents(3, VampPrior(3, 1)))
    x = normal(1, *SHAPE).clamp(-1, 1)
    with torch.no_grad():
        net.latents.prior.pseudo.copy_(x)
    drawn = net.latents.infer(net.encoder(x), normal(6, 1, 3))
    torch.testing.assert_close(drawn.kl, torch.zeros_like(drawn.kl), rtol=0, atol=1e-12)


def test_a_copy_of_the_networks_has_an_encoder_of_its_own():
    net = net_of(GaussianLatents(3, VampPrior(3, 4)))
    other = copy.deepcopy(net)
    before = other.latents.prior.log_prob(normal(2, 3))
    with torch.no_grad():
        net.encoder.head.weight.zero_()
    assert other.latents.prior._encoder[0] is other.encoder
    assert torch.equal(other.latents.prior.log_prob(normal(2, 3)), before)
    assert not any("_encoder" in name for name in net.latents.prior.state_dict())


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="set latent_dim of the prior to 3"):
        GaussianLatents(3, StandardNormal(4))
    with pytest.raises(ValueError, match="VampPrior has no classes"):
        VampPrior(3, 4).attach(MLPEncoder([5], SHAPE, num_classes=2))
    with pytest.raises(ValueError, match="pseudo_inputs"):
        VampPrior(3, 0)
    with pytest.raises(ValueError, match=r"The encoder has image_shape=\(1, 2, 3\), the decoder"):
        VAENet(MLPEncoder([5], SHAPE), MLPDecoder([5], (1, 4, 4)), GaussianLatents(3), Bernoulli())
    net = net_of(GaussianLatents(3))
    with pytest.raises(ValueError, match="was built for 6 outputs and is asked for 8"):
        VAENet(net.encoder, MLPDecoder([5], SHAPE), GaussianLatents(4), Bernoulli())


def test_the_log_density_of_the_prior_integrates_to_one():
    torch.manual_seed(0)
    net = VAENet(MLPEncoder([5], SHAPE), MLPDecoder([5], SHAPE), GaussianLatents(1, VampPrior(1, 3)), Bernoulli())
    z = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    mass = net.double().latents.prior.log_prob(z).exp().sum().item() * 60 / 200_000
    assert math.isclose(mass, 1, abs_tol=1e-8)
