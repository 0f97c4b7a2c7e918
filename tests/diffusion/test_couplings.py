"""Pairs of images and noise: permutations, exact optima, and labels that stay with their images."""

import itertools

import pytest
import torch

from lightning_gen.diffusion.couplings import Independent, MinibatchOT
from lightning_gen.networks.denoiser import Condition
from lightning_gen.seeding import GeneratorStream


def batch(n, seed=0, shape=(1, 4, 4), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, *shape, generator=generator, dtype=dtype)
    noise = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x0, noise, GeneratorStream(generator, n)


def distance(x0, noise):
    return (x0 - noise).square().sum().item()


def order(noise, permuted):
    """Which row of the noise each row is; fails where one is no row of it."""
    same = (permuted.flatten(1)[:, None] == noise.flatten(1)[None]).all(2)
    assert same.sum(1).tolist() == [1] * len(noise)
    return same.long().argmax(1)


def test_independent_pairs_are_left_alone():
    x0, noise, stream = batch(4)
    cond = Condition(label=torch.arange(4))
    assert all(a is b for a, b in zip(Independent()(x0, noise, cond, stream), (x0, noise, cond), strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_the_least_of_all_720_permutations(seed):
    x0, noise, stream = batch(6, seed)
    same, permuted, _ = MinibatchOT()(x0, noise, Condition(), stream)
    assert same is x0
    costs = {p: distance(x0, noise[list(p)]) for p in itertools.permutations(range(6))}
    best = min(costs, key=costs.get)
    assert order(noise, permuted).tolist() == list(best)
    # and it is worth something: independent pairs are not the best ones
    assert distance(x0, permuted) < costs[tuple(range(6))]


def test_every_noise_is_used_once():
    x0, noise, stream = batch(64)
    _, permuted, _ = MinibatchOT()(x0, noise, Condition(), stream)
    assert sorted(order(noise, permuted).tolist()) == list(range(64))


def test_all_that_tells_of_an_image_stays_with_it():
    x0, noise, stream = batch(8)
    rows = torch.arange(8.0)
    cond = Condition(
        label=torch.arange(8) % 2,
        vector=rows[:, None],
        tokens=rows[:, None, None],
        mask=rows[:, None] > 3,
        image=x0 * 2,
        augment=rows[:, None],
    )
    same, permuted, told = MinibatchOT(within_class=False)(x0, noise, cond, stream)
    assert not torch.equal(permuted, noise)
    assert torch.equal(same * 2, told.image)
    assert all(a is b for a, b in zip(told, cond, strict=True))


def test_within_a_class_the_best_of_its_permutations():
    x0, noise, stream = batch(10, seed=4)
    label = torch.tensor([0, 1, 0, 2, 1, 0, 1, 0, 1, 3])
    _, permuted, _ = MinibatchOT()(x0, noise, Condition(label=label), stream)
    chosen = order(noise, permuted)
    assert torch.equal(label[chosen], label)
    for one in range(4):
        rows = (label == one).nonzero().squeeze(1)
        best = min(distance(x0[rows], noise[rows][list(p)]) for p in itertools.permutations(range(len(rows))))
        assert distance(x0[rows], permuted[rows]) == pytest.approx(best, rel=1e-12)
    # over all classes there is a better one
    _, free, _ = MinibatchOT(within_class=False)(x0, noise, Condition(label=label), stream)
    assert distance(x0, free) < distance(x0, permuted)


def test_noise_given_a_class_stays_normal_within_classes_only():
    """Two classes at -2 and 2: assigned over both, the sign of the noise tells the class."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(256) % 2
    x0 = (4.0 * label - 2.0).view(-1, 1, 1, 1) + 0.1 * torch.randn(256, 1, 1, 1, generator=generator)
    noise = torch.randn(256, 1, 1, 1, generator=generator)
    stream = GeneratorStream(generator, 256)
    _, free, _ = MinibatchOT(within_class=False)(x0, noise, Condition(label=label), stream)
    _, within, _ = MinibatchOT()(x0, noise, Condition(label=label), stream)
    assert free[label == 1].mean() - free[label == 0].mean() > 1.4
    assert (within[label == 1].mean() - within[label == 0].mean()).abs() < 0.5


def test_in_one_dimension_it_is_the_order():
    """The optimum for squared distances is monotone."""
    x0, noise, stream = batch(200, seed=1, shape=(1, 1, 1))
    _, permuted, _ = MinibatchOT()(x0, noise, Condition(), stream)
    assert torch.equal(permuted.flatten()[x0.flatten().argsort()], noise.flatten().sort().values)


def test_it_draws_nothing_and_is_always_the_same():
    import numpy as np

    x0, noise, stream = batch(32, dtype=torch.float32)
    before, theirs, own = torch.get_rng_state(), np.random.get_state()[1].copy(), stream.generator.get_state()
    first, second = (MinibatchOT()(x0, noise, Condition(), stream)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == theirs).all()
    assert torch.equal(stream.generator.get_state(), own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_precision_of_the_noise_is_kept(dtype):
    x0, noise, stream = batch(16, dtype=torch.float32)
    _, permuted, _ = MinibatchOT()(x0.to(dtype), noise.to(dtype), Condition(), stream)
    assert permuted.dtype == dtype


def test_images_that_are_no_numbers_are_left_to_the_loss():
    x0, noise, stream = batch(4)
    x0[1, 0, 0, 0] = float("nan")
    assert MinibatchOT()(x0, noise, Condition(), stream)[1] is noise


def test_one_image_has_one_noise():
    x0, noise, stream = batch(1)
    assert torch.equal(MinibatchOT()(x0, noise, Condition(), stream)[1], noise)
