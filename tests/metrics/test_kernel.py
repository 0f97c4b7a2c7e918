import pytest
import torch

from lightning_gen.metrics import kernel_distance


def normal(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    m = len(x)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / m**2


def test_is_the_unbiased_estimate_pair_by_pair():
    x, y = normal(12), normal(12, seed=1) + 0.5
    result = kernel_distance(x, y)
    assert result.value == pytest.approx(by_loops(x, y), rel=1e-12)
    # a subset that is everything is one subset
    assert result[1:] == (None, 1, 12)


def test_agrees_with_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = normal(300, 64), normal(300, 64, seed=1) * 1.1 + 0.2
    theirs = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=300, verbose=False)
    ours = kernel_distance(x, y, subset_size=300)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-11)


def test_subsets_are_drawn_by_the_seed_alone():
    x, y = normal(200), normal(150, seed=1) + 0.3
    state = torch.get_rng_state()
    first = kernel_distance(x, y, subsets=20, subset_size=50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert kernel_distance(x, y, subsets=20, subset_size=50, seed=3) == first
    assert kernel_distance(x, y, subsets=20, subset_size=50, seed=4) != first
    assert first.subsets == 20
    assert first.std is not None
    assert first.std > 0
    # the average over subsets is that of the whole
    whole = kernel_distance(x[:150], y, subset_size=150)
    assert first.value == pytest.approx(whole.value, abs=4 * first.std)


def test_the_size_of_a_subset_is_clipped_and_stated():
    result = kernel_distance(normal(200), normal(60, seed=1), subsets=3)
    assert (result.subsets, result.subset_size) == (3, 60)


def test_equal_distributions_are_zero_on_average():
    values = torch.tensor(
        [kernel_distance(normal(200, seed=2 * s), normal(200, seed=2 * s + 1)).value for s in range(40)]
    )
    assert abs(values.mean()) < 2.5 * values.std() / 40**0.5
    assert (values < 0).any()


def test_collapse_is_finite():
    constant = torch.ones(50, 8)
    assert kernel_distance(constant, constant).value == pytest.approx(0, abs=1e-12)
    assert kernel_distance(constant, normal(50)).value > 1


def test_refusals():
    with pytest.raises(ValueError, match=r"\(N, d\) and \(M, d\)"):
        kernel_distance(normal(4), normal(4, 3))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(normal(1), normal(4))
    with pytest.raises(ValueError, match="subset_size"):
        kernel_distance(normal(4), normal(4), subset_size=1)
