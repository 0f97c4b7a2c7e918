import pytest
import torch

from lightning_gen.metrics import inception_score


def logits(n=200, k=9):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def test_closed_forms():
    assert inception_score(torch.zeros(50, 7)).value == pytest.approx(1, rel=1e-12)
    # certain of one of k classes, each as often
    certain = torch.eye(5).repeat(20, 1) * 1000
    assert inception_score(certain, splits=1).value == pytest.approx(5, rel=1e-12)
    # collapse
    assert inception_score(certain[:1].repeat(40, 1)).value == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_agrees_with_torch_fidelity(splits):
    from torch_fidelity.metric_isc import isc_features_to_metric

    x = logits(203)
    theirs = isc_features_to_metric(x, splits, shuffle=False)
    ours = inception_score(x, splits, shuffle_seed=None)
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert (ours.std or 0.0) == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    assert (ours.std is None) == (splits == 1)


def test_there_are_as_many_splits_as_asked_for():
    # parts of ceil(12 / 10) would be six
    x = logits(12)
    value = inception_score(x, 10, shuffle_seed=None).value
    singles = sum(1 for i in range(10) if (i + 1) * 12 // 10 - i * 12 // 10 == 1)
    assert singles == 8
    assert value == pytest.approx((8 + sum(inception_score(x[i : i + 2], 1).value for i in (4, 10))) / 10, rel=1e-12)


def test_shuffling_undoes_the_order_of_classes():
    x = torch.eye(10).repeat_interleave(100, 0) * 5
    assert inception_score(x, shuffle_seed=None).value == pytest.approx(1, rel=1e-12)
    state = torch.get_rng_state()
    shuffled = inception_score(x, shuffle_seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert shuffled.value > 0.9 * inception_score(x, splits=1).value
    assert shuffled == inception_score(x, shuffle_seed=1)
    assert shuffled != inception_score(x, shuffle_seed=2)


def test_refusals():
    with pytest.raises(ValueError, match="9 samples cannot make 10 splits"):
        inception_score(logits(9))
    with pytest.raises(ValueError, match="splits >= 1"):
        inception_score(logits(9), 0)
    with pytest.raises(ValueError, match="not finite"):
        inception_score(logits(9) * float("nan"), 1)
