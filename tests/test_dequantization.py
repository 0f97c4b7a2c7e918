"""Noise as wide as a value, and the bits of images and of densities."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_gen.dequantization import bits_per_dim, dequantize, to_levels
from lightning_gen.images import from_uint8, to_uint8
from lightning_gen.seeding import GeneratorStream


def stream(n, dtype=torch.float32):
    return GeneratorStream(torch.Generator().manual_seed(4), n, dtype=dtype)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_of_evenly_distributed_values_are_their_logarithm(levels):
    """L cells, each 2 / (L - 1) wide, under the density that is 1 over their common width."""
    dims = 12
    nats = torch.full((3,), -dims * math.log(levels * 2 / (levels - 1)), dtype=torch.float64)
    bits = torch.full((3,), math.log2(levels), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(nats, dims, levels), bits)


def test_the_range_of_images_is_worth_seven_bits():
    nats = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    density = bits_per_dim(nats, 4, levels=None)
    torch.testing.assert_close(density, -nats / 4 / math.log(2))
    torch.testing.assert_close(bits_per_dim(nats, 4) - density, torch.full((2,), 6.99435).double(), rtol=0, atol=1e-5)
    seventeen = bits_per_dim(nats, 4, levels=17) - density
    torch.testing.assert_close(seventeen, torch.full((2,), 3.0, dtype=torch.float64))


def test_dequantized_bytes_lie_evenly_around_and_round_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(200, -1, -1, -1)
    x = from_uint8(images)
    spread = dequantize(x, stream(200))
    assert spread.dtype == torch.float32
    assert torch.equal(to_uint8(spread), images)
    offset = (spread - x).double() * 127.5
    assert offset.abs().max() < 0.5001
    assert abs(float(offset.mean())) < 5 * (1 / 12 / offset.numel()) ** 0.5
    assert float(offset.var()) == pytest.approx(1 / 12, rel=0.02)


def test_the_digits_have_17_values_and_keep_them():
    """Bytes are round(255 v / 16), up to half a byte beside the places of 17 values even in [-1, 1]."""
    values = torch.from_numpy(load_digits().images[:50]).double()
    bytes_ = torch.from_numpy(np.round(values.numpy() * 255 / 16).astype(np.uint8))
    x = dequantize(from_uint8(bytes_).double(), stream(50, torch.float64), levels=17)
    cell = (x + 1 + 1 / 16) / (2 / 16)
    assert torch.equal(cell.floor(), values)
    inside = cell - cell.floor()
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(inside.var()) == pytest.approx(1 / 12, rel=0.05)
    assert torch.equal(to_levels(x, 17), values / 8 - 1)


def test_the_bound_is_met_where_the_density_is_even_over_a_value():
    """A histogram of 3 values, as a density: the bits are the entropy's, whatever the noise is."""
    probabilities = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    values = torch.tensor([0] * 2 + [1] * 5 + [2] * 3)
    x = dequantize((values.double() - 1)[:, None], stream(10, torch.float64), levels=3)
    density = probabilities[((x + 1.5).floor()).long()]
    bits = bits_per_dim(density.log().sum(1), 1, levels=3)
    entropy = -(probabilities * probabilities.log2()).sum()
    torch.testing.assert_close(bits.mean(), entropy, rtol=0, atol=1e-12)


def test_bytes_survive_half_precision():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    spread = dequantize(from_uint8(images).bfloat16(), stream(1))
    assert spread.dtype == torch.float32
    assert torch.equal(to_uint8(spread), images)
    assert len(spread.unique()) == 256


def test_images_of_other_values_are_refused():
    with pytest.raises(ValueError, match="set levels to 256"):
        dequantize(from_uint8(torch.tensor([[0, 16, 20]], dtype=torch.uint8)), stream(1), levels=17)


@pytest.mark.parametrize("levels", [0, 1, 257])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="2 to 256"):
        dequantize(torch.zeros(1, 1), stream(1), levels=levels)
