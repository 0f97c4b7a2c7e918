"""Distributions against scipy, strata over processes, and importance sampling without a bias."""

from collections import deque

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_gen.diffusion.paths import EDM, VP, CosineVP, DiscreteVP, RectifiedFlow
from lightning_gen.diffusion.times import Importance, LogitNormal, LogNormal, Uniform
from lightning_gen.seeding import GeneratorStream, SampleStreams


def stream(n, seed=0, dtype=torch.float64):
    return GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=dtype)


class Given:
    """A stream that hands out 1 - u for numbers u, which are what a sampler then has."""

    dtype = torch.float64

    def __init__(self, u):
        self.u = torch.as_tensor(u, dtype=torch.float64)

    def uniform(self, *shape):
        return 1 - self.u


DISTRIBUTIONS = [
    (Uniform(0.2, 0.9), RectifiedFlow(), lambda t: t, stats.uniform(0.2, 0.7)),
    (Uniform(), EDM(), lambda t: t, stats.uniform()),
    (LogitNormal(0.3, 0.8), VP(), lambda t: torch.logit(t), stats.norm(0.3, 0.8)),
    (LogNormal(), EDM(), lambda t: EDM().at(t).noise_level.log(), stats.norm(-1.2, 1.2)),
    (LogNormal(0.5, 2.0), RectifiedFlow(), lambda t: (t / (1 - t)).log(), stats.norm(0.5, 2.0)),
    (LogNormal(0.0, 1.0), CosineVP(), lambda t: CosineVP().at(t).noise_level.log(), stats.norm()),
]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("sampler", "path", "values", "distribution"), DISTRIBUTIONS)
def test_distributions(sampler, path, values, distribution, stratified):
    sampler.stratified = stratified
    t, weight = sampler(path, stream(20_000))
    assert t.dtype == torch.float64
    assert t.shape == (20_000,)
    assert weight is None
    found = stats.kstest(values(t).numpy(), distribution.cdf)
    # the greatest distance is below 1 / n when there is one value in each of n intervals
    assert found.statistic <= 1 / 20_000 + 1e-12 if stratified else found.pvalue > 0.05


@pytest.mark.parametrize(("sampler", "path", "values", "distribution"), DISTRIBUTIONS)
def test_quantiles(sampler, path, values, distribution):
    u = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.8, 0.999], dtype=torch.float64)
    found = values(sampler.quantile(u, path))
    torch.testing.assert_close(found, torch.from_numpy(distribution.ppf(u.numpy())), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_one_time_in_each_interval_over_all_processes(world):
    n = 48 // world
    sampler = Uniform(stratified=True)
    intervals = []
    for rank in range(world):
        t = sampler(RectifiedFlow(), stream(n, seed=rank), rank, world).t
        intervals += (t * 48).ceil().long().tolist()
    assert sorted(intervals) == list(range(1, 49))


def test_strata_do_not_depend_on_the_kind_of_stream():
    t = Uniform(stratified=True)(RectifiedFlow(), SampleStreams(0, 0, 10)).t
    assert (t * 10).ceil().tolist() == list(range(1, 11))


def test_the_last_time_is_drawn_and_the_first_is_not():
    """Streams draw from [0, 1); data without noise is nothing to learn from, and pure noise is."""
    for u in (1.0, 2.0**-24):
        assert Uniform()(RectifiedFlow(), Given([u])).t.item() == u
    assert DiscreteVP(10).at(Uniform()(DiscreteVP(10), Given([2.0**-53])).t).sigma.item() > 0
    for sampler in (LogNormal(), LogitNormal()):
        t = sampler(RectifiedFlow(), Given([1.0, 1e-16])).t
        assert bool(((t > 0) & (t < 1)).all())


@pytest.mark.parametrize("steps", [10, 1000])
def test_steps_of_a_table_are_drawn_alike(steps):
    path = DiscreteVP(steps)
    # every quantile that is a step, and the one in the middle below it
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    assert torch.equal(Uniform()(path, Given(k / steps)).t, k / steps)
    assert torch.equal(Uniform()(path, Given((k - 0.5) / steps)).t, k / steps)
    t = Uniform(stratified=True)(path, stream(3 * steps)).t
    assert torch.equal(torch.bincount((t * steps).round().long()), torch.tensor([0] + [3] * steps))
    counts = torch.bincount((Uniform()(path, stream(200 * steps)).t * steps).round().long())[1:]
    assert stats.chisquare(counts.numpy()).pvalue > 0.05


def test_every_sampler_draws_steps_of_a_table():
    path = DiscreteVP(10)
    for sampler in (Uniform(), LogNormal(0.0, 3.0), LogitNormal(), Importance(buckets=10)):
        t = sampler(path, stream(1000)).t
        assert set((t * 10).tolist()) <= set(range(1, 11))


def test_logit_normal_times_of_rectified_flow_are_lognormal_noise():
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for mean, std in ((0.0, 1.0), (-0.7, 2.0)):
        flow = LogitNormal(mean, std).quantile(u, RectifiedFlow())
        torch.testing.assert_close(flow, LogNormal(mean, std).quantile(u, RectifiedFlow()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [0.3, 3.0])
def test_the_shift_of_times_is_a_factor_of_the_noise(k):
    """t -> k t / (1 + (k - 1) t) multiplies t / (1 - t) by k."""
    u = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = LogitNormal().quantile(u, RectifiedFlow())
    shifted = LogitNormal(float(np.log(k))).quantile(u, RectifiedFlow())
    torch.testing.assert_close(shifted, k * t / (1 + (k - 1) * t), rtol=1e-12, atol=0)


def test_times_are_many_in_half_precision():
    """A bfloat16 uniform number is one of 256."""
    half = stream(4096, dtype=torch.bfloat16)
    t = Uniform()(RectifiedFlow(), half).t
    assert len(t.unique()) > 4000
    assert half.dtype == torch.bfloat16


def warmed(buckets=8, history=3, share=0.01, seed=0):
    sampler = Importance(history, share, buckets)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(history, buckets, dtype=torch.float64, generator=generator) ** 3
    places = (torch.arange(buckets) + 0.5) / buckets
    for row in losses:
        sampler.update(RectifiedFlow(), places, row)
    return sampler, losses


def test_importance_begins_uniform():
    sampler = Importance(history=2, buckets=4)
    places = torch.tensor([0.1, 0.3, 0.6, 0.9])
    sampler.update(RectifiedFlow(), places.repeat(2)[:-1], torch.arange(7.0) ** 2)
    assert sampler.probabilities().tolist() == [0.25] * 4
    t, weight = sampler(RectifiedFlow(), Given([0.1, 0.6, 1.0]))
    assert t.tolist() == pytest.approx([0.1, 0.6, 1.0], rel=1e-15)
    assert weight.tolist() == [1.0] * 3
    sampler.update(RectifiedFlow(), places[-1:], torch.tensor([1.0]))
    assert sampler.probabilities().tolist() != [0.25] * 4


def test_importance_by_the_published_formula():
    sampler, losses = warmed()
    root = np.sqrt((losses.numpy() ** 2).mean(0))
    expected = 0.99 * root / root.sum() + 0.01 / 8
    np.testing.assert_allclose(sampler.probabilities().numpy(), expected, rtol=1e-14)
    assert float(sampler.probabilities().sum()) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("path", [RectifiedFlow(), DiscreteVP(8)])
def test_importance_has_no_bias(path):
    """What a draw counts, times how often it is drawn, is one in n for every bucket."""
    sampler, _ = warmed()
    p = sampler.probabilities()
    upper = p.cumsum(0)
    t, weight = sampler(path, Given(upper - p / 2))
    bucket = torch.arange(8)
    place = (bucket + 1) / 8 if path.steps else (bucket + 0.5) / 8
    torch.testing.assert_close(t, place.double(), rtol=1e-12, atol=0)
    loss = torch.rand(8, dtype=torch.float64)
    torch.testing.assert_close((p * weight * loss).sum(), loss.mean(), rtol=1e-13, atol=0)
    # and the shares of u that lead to each bucket are these probabilities
    lower, higher = upper - p * (1 - 1e-6), upper - p * 1e-6
    for u in (lower, higher):
        drawn = sampler(RectifiedFlow(), Given(u)).t
        assert (drawn * 8).floor().tolist() == bucket.tolist()


def test_importance_within_a_bucket_is_uniform():
    sampler, _ = warmed()
    p = sampler.probabilities()
    first = (p[0] * torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).clone()
    t = sampler(RectifiedFlow(), Given(first)).t
    torch.testing.assert_close(t * 8, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), rtol=1e-12, atol=0)


def test_importance_draws_as_often_as_it_says():
    sampler, _ = warmed()
    t = sampler(DiscreteVP(8), stream(100_000)).t
    counts = torch.bincount((t * 8).round().long(), minlength=9)[1:].numpy()
    assert stats.chisquare(counts, 100_000 * sampler.probabilities().numpy()).pvalue > 0.05


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_importance_keeps_the_last_losses_of_each_bucket(batch):
    """Against queues of that length, with many losses of one bucket in a batch."""
    sampler, path = Importance(history=3, buckets=5), DiscreteVP(5)
    queues = [deque(maxlen=3) for _ in range(5)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(400 // batch):
        bucket = torch.randint(5, (batch,), generator=generator)
        loss = torch.rand(batch, generator=generator, dtype=torch.float64)
        sampler.update(path, (bucket + 1) / 5, loss)
        for b, value in zip(bucket.tolist(), loss.tolist(), strict=True):
            queues[b].append(value)
    assert sampler.learns
    for row, queue in zip(sampler.losses.tolist(), queues, strict=True):
        assert sorted(row) == sorted(queue)


def test_importance_is_in_the_state():
    sampler, _ = warmed()
    other = Importance(3, 0.01, 8)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.probabilities(), sampler.probabilities())
    other.update(RectifiedFlow(), torch.tensor([0.01]), torch.tensor([5.0]))
    sampler.update(RectifiedFlow(), torch.tensor([0.01]), torch.tensor([5.0]))
    assert torch.equal(other.losses, sampler.losses)


def test_importance_in_a_model_of_half_precision():
    """The losses lose digits, the probabilities still add up to one."""
    sampler, _ = warmed(buckets=1000, history=1)
    before = sampler.probabilities()
    sampler.bfloat16()
    assert float(sampler.probabilities().sum()) == pytest.approx(1, rel=1e-12)
    torch.testing.assert_close(sampler.probabilities(), before, rtol=0.01, atol=0)
    sampler.update(RectifiedFlow(), torch.tensor([0.5]), torch.tensor([1.0]))


def test_others_learn_nothing():
    sampler = Uniform()
    sampler.update(RectifiedFlow(), torch.rand(3), torch.rand(3))
    assert not sampler.learns
    assert not sampler.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0.5, 0.5), "0 <= low < high <= 1; given were 0.5 and 0.5"),
        (lambda: Uniform(0.0, 1.5), "given were 0.0 and 1.5"),
        (lambda: LogNormal(std=0.0), "LogNormal takes std above 0"),
        (lambda: LogitNormal(std=-1.0), "LogitNormal takes std above 0"),
        (lambda: Importance(history=0), "history"),
        (lambda: Importance(uniform_share=0.0), "uniform_share"),
        (lambda: Importance(buckets=300)(DiscreteVP(1000), stream(2)), "300 buckets, the path 1000 .*buckets to 1000"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
