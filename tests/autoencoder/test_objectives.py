"""Objectives against closed forms, plain loops and enumeration."""

import itertools
import math

import pytest
import torch
from linear import D, bound, exact_noise, linear_net, log_evidence, some_images

from lightning_gen.autoencoder import ELBO, IWAE, BetaTC, GaussianLatents, InfoVAE, Ladder
from lightning_gen.autoencoder.beta_tc import densities, log_weights
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.info_vae import kernel, mean_discrepancy
from lightning_gen.autoencoder.latents import Inferred
from lightning_gen.autoencoder.objectives import Setting, Terms, log_mean_exp
from lightning_gen.seeding import GeneratorStream


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setting(images=0, model=None, n=6, data_size=40):
    stream = GeneratorStream(torch.Generator().manual_seed(9), n, dtype=torch.float64)
    return Setting(model or GaussianLatents(3), stream, images, data_size)


def terms(samples=1, n=6, seed=0, requires_grad=False):
    """Make up a batch: posteriors, draws of them and log-likelihoods that depend on the draws."""
    features = normal(n, 6, seed=seed).requires_grad_(requires_grad)
    drawn = GaussianLatents(3).infer(features, normal(samples, n, 3, seed=seed + 1))
    return Terms(-3 * (drawn.z - 0.5).square().sum(-1), drawn), features


def gradient(loss, features):
    return torch.autograd.grad(loss.mean(), features, retain_graph=True)[0]


# ---------------------------------------------------------------------- the bound


@pytest.mark.parametrize("exact", [True, False])
def test_the_bound_of_a_linear_model_is_its_closed_form(exact):
    """Of probabilistic principal components all is known; where q is the true posterior, the bound is log p(x)."""
    net, x = linear_net(exact), some_images()
    said = net.terms(net.encoder(x), x, exact_noise(len(x)))
    loss = ELBO(samples=2 * D)(said, setting()).total
    torch.testing.assert_close(-loss, bound(net, x), rtol=0, atol=1e-10)
    gap = log_evidence(net, x) + loss
    assert (gap.abs().max() < 1e-10) if exact else (gap.min() > 0.01)


def test_gradients_are_those_of_the_closed_form():
    net, x = linear_net(False), some_images()
    said = net.terms(net.encoder(x), x, exact_noise(len(x)))
    parameters = list(net.parameters())
    found = torch.autograd.grad(ELBO(samples=2 * D)(said, setting()).total.mean(), parameters)
    wanted = torch.autograd.grad(-bound(net, x).mean(), parameters)
    for first, second in zip(found, wanted, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-10)


def test_the_divergence_is_summed_over_dimensions_and_zero_at_the_prior_alone():
    prior = torch.zeros(4, 6, dtype=torch.float64)
    drawn = GaussianLatents(3).infer(prior, normal(1, 4, 3))
    assert torch.equal(drawn.kl, torch.zeros(1, 4, 3, dtype=torch.float64))
    said, features = terms()
    assert (said.latents.kl > 0).all()
    first, second = features[:, :3], features[:, 3:]
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(first, (0.5 * second).exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    torch.testing.assert_close(said.kl, expected, rtol=0, atol=1e-12)


def test_beta_weighs_and_warms_up():
    said, _ = terms()
    rising = ELBO(beta=4.0, warmup=1000)
    for images, weight in ((0, 0.0), (250, 1.0), (1000, 4.0), (9999, 4.0)):
        assert rising.beta_at(images) == weight
        losses = rising(said, setting(images))
        torch.testing.assert_close(losses.total, weight * said.kl - said.log_px[0], rtol=0, atol=1e-12)
        assert losses.logs["beta"].item() == weight
    assert ELBO(0.5).beta_at(0) == 0.5


def test_the_capacity_rises():
    said, _ = terms()
    objective = ELBO(beta=100.0, capacity=25.0, capacity_images=1000)
    for images, capacity in ((0, 0.0), (100, 2.5), (1000, 25.0), (5000, 25.0)):
        losses = objective(said, setting(images))
        expected = 100 * (said.kl - capacity).abs() - said.log_px[0]
        torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-12)
    assert ELBO(capacity=3.0).capacity_at(0) == 3.0


def test_free_bits_are_counted_on_average_over_the_batch():
    """Eq. 15: the larger of lambda and the batch's mean, dimension by dimension; below it there is no gradient."""
    said, features = terms(requires_grad=True)
    means = said.latents.kl[0].mean(0)
    free = means.sort().values[1].item() - 1e-9  # one dimension below, two above
    losses = ELBO(free_bits=free)(said, setting())
    expected = means.clamp(min=free).sum() - said.log_px.mean()
    torch.testing.assert_close(losses.total.mean(), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(losses.total, features), gradient(expected, features), rtol=0, atol=1e-12)


def test_free_bits_of_layers():
    ladder = Ladder([2, 3], [6, 5], "tanh").double()
    drawn = ladder.infer(normal(4, 6), normal(1, 4, 5))
    said = Terms(normal(1, 4), drawn)
    losses = ELBO(free_bits=0.7, free_bits_of="layer")(said, setting(model=ladder))
    first, second = drawn.kl[0, :, :2].sum(1).mean(), drawn.kl[0, :, 2:].sum(1).mean()
    expected = first.clamp(min=0.7) + second.clamp(min=0.7) - said.log_px.mean()
    torch.testing.assert_close(losses.total.mean(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("samples", "numbers"), [(50, [1, 2, 4, 8, 16, 32]), (4, [1, 2]), (1, [])])
def test_draws_double_up_to_those_asked_for(samples, numbers):
    objective = IWAE(samples, warmup=600)
    each = [objective.samples_at(images) for images in range(600)]
    assert each == [number for number in numbers for _ in range(600 // len(numbers))] or not numbers
    assert objective.samples_at(600) == objective.samples_at(10**9) == samples
    assert IWAE(samples).samples_at(0) == samples
    assert ELBO(samples=3).samples_at(0) == 3


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="beta is 0 or more; given was -1"):
        ELBO(-1)
    with pytest.raises(ValueError, match="set one"):
        ELBO(capacity=1.0, free_bits=1.0)
    with pytest.raises(ValueError, match="samples is the number of draws"):
        IWAE(0)
    with pytest.raises(ValueError, match="warmup is a number of images"):
        IWAE(5, warmup=-1)
    with pytest.raises(ValueError, match="Did you mean 'layer'"):
        ELBO(free_bits_of="layers")
    with pytest.raises(ValueError, match="alpha of at most 1"):
        InfoVAE(2.0)
    with pytest.raises(ValueError, match="estimator"):
        BetaTC(estimator="other")
    with pytest.raises(ValueError, match="leave posterior_flow and ladder out"):
        BetaTC().check(Ladder())


# ---------------------------------------------------------------------- importance weights


def test_the_importance_weighted_bound_of_the_true_posterior_is_the_evidence():
    """All weights are p(x), whatever was drawn."""
    net, x = linear_net(), some_images()
    said = net.terms(net.encoder(x), x, normal(7, len(x), D))
    torch.testing.assert_close(said.log_weights, log_evidence(net, x).expand(7, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(-IWAE(7)(said, setting()).total, log_evidence(net, x), rtol=0, atol=1e-10)


def test_more_draws_bound_more_tightly_and_never_from_above():
    net, x = linear_net(False), some_images(1)
    with torch.no_grad():
        weights = net.terms(net.encoder(x), x, normal(64_000, 1, D)).log_weights.view(-1)
        evidence = log_evidence(net, x).item()
    bounds, errors = [], []
    for samples in (1, 5, 50, 500):
        each = log_mean_exp(weights.view(samples, -1))
        bounds.append(each.mean().item())
        errors.append(each.std().item() / each.numel() ** 0.5)
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(bound(net, x).item(), abs=4 * errors[0])
    assert all(value < evidence + 4 * error for value, error in zip(bounds, errors, strict=True))
    assert bounds[-1] == pytest.approx(evidence, abs=0.05)
    assert bounds[0] < evidence - 0.2  # the test can fail


def test_the_logged_bound_is_not_the_weighted_mean_of_logs():
    """The latter, which some publish, is larger than the truth."""
    said, _ = terms(samples=5)
    weights = said.log_weights
    wrong = (torch.softmax(weights, 0) * weights).sum(0)
    right = -IWAE(5)(said, setting()).total
    torch.testing.assert_close(right, weights.exp().mean(0).log(), rtol=0, atol=1e-12)
    assert (wrong > right + 1e-3).all()


def test_gradients_pass_through_all_of_the_importance_weighted_bound():
    """It is the gradient of each log weight, weighted by its normalized weight (eq. 13)."""
    said, features = terms(samples=4, requires_grad=True)
    found = gradient(IWAE(4)(said, setting()).total, features)
    normalized = torch.softmax(said.log_weights, 0).detach()
    wanted = gradient(-(normalized * said.log_weights).sum(0), features)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    said, features = terms(samples=1, requires_grad=True)
    one = gradient(IWAE(1)(said, setting()).total, features)
    direct = said.latents.log_q - said.latents.log_p - said.log_px
    torch.testing.assert_close(one, gradient(direct[0], features), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- total correlation


def naive_beta_tc(said, alpha, beta, gamma, size):
    """Follow the definition, image by image and dimension by dimension."""
    z, posterior = said.latents.z[0], said.latents.posterior
    losses = []
    for i in range(len(z)):
        each = torch.stack(
            [torch.distributions.Normal(posterior.mean[j], posterior.std[j]).log_prob(z[i]) for j in range(len(z))]
        )
        log_q, scale = each[i].sum(), math.log(size * len(z))
        log_qz = torch.logsumexp(each.sum(1), 0) - scale
        log_product = sum(torch.logsumexp(each[:, d], 0) - scale for d in range(z.shape[1]))
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z[i]).sum()
        divergence = alpha * (log_q - log_qz) + beta * (log_qz - log_product) + gamma * (log_product - log_p)
        losses.append(divergence - said.log_px[0, i])
    return torch.stack(losses)


def test_the_three_parts_are_those_of_the_definition():
    said, features = terms(requires_grad=True)
    losses = BetaTC(0.5, 6.0, 2.0)(said, setting())
    expected = naive_beta_tc(said, 0.5, 6.0, 2.0, 40)
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient(losses.total, features), gradient(expected, features), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
def test_equal_weights_give_the_bound(estimator):
    said, _ = terms()
    losses = BetaTC(1.0, 1.0, 1.0, estimator)(said, setting())
    torch.testing.assert_close(losses.total, -said.log_weights[0], rtol=0, atol=1e-12)


def test_the_size_of_the_data_and_of_the_batch_are_in_the_estimate():
    said, _ = terms()
    small, large = (BetaTC(1, 0, 0)(said, setting(data_size=size)).total for size in (10, 1000))
    torch.testing.assert_close(large - small, torch.full_like(small, math.log(100)), rtol=0, atol=1e-12)
    given = BetaTC(1, 0, 0, data_size=1000)(said, setting(data_size=10)).total
    assert torch.equal(given, large)
    weights = log_weights("weighted", 3, 3, 10)
    assert torch.equal(weights, torch.full((3, 3), -math.log(30), dtype=torch.float64))


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_the_stratified_estimate_is_unbiased(batch):
    """Averaged over all batches of 5 images that hold the first one, it is the density of all 5."""
    posteriors, z = DiagonalGaussian(normal(5, 2), normal(5, 2, seed=1)), normal(1, 2, seed=2)
    exact = densities(z, posteriors).sum(2).exp().mean()
    found = []
    for others in itertools.permutations(range(1, 5), batch - 1):
        rows = DiagonalGaussian(*(part[[0, *others]] for part in posteriors))
        weights = log_weights("stratified", 1, batch, 5)
        assert weights.exp().sum().item() == pytest.approx(1, abs=1e-12)
        found.append((densities(z, rows).sum(2) + weights).exp().sum())
    torch.testing.assert_close(torch.stack(found).mean(), exact, rtol=0, atol=1e-12)


def test_rows_of_two_processes_have_their_own_image_in_the_joined_batch():
    whole = log_weights("stratified", 6, 6, 40)
    shares = [log_weights("stratified", 3, 6, 40, rank, 2) for rank in range(2)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), whole)
    assert whole.exp().diagonal().tolist() == [1 / 40] * 6


# ---------------------------------------------------------------------- mean discrepancy


def test_the_discrepancy_of_normal_distributions_has_a_closed_form():
    """E k of N(0, I) and N(m, s^2 I) with a Gaussian kernel is a Gaussian integral."""
    n, dims, width = 1000, 3, 0.8
    x, y = normal(20, n, dims), 0.6 * normal(20, n, dims, seed=1) + 0.5
    scale = width**2 * dims

    def expected(variance, distance):
        return (scale / (scale + variance)) ** (dims / 2) * math.exp(-distance / (2 * (scale + variance)))

    across = torch.stack([kernel(a, b, [width]).mean() for a, b in zip(x, y, strict=True)])
    assert across.mean().item() == pytest.approx(expected(1.36, dims * 0.25), abs=0.005)
    wanted = expected(2, 0) + expected(0.72, 0) - 2 * expected(1.36, dims * 0.25)
    found = torch.stack([mean_discrepancy(a, b, [width]) for a, b in zip(x, y, strict=True)])
    assert found.mean().item() == pytest.approx(wanted, abs=4 * found.std().item() / 20**0.5)
    assert wanted > 10 * found.std().item() / 20**0.5


def test_the_discrepancy_is_the_unbiased_sum_over_pairs():
    x, y, widths = normal(4, 3), normal(5, 3, seed=1), [0.5, 2.0]

    def k(a, b):
        return sum(math.exp(-((a - b) ** 2).sum().item() / (2 * w**2 * 3)) for w in widths) / 2

    within = [
        sum(k(a, b) for i, a in enumerate(p) for j, b in enumerate(p) if i != j) / (len(p) * (len(p) - 1))
        for p in (x, y)
    ]
    across = sum(k(a, b) for a in x for b in y) / 20
    assert mean_discrepancy(x, y, widths).item() == pytest.approx(sum(within) - 2 * across, abs=1e-12)
    with pytest.raises(ValueError, match="2 or more latents"):
        mean_discrepancy(x[:1], y, widths)


def test_info_vae_without_its_share_is_the_bound():
    said, _ = terms()
    losses = InfoVAE(0.0, 1.0)(said, setting())
    torch.testing.assert_close(losses.total, said.kl - said.log_px[0], rtol=0, atol=1e-12)


def test_info_vae_holds_all_latents_together_to_the_prior():
    said, features = terms(requires_grad=True)
    losses = InfoVAE(1.0, 50.0, [1.0])(said, setting())
    drawn = GaussianLatents(3).sample(setting().stream)
    expected = 50 * mean_discrepancy(said.latents.z[0], drawn, [1.0]) - said.log_px[0]
    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-12)
    assert gradient(losses.total, features).isfinite().all()


def test_an_estimated_divergence_is_that_of_the_draws():
    z, log_q, log_p = normal(2, 4, 3), normal(2, 4, seed=1), normal(2, 4, seed=2)
    said = Terms(normal(2, 4, seed=3), Inferred(z, log_q, log_p, (log_q - log_p).unsqueeze(-1)))
    torch.testing.assert_close(said.elbo, said.log_weights.mean(0), rtol=0, atol=1e-12)
