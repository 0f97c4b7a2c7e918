"""Priors of latents against scikit-learn, zuko and numeric integration."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
import zuko
from scipy import stats
from sklearn.mixture import GaussianMixture

from lightning_gen.autoencoder.fitting import fit_prior
from lightning_gen.autoencoder.flow_priors import FlowPrior, GaussianMixturePrior
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.errors import MissingExtra
from lightning_gen.seeding import GeneratorStream, SampleStreams


def flow(dim=2, seed=0, moved=True, **arguments):
    """A flow whose weights do something, shifted and scaled."""
    torch.manual_seed(seed)
    prior = FlowPrior(dim, **({"hidden": [8], "transforms": 2} | arguments)).double()
    if moved:
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.mul_(1.5)
        prior.standardize(torch.tensor([[-1.0, 2.0, 0.0], [1.5, 5.0, 0.6]]).double()[:, :dim])
    return prior


def mixture(seed=0, dim=2, components=3):
    """A mixture fitted by scikit-learn, and the same one here."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(components, dim)) * 3
    shapes = generator.normal(size=(components, dim, dim))
    x = np.concatenate([c + generator.normal(size=(100, dim)) @ s for c, s in zip(centers, shapes, strict=True)])
    theirs = GaussianMixture(components, random_state=0).fit(x)
    ours = GaussianMixturePrior(dim, components).double()
    ours.weights.copy_(torch.from_numpy(theirs.weights_))
    ours.means.copy_(torch.from_numpy(theirs.means_))
    ours.scale_trils.copy_(torch.linalg.cholesky(torch.from_numpy(theirs.covariances_)))
    return ours, theirs, torch.from_numpy(x)


# ---------------------------------------------------------------------- densities


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_mixture_has_scikit_learns_density(dim):
    ours, theirs, x = mixture(dim=dim)
    torch.testing.assert_close(ours.log_prob(x), torch.from_numpy(theirs.score_samples(x)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.log_prob(x.view(3, 100, dim)), ours.log_prob(x).view(3, 100))
    assert ours.log_prob(x[0]).shape == ()


def test_the_mixture_has_scipys_density():
    ours, _, x = mixture()
    covariances = ours.scale_trils @ ours.scale_trils.mT
    densities = [
        weight * stats.multivariate_normal(mean, covariance).pdf(x)
        for weight, mean, covariance in zip(ours.weights.numpy(), ours.means.numpy(), covariances.numpy(), strict=True)
    ]
    torch.testing.assert_close(ours.log_prob(x), torch.from_numpy(np.log(sum(densities))), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["nsf", "maf"])
def test_the_flow_has_zukos_density(kind):
    """Of standardized latents, less the logarithm of the scale."""
    torch.manual_seed(0)
    prior = flow(3, kind=kind, moved=False)
    torch.manual_seed(0)
    made = {"nsf": zuko.flows.NSF, "maf": zuko.flows.MAF}[kind](3, transforms=2, hidden_features=[8]).double()
    made.load_state_dict(prior.flow.state_dict())
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(x), made().log_prob(x), rtol=0, atol=1e-14)
    prior.standardize(x.flatten(0, 1))
    u = (x - prior.shift) / prior.scale
    torch.testing.assert_close(u.flatten(0, 1).mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(prior.log_prob(x), made().log_prob(u) - prior.scale.log().sum(), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["nsf", "maf"])
def test_the_flows_density_integrates_to_one(kind):
    line = torch.linspace(-12, 12, 80_001, dtype=torch.float64)
    total = float(flow(1, kind=kind).log_prob(line[:, None]).exp().sum()) * float(line[1] - line[0])
    assert total == pytest.approx(1, abs=1e-4)
    rows, columns = (torch.linspace(*ends, 601, dtype=torch.float64) for ends in ((-12, 12), (-10, 17)))
    density = flow(2, kind=kind).log_prob(torch.cartesian_prod(rows, columns)).exp()
    assert float(density.sum()) * float((rows[1] - rows[0]) * (columns[1] - columns[0])) == pytest.approx(1, abs=3e-4)


def test_the_mixtures_density_integrates_to_one():
    ours, _, _ = mixture()
    side = torch.linspace(-20, 20, 1601, dtype=torch.float64)
    total = float(ours.log_prob(torch.cartesian_prod(side, side)).exp().sum()) * float(side[1] - side[0]) ** 2
    assert total == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------------- samples


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{"kind": "nsf"}, {"kind": "maf"}, {"kind": "nsf", "passes": 2}])
def test_draws_of_the_flow_are_the_noise_mapped_back(arguments):
    prior = flow(3, **arguments)
    drawn = prior.sample(SampleStreams(4, 0, 50, dtype=torch.float64))
    noise = SampleStreams(4, 0, 50, dtype=torch.float64).normal(3)
    back = prior.flow().transform((drawn - prior.shift) / prior.scale)
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-6)


@torch.no_grad()
def test_draws_of_a_flow_are_of_its_density():
    """In one dimension: the distribution function, by integration, makes them uniform."""
    prior = flow(1)
    drawn = prior.sample(GeneratorStream(torch.Generator().manual_seed(0), 4000, dtype=torch.float64))[:, 0]
    points = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    cumulative = prior.log_prob(points[:, None]).exp().cumsum(0) * float(points[1] - points[0])
    uniform = np.interp(drawn.numpy(), points.numpy(), cumulative.numpy())
    assert stats.kstest(uniform, "uniform").pvalue > 0.01


def test_draws_of_the_mixture_have_its_moments():
    ours, _, _ = mixture()
    drawn = ours.sample(GeneratorStream(torch.Generator().manual_seed(0), 200_000, dtype=torch.float64))
    mean = ours.weights @ ours.means
    offsets = ours.means - mean
    covariance = (ours.scale_trils @ ours.scale_trils.mT + offsets[:, :, None] * offsets[:, None]) * ours.weights[
        :, None, None
    ]
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.T.cov(), covariance.sum(0), rtol=0, atol=0.15)


@torch.no_grad()
@pytest.mark.parametrize("make", [flow, lambda: mixture()[0]], ids=["flow", "mixture"])
def test_draws_come_from_the_stream_alone(make):
    prior = make()
    before = torch.get_rng_state()
    drawn = prior.sample(SampleStreams(1, 0, 6, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn.shape == (6, 2)
    parts = [prior.sample(SampleStreams(1, first, 3, dtype=torch.float64)) for first in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), drawn, rtol=0, atol=1e-10)
    assert prior.kl(DiagonalGaussian(drawn, drawn)) is None


# ---------------------------------------------------------------------- as modules


@pytest.mark.parametrize("make", [flow, lambda: mixture()[0]], ids=["flow", "mixture"])
def test_autocast_leaves_a_prior_its_precision(make):
    prior, z = make().float(), torch.randn(5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = prior.log_prob(z), prior.sample(SampleStreams(0, 0, 4))
    assert torch.equal(inside[0], prior.log_prob(z))
    torch.testing.assert_close(inside[1], prior.sample(SampleStreams(0, 0, 4)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [flow, lambda: mixture()[0]], ids=["flow", "mixture"])
def test_all_is_in_the_state(make, tmp_path):
    prior = make()
    torch.save(prior.state_dict(), tmp_path / "prior.pt")
    other = FlowPrior(2, hidden=[8], transforms=2) if isinstance(prior, FlowPrior) else GaussianMixturePrior(2, 3)
    other.double().load_state_dict(torch.load(tmp_path / "prior.pt", weights_only=True))
    x = torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(other.log_prob(x), prior.log_prob(x))
    assert torch.equal(copy.deepcopy(prior).log_prob(x), prior.log_prob(x))


@pytest.mark.parametrize("kind", ["nsf", "maf"])
def test_gradients_reach_latents_and_weights(kind):
    prior = flow(3, kind=kind)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    prior.log_prob(z).sum().backward()
    assert z.grad.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in prior.parameters())


def test_a_dimension_that_never_changes_keeps_its_scale():
    prior = flow(2, moved=False)
    prior.standardize(torch.tensor([[1.0, 3.0], [1.0, 5.0]], dtype=torch.float64))
    assert prior.scale.tolist() == [1.0, 1.0]
    assert prior.shift.tolist() == [1.0, 4.0]
    assert prior.log_prob(torch.tensor([1.0, 4.0], dtype=torch.float64)).isfinite()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FlowPrior(0), "latent_dim"),
        (lambda: FlowPrior(2, "glow"), "nsf, maf"),
        (lambda: FlowPrior(2, transforms=0), "transforms"),
        (lambda: FlowPrior(2, hidden=[8, 0]), "hidden"),
        (lambda: FlowPrior(2, bins=0), "bins"),
        (lambda: GaussianMixturePrior(2, 0), "components"),
    ],
)
def test_bad_arguments_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lightning_gen\[flows\]'"):
        FlowPrior(2)
    GaussianMixturePrior(2)


# ---------------------------------------------------------------------- fitting


def moons(n=2000, seed=0):
    """A crescent, which no Gaussian is."""
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    around = torch.stack([angle.cos(), angle.sin()], 1) * 10 + 100
    return around + 0.5 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def gaussian_nats(x):
    """The mean log-likelihood of the likeliest Gaussian."""
    _, logdet = torch.linalg.slogdet(x.T.cov(correction=0))
    return float(-0.5 * (logdet + 2 * math.log(2 * math.pi) + 2))


def test_the_mixture_is_scikit_learns_fit():
    latents = moons(500)
    prior = GaussianMixturePrior(2, 4).double()
    fitted = fit_prior(prior, latents, held_out=0.2, seed=3)
    rows = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    train, other = latents[rows][100:], latents[rows][:100]
    theirs = GaussianMixture(4, random_state=3, max_iter=500).fit(train.numpy())
    assert fitted.nats == pytest.approx(theirs.score(train.numpy()), abs=1e-10)
    assert fitted.held_out == pytest.approx(theirs.score(other.numpy()), abs=1e-10)
    assert fitted.held_out > gaussian_nats(latents) + 0.3


@pytest.mark.parametrize(("kind", "gain"), [("nsf", 0.5), ("maf", 0.1)])
def test_a_flow_finds_what_no_gaussian_does(kind, gain):
    latents = moons()
    prior = flow(2, kind=kind, hidden=[32], moved=False)
    fitted = fit_prior(prior, latents, lr=5e-3, max_epochs=40, patience=10)
    fresh = moons(seed=1)
    with torch.no_grad():
        nats = float(prior.log_prob(fresh).mean())
    assert fitted.held_out == pytest.approx(nats, abs=0.25)
    assert nats > gaussian_nats(fresh) + gain
    drawn = prior.sample(GeneratorStream(torch.Generator().manual_seed(0), 1000, dtype=torch.float64)).detach()
    assert float((drawn - 100).norm(dim=1).mean()) == pytest.approx(10, abs=0.5)


def test_what_is_kept_is_the_best_and_patience_ends_the_fit():
    """Few latents and many weights: after some epochs those held out become less likely."""
    latents = moons(40)
    kept = {}
    for patience in (3, 60):
        prior = flow(2, hidden=[64], transforms=3, moved=False)
        fitted = fit_prior(prior, latents, held_out=0.5, lr=0.02, max_epochs=80, patience=patience)
        other = latents[torch.randperm(40, generator=torch.Generator().manual_seed(0))][:20]
        with torch.no_grad():
            assert float(prior.log_prob(other).mean()) == pytest.approx(fitted.held_out, abs=1e-12)
        assert fitted.epochs < 75
        kept[patience] = fitted
    assert kept[60].held_out >= kept[3].held_out
    untouched = flow(2, hidden=[64], transforms=3, moved=False)
    last = fit_prior(untouched, latents, held_out=0.5, lr=0.02, max_epochs=80, patience=80)
    assert last.epochs < 80


def test_a_fit_is_a_function_of_its_seed():
    def fit(seed):
        torch.manual_seed(0)
        prior = FlowPrior(2, hidden=[8]).double()
        torch.rand(int(torch.randint(10, ()).item()) + 1)
        before = torch.get_rng_state()
        fit_prior(prior, latents, seed=seed, max_epochs=2)
        assert torch.equal(torch.get_rng_state(), before)
        return prior.log_prob(latents[:5])

    latents = moons(300)
    assert torch.equal(fit(0), fit(0))
    assert not torch.equal(fit(0), fit(1))


def test_a_frozen_prior_is_fitted_and_stays_frozen():
    """As the prior of samples is, that takes no part in training."""
    latents, fitted = moons(200), []
    for frozen in (True, False):
        prior = flow(2, moved=False).requires_grad_(not frozen)
        fitted.append(fit_prior(prior, latents, max_epochs=3, lr=0.01))
        assert all(p.requires_grad is not frozen and p.grad is None for p in prior.parameters())
    assert fitted[0] == fitted[1]
    assert fitted[0].epochs == 3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_fit_works_where_nothing_has_a_gradient(mode):
    with mode():
        prior, latents = flow(2, moved=False), moons(200)
    prior = flow(2, moved=False)
    with mode():
        before = float(prior.log_prob(latents).mean())
        fitted = fit_prior(prior, latents, max_epochs=3, lr=0.01)
        assert fitted.nats > before + 0.1


@pytest.mark.parametrize(
    ("latents", "how", "told"),
    [
        (torch.zeros(10, 3), {}, r"\(N, 2\)"),
        (torch.full((10, 2), torch.nan), {}, "NaN"),
        (torch.randn(10, 2), {"held_out": 0.0}, "held_out"),
        (torch.randn(10, 2), {"held_out": 0.01}, "held_out"),
        (torch.randn(10, 2), {"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_latents_are_refused(latents, how, told):
    with pytest.raises(ValueError, match=told):
        fit_prior(FlowPrior(2, hidden=[4]), latents, **how)


def test_a_prior_without_anything_to_fit_is_refused():
    from lightning_gen.autoencoder.priors import StandardNormal

    with pytest.raises(ValueError, match="GaussianMixturePrior or a FlowPrior"):
        fit_prior(StandardNormal(2), torch.randn(20, 2))
    with pytest.raises(ValueError, match="as many latents"):
        fit_prior(GaussianMixturePrior(2, 30), torch.randn(20, 2))
