"""FSQ and LFQ by enumeration of all their codes."""

import itertools
import math

import numpy as np
import pytest
import torch

from lightning_gen.autoencoder import FiniteScalarQuantizer, LookupFreeQuantizer

LEVELS = [[2], [3], [4], [5, 2], [8, 5, 5], [3, 4, 2, 7]]


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(x):
    return x.movedim(1, -1).reshape(-1, x.shape[1]).detach().numpy()


# ---------------------------------------------------------------------- finite scalars


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_indices_are_a_bijection(levels):
    """Odd and even levels: every grid point has one index, in the order of digits, the first channel's the least."""
    net = FiniteScalarQuantizer(levels).double()
    size = math.prod(levels)
    table = vectors(net.decode_indices(torch.arange(size).view(size, 1, 1)))
    grid = [[(digit - level // 2) / (level // 2) for digit in range(level)] for level in levels]
    expected = [point[::-1] for point in itertools.product(*grid[::-1])]
    np.testing.assert_allclose(table, np.array(expected), rtol=0, atol=1e-15)
    assert net.codebook_size == size == len({tuple(row) for row in table})


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached_and_decodes_itself(levels):
    net = FiniteScalarQuantizer(levels).double().eval()
    bottled = net(normal(30000, len(levels), 1, 1, scale=3.0))
    assert set(bottled.indices.flatten().tolist()) == set(range(net.codebook_size))
    assert torch.equal(net.decode_indices(bottled.indices), bottled.z)
    assert bottled.z.abs().max() <= 1
    assert bottled.loss == 0


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 16])
def test_levels_by_the_published_formula(level):
    net = FiniteScalarQuantizer([level]).double().eval()
    z = np.linspace(-6, 6, 1001)
    half, offset = (level - 1) * (1 - 1e-3) / 2, 0.0 if level % 2 else 0.5
    bounded = half * np.tanh(z + math.tan(offset / half)) - offset
    found = net(torch.from_numpy(z).view(-1, 1, 1, 1))
    np.testing.assert_allclose(found.z.flatten(), np.rint(bounded) / (level // 2), rtol=0, atol=1e-15)
    # the lowest level at the left, the highest at the right, none left out
    assert found.indices.flatten().unique_consecutive().tolist() == list(range(level))
    # published for all but two levels: 0 is a level's own place
    if level > 2:
        assert net(torch.zeros(1, 1, 1, 1).double()).z == 0


def test_gradients_are_those_before_rounding():
    net = FiniteScalarQuantizer([8, 5]).double()
    x = normal(2, 2, 3, 3).requires_grad_()
    given = normal(2, 2, 3, 3, seed=1)
    (net(x).z * given).sum().backward()
    width = torch.tensor([4.0, 2.0]).double().view(1, 2, 1, 1)
    bounded = net.bound(x.movedim(1, -1)).movedim(-1, 1)
    expected = torch.autograd.grad((bounded / width * given).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=1e-14)
    assert not list(net.parameters())


# ---------------------------------------------------------------------- signs


def test_bits_are_signs():
    net = LookupFreeQuantizer(4).double().eval()
    codes = torch.arange(16).view(16, 1, 1)
    table = vectors(net.decode_indices(codes))
    expected = [[1.0 if index >> bit & 1 else -1.0 for bit in range(4)] for index in range(16)]
    assert table.tolist() == expected
    x = normal(200, 4, 1, 1)
    x[0] = 0.0
    bottled = net(x)
    assert vectors(bottled.z).tolist() == np.where(vectors(x) > 0, 1.0, -1.0).tolist()
    assert torch.equal(net.decode_indices(bottled.indices), bottled.z)
    assert bottled.indices[0] == 0
    assert set(bottled.indices.flatten().tolist()) == set(range(16))


def soft_assignments(z, temperature):
    """Softmax over all codes of minus the squared distance, by enumeration."""
    codes = np.array(list(itertools.product([-1.0, 1.0], repeat=z.shape[1])))
    scores = -((z[:, None] - codes) ** 2).sum(-1) / temperature
    p = np.exp(scores - scores.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-300))).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_entropies_by_enumeration(temperature):
    net = LookupFreeQuantizer(5, temperature=temperature).double()
    z = normal(40, 5)
    p = soft_assignments(z.numpy(), temperature)
    each, of_mean = net.entropies(z)
    np.testing.assert_allclose(each, entropy(p).mean(), rtol=1e-12)
    np.testing.assert_allclose(of_mean, entropy(p.mean(0)), rtol=1e-12)


def test_groups_of_bits_have_entropies_of_their_own():
    net = LookupFreeQuantizer(5, group_bits=2).double()
    z = normal(40, 5)
    each, of_mean = net.entropies(z)
    parts = [soft_assignments(part, 1.0) for part in (z[:, :2].numpy(), z[:, 2:4].numpy(), z[:, 4:].numpy())]
    np.testing.assert_allclose(each, entropy(soft_assignments(z.numpy(), 1.0)).mean(), rtol=1e-12)
    np.testing.assert_allclose(of_mean, sum(entropy(p.mean(0)) for p in parts), rtol=1e-12)


def test_the_loss_and_its_gradient():
    net = LookupFreeQuantizer(3, entropy_weight=0.2, gamma=1.5, beta=0.4).double()
    x = normal(4, 3, 2, 2).requires_grad_()
    bottled = net(x)
    z = vectors(x)
    p = soft_assignments(z, 1.0)
    commitment = np.mean((z - np.sign(z)) ** 2)
    expected = 0.2 * (entropy(p).mean() - 1.5 * entropy(p.mean(0))) + 0.4 * commitment
    np.testing.assert_allclose(bottled.loss.item(), expected, rtol=1e-12)
    for name, value in [
        ("entropy", entropy(p).mean()),
        ("codebook_entropy", entropy(p.mean(0))),
        ("commitment_loss", commitment),
    ]:
        np.testing.assert_allclose(bottled.logs[name], value, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: net(x).loss, x, atol=1e-7)
    given = normal(4, 3, 2, 2, seed=2)
    straight = torch.autograd.grad((bottled.z * given).sum(), x)[0]
    torch.testing.assert_close(straight, given, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropies_of_extreme_features_are_finite(dtype):
    net = LookupFreeQuantizer(3, temperature=0.01).to(dtype)
    for x in (torch.full((2, 3, 1, 1), 1e4), torch.zeros(2, 3, 1, 1), torch.full((2, 3, 1, 1), -30.0)):
        x = x.to(dtype).requires_grad_()
        bottled = net(x)
        bottled.loss.backward()
        assert torch.isfinite(bottled.loss)
        assert torch.isfinite(x.grad).all()
    # certain, and all of one code; and nothing known
    certain = net.entropies(torch.full((2, 3), 50.0, dtype=dtype))
    assert [float(value) for value in certain] == pytest.approx([0, 0], abs=1e-6)
    unknown = net.entropies(torch.zeros(2, 3, dtype=dtype))
    assert [float(value) for value in unknown] == pytest.approx([3 * math.log(2)] * 2, rel=1e-6)


def test_the_entropy_loss_spreads_codes():
    """From features that all have one sign, gradient descent finds all eight codes, each with certainty."""
    net = LookupFreeQuantizer(3, entropy_weight=1.0, beta=0.0)
    x = (normal(64, 3, 1, 1, scale=0.1).float() + 0.5).requires_grad_()
    assert len(net(x).indices.unique()) == 1
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        bottled = net(x)
        bottled.loss.backward()
        optimizer.step()
    assert len(bottled.indices.unique()) == 8
    assert bottled.logs["entropy"] < 0.05
    assert bottled.logs["codebook_entropy"] > 0.95 * 3 * math.log(2)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FiniteScalarQuantizer([]), "levels"),
        (lambda: FiniteScalarQuantizer([8, 1]), "2 or more"),
        (lambda: FiniteScalarQuantizer([8] * 8), "codes"),
        (lambda: LookupFreeQuantizer(0), "bits"),
        (lambda: LookupFreeQuantizer(30), "bits"),
        (lambda: LookupFreeQuantizer(4, entropy_weight=-1.0), "entropy_weight"),
        (lambda: LookupFreeQuantizer(4, temperature=0.0), "temperature"),
        (lambda: LookupFreeQuantizer(4, group_bits=20), "group_bits"),
        (lambda: LookupFreeQuantizer(4, beta=-0.1), "beta"),
    ],
)
def test_bad_arguments_are_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
