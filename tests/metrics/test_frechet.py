import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from lightning_gen.metrics import frechet_distance, frechet_distance_from_features, trace_sqrt_product

D = 24


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wishart(d, n, seed):
    x = normal(n, d, seed=seed)
    return x.T @ x / n


def test_shifted_gaussians_are_as_far_apart_as_their_means():
    sigma, mu = wishart(D, 100, 1), normal(D)
    shift = normal(D, seed=2)
    assert frechet_distance(mu, sigma, mu + shift, sigma) == pytest.approx(float(shift @ shift), rel=1e-11)


def test_commuting_covariances_have_the_closed_form():
    q = torch.linalg.qr(normal(D, D))[0]
    a, b = torch.linspace(0.1, 4, D).double(), torch.linspace(3, 0.5, D).double()
    mu = torch.zeros(D).double()
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(mu, q * a @ q.T, mu, q * b @ q.T) == pytest.approx(expected, rel=1e-11)


# 1300 is above the size from which blocks are skipped
@pytest.mark.parametrize(("d", "n"), [(D, 100), (64, 5000), pytest.param(1300, 3000, marks=pytest.mark.slow)])
def test_agrees_with_the_matrix_square_root_of_scipy(d, n):
    a, b = wishart(d, n, 1), wishart(d, n, 2) * torch.linspace(0.5, 2, d).double().outer(torch.linspace(0.5, 2, d))
    expected = np.trace(sqrtm((a @ b).numpy()).real)
    assert trace_sqrt_product(a, b) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("d", [1, 2, 511, 600, 1037])
def test_skipped_blocks_are_zero(d):
    from lightning_gen.metrics.frechet import _gram, _transposed_product

    a, b = normal(d, d).tril(), normal(d, d, seed=1).tril()
    product = _transposed_product(a, b)
    torch.testing.assert_close(product, a.T @ b, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(_gram(product).tril(), (product @ product.T).tril(), rtol=1e-12, atol=1e-9)


def test_rank_deficient_on_one_side_or_both():
    k1, k2, full = normal(D, 7), normal(D, 11, seed=1), wishart(D, 100, 2)
    one = float(np.sqrt(np.linalg.eigvalsh((k1.T @ full @ k1).numpy())).sum())
    assert trace_sqrt_product(k1 @ k1.T, full) == pytest.approx(one, rel=1e-11)
    assert trace_sqrt_product(full, k1 @ k1.T) == pytest.approx(one, rel=1e-11)
    both = float(np.linalg.svd((k1.T @ k2).numpy(), compute_uv=False).sum())
    assert trace_sqrt_product(k1 @ k1.T, k2 @ k2.T) == pytest.approx(both, rel=1e-11)


@pytest.mark.parametrize(("n", "m"), [(8, 12), (8, 200), (200, 8), (200, 300)])
def test_from_features_agrees_with_moments_and_numpy(n, m):
    x, y = normal(n, D), normal(m, D, seed=1) * 1.5 + 0.3
    value = frechet_distance_from_features(x, y)
    moments = [(f.mean(0), torch.from_numpy(np.cov(f.numpy(), rowvar=False))) for f in (x, y)]
    assert value == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-10)
    root = sqrtm((moments[0][1] @ moments[1][1]).numpy() + 0j).real.trace()
    mean = float((moments[0][0] - moments[1][0]).square().sum())
    slow = mean + float(moments[0][1].trace() + moments[1][1].trace()) - 2 * root
    # a square root turns the zeros of a singular matrix from 1e-16 into 1e-8: the oracle is no better
    assert value == pytest.approx(slow, rel=1e-10 if min(n, m) > D else 1e-5)


def test_agrees_with_torch_fidelity_at_full_rank():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = normal(2000, 64), normal(3000, 64, seed=1) * 1.2 + 0.1
    theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)
    assert frechet_distance_from_features(x, y) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


@pytest.mark.parametrize("n", [5, 300])
def test_identical_sets_and_collapse_are_finite_and_not_negative(n):
    x = normal(n, D)
    assert 0 <= frechet_distance_from_features(x, x.clone()) < 1e-9
    constant = torch.ones(n, D).double()
    expected = float((1 - x.mean(0)).square().sum() + x.var(0).sum())
    assert frechet_distance_from_features(constant, x) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance_from_features(constant, constant * 2) == pytest.approx(D, rel=1e-12)


def test_symmetric_and_of_float32_features():
    x, y = normal(100, D), normal(150, D, seed=1)
    assert frechet_distance_from_features(x, y) == pytest.approx(frechet_distance_from_features(y, x), rel=1e-11)
    single = frechet_distance_from_features(x.float(), y.float())
    double = frechet_distance_from_features(x.float().double(), y.float().double())
    assert single == double


def test_bias_falls_with_the_number_of_samples():
    distances = [frechet_distance_from_features(normal(n, 64), normal(n, 64, seed=1)) for n in (500, 1000, 5000)]
    assert distances[0] > 1.8 * distances[1] > 1.8 * 4.5 * distances[2] > 0


def test_refusals():
    mu, sigma = torch.zeros(D), torch.eye(D)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mu, sigma * float("nan"), mu, sigma)
    with pytest.raises(ValueError, match="24 and 3 features"):
        frechet_distance(mu, sigma, torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="mean \\(d,\\)"):
        frechet_distance(mu, torch.eye(3), mu, sigma)
    with pytest.raises(ValueError, match="at least 2 samples"):
        frechet_distance_from_features(torch.zeros(1, D), torch.zeros(4, D))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance_from_features(torch.full((4, D), float("inf")), torch.zeros(4, D))
    with pytest.raises(ValueError, match="24 and 3"):
        frechet_distance_from_features(torch.zeros(4, D), torch.zeros(4, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_a_gpu():
    a, b = wishart(64, 500, 1), wishart(64, 500, 2)
    assert trace_sqrt_product(a.cuda(), b.cuda()) == pytest.approx(trace_sqrt_product(a, b), rel=1e-11)
