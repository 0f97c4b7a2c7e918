import itertools
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gen.autoencoder.tiling import Tiling, _spans, tiled

SIZES = [(64, 64), (16, 16), (17, 16), (61, 23), (5, 40), (1, 33)]


def images(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def conv(kernel, inputs=2, outputs=3):
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).double()


@pytest.mark.parametrize(("overlap", "context"), [(0, 0), (8, 0), (8, 2), (8, 4), (15, 3), (12, None)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_of_the_identity_it_is_the_identity(size, overlap, context):
    x = images(2, 3, *size)
    assert (tiled(lambda tile: tile, x, 16, overlap, context=context) - x).abs().max() < 1e-14


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("kernel", "overlap", "context"), [(3, 4, 1), (5, 8, None), (9, 9, 4), (9, 15, 4)])
def test_a_local_function_is_that_of_the_whole_image(size, kernel, overlap, context):
    net, x = conv(kernel), images(2, 2, *size)
    with torch.no_grad():
        assert (tiled(net, x, 16, overlap, context=context) - net(x)).abs().max() < 1e-12


def test_it_is_not_where_the_function_sees_farther_than_the_context():
    net, x = conv(9), images(1, 2, 64, 64)
    with torch.no_grad():
        assert (tiled(net, x, 16, 8, context=3) - net(x)).abs().max() > 1e-3


def test_decoding_makes_images_larger():
    net = conv(3)
    x = images(1, 2, 21, 34)

    def decode(z):
        return net(F.interpolate(z, scale_factor=8, mode="nearest"))

    with torch.no_grad():
        assert (tiled(decode, x, 8, 2, factor=8, context=1) - decode(x)).abs().max() < 1e-12


@pytest.mark.parametrize("factor", [1 / 8, Fraction(1, 8)])
def test_encoding_makes_them_smaller(factor):
    net = conv(3)
    x = images(1, 2, 168, 96)

    def encode(tile):
        return F.avg_pool2d(net(tile), 8)

    with torch.no_grad():
        # of an overlap of 16 the context would be 4, and is rounded down to whole places of the result
        assert (tiled(encode, x, 64, 16, factor, context=8) - encode(x)).abs().max() < 1e-12
        assert tiled(encode, x, 64, 16, factor).shape == (1, 3, 21, 12)


def test_the_blend_is_linear_between_two_tiles():
    """Tiles of constants: 0 on the left and 1 on the right."""
    values = iter([0.0, 1.0])
    made = tiled(lambda tile: torch.full_like(tile, next(values)), images(1, 1, 1, 20), 12, 4, context=0)
    # 12 + 12 - 4 pixels, the middle four shared: weights by distance from the borders, pixels at their centers
    assert made.flatten().tolist() == pytest.approx([0.0] * 8 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 8)


def test_neighbors_of_a_global_function_meet_without_an_edge():
    """Each tile is made its own mean: steps between tiles, spread over what they share."""
    x = torch.linspace(0, 1, 256, dtype=torch.float64).expand(1, 1, 4, 256)
    made = tiled(lambda tile: tile.mean(dim=3, keepdim=True).expand_as(tile), x, 64, 32)
    assert made.diff(dim=3).abs().max() < 2.5 * (0.12 / 16)
    assert made[..., -1].max() - made[..., 0].min() > 0.7


@pytest.mark.parametrize("tile", [1, 5, 8, 13])
def test_tiles_are_no_larger_than_asked_for_and_share_the_overlap(tile):
    for side in range(1, 60):
        for overlap in range(tile):
            for context in range(overlap // 2 + 1):
                spans = _spans(side, Tiling(tile, overlap, context), 1, 1, torch.zeros(1))
                total = torch.zeros(side, dtype=torch.float64)
                for span in spans:
                    assert 1 <= span.length <= tile
                    total[span.start : span.start + span.length] += span.weights
                assert (total - 1).abs().max() < 1e-14
                for first, second in itertools.pairwise(spans):
                    assert first.start + first.length - second.start == overlap
                fewest = 1 if side <= tile else -(-(side - overlap) // (tile - overlap))
                assert len(spans) == fewest


def test_a_small_image_is_not_parted():
    seen = []
    tiled(lambda tile: seen.append(tuple(tile.shape)) or tile, images(1, 1, 12, 16), 16, 4)
    assert seen == [(1, 1, 12, 16)]


def test_the_function_is_never_given_more_than_a_tile():
    seen = []
    tiled(lambda tile: seen.append(tile.shape[2:]) or tile, images(1, 1, 45, 70), 16, 4)
    assert max(max(size) for size in seen) <= 16
    assert len(seen) == 4 * 6


def test_no_gradient_is_recorded_and_nothing_given_is_changed():
    net, x = conv(3), images(1, 2, 20, 20)
    kept = x.clone()
    assert not tiled(net, x.requires_grad_(), 16, 4).requires_grad
    assert torch.equal(x, kept)


def test_bf16_tiles_are_blended_in_float32():
    x = torch.ones(1, 1, 40, 40, dtype=torch.bfloat16)
    made = tiled(lambda tile: tile, x, 16, 6)
    assert made.dtype == torch.float32
    assert (made - 1).abs().max() < 1e-6


def test_a_tiling_is_kept_and_called():
    x = images(1, 2, 40, 24)
    assert torch.equal(Tiling(16, 4)(conv(3), x), tiled(conv(3), x, 16, 4))
    assert torch.equal(Tiling(16, 4, 0)(conv(3), x), tiled(conv(3), x, 16, 4, context=0))


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"tile": 0}, "tile"),
        ({"overlap": 16}, "overlap"),
        ({"overlap": -1}, "overlap"),
        ({"context": 3}, "context"),
        ({"context": -1}, "context"),
        ({"factor": 0}, "factor"),
        ({"factor": 2}, "expects 24 x 24"),
        ({"factor": 1 / 8}, "height=20, width=20, overlap=4"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused(how, what):
    with pytest.raises(ValueError, match=what):
        tiled(lambda tile: tile, **{"x": torch.zeros(1, 1, 20, 20), "tile": 16, "overlap": 4} | how)


def test_something_else_than_images_is_refused():
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        tiled(lambda tile: tile, torch.zeros(20, 20), 16, 4)
