"""Draws are functions of where they are made."""

import numpy as np
import pytest
import torch

from lightning_gen.seeding import GeneratorStream, SampleStreams, mix, seed_device


def test_rows_do_not_depend_on_the_batch():
    whole = SampleStreams(7, 0, 6)
    z, u, k = whole.normal(3, 2), whole.uniform(4), whole.integers(10, 5)
    part = SampleStreams(7, 4, 2)
    assert torch.equal(part.normal(3, 2), z[4:])
    assert torch.equal(part.uniform(4), u[4:])
    assert torch.equal(part.integers(10, 5), k[4:])
    picked = SampleStreams(7, [5, 1], 2)
    assert torch.equal(picked.normal(3, 2), z[[5, 1]])


def test_rows_are_the_published_generator():
    """Philox with the key (seed, index), as numpy has it."""
    drawn = SampleStreams(3, 5, 1, dtype=torch.float64).normal(4)
    oracle = np.random.Generator(np.random.Philox(key=[3, 5])).standard_normal(4)
    assert drawn[0].tolist() == oracle.tolist()


def test_fifty_thousand_streams_start_apart():
    """torch's CPU generator keeps 32 bits of a seed: of so many streams some would be likely to be one."""
    first = SampleStreams(0, 0, 50_000).integers(2**62)
    assert len(first.unique()) == 50_000


def test_seeds_differ():
    assert not torch.equal(SampleStreams(0, 0, 4).normal(8), SampleStreams(1, 0, 4).normal(8))


def test_mix_is_a_function_that_tells_places_apart():
    places = {mix(seed, rank, step) for seed in range(5) for rank in range(5) for step in range(200)}
    assert len(places) == 5000
    assert all(0 <= place < 2**63 for place in places)
    assert mix(1, 2) == mix(1, 2) != mix(2, 1)


def test_seeding_a_device_is_manual_seed():
    torch.manual_seed(123)
    expected = torch.randn(5)
    torch.manual_seed(0)
    seed_device(torch.device("cpu"), 123)
    assert torch.equal(torch.randn(5), expected)


@pytest.mark.parametrize("stream", [SampleStreams(0, 0, 20_000), GeneratorStream(torch.Generator(), 20_000)])
def test_classes_have_the_probabilities_asked_for(stream):
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    counts = torch.bincount(stream.categorical(probabilities), minlength=4)
    assert counts[1] == 0
    expected = 20_000 * probabilities
    # five standard deviations of a binomial count
    assert ((counts - expected).abs() <= 5 * (expected * (1 - probabilities)).sqrt()).all()


def test_a_generator_is_used():
    first = GeneratorStream(torch.Generator().manual_seed(1), 3).normal(2)
    again = GeneratorStream(torch.Generator().manual_seed(1), 3).normal(2)
    assert torch.equal(first, again)


def test_impossible_places_are_refused():
    with pytest.raises(ValueError, match="0 or more"):
        SampleStreams(-1, 0, 1)
    with pytest.raises(ValueError, match="2 samples need 2 indices"):
        SampleStreams(0, [1], 2)
