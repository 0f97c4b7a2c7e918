"""Pictures beside the noisy image: small versions, and known pixels."""

import pytest
import torch

from lightning_gen.diffusion.conditioners import InpaintingMask, SuperResolution
from lightning_gen.seeding import GeneratorStream, SampleStreams


def stream(n, seed=0, dtype=torch.float32):
    return GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=dtype)


def images(n=4, channels=3, height=12, width=8, dtype=torch.float64):
    shape = (n, channels, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def box(x, factor):
    n, c, h, w = x.shape
    return x.view(n, c, h // factor, factor, w // factor, factor).mean((3, 5))


# ---------------------------------------------------------------------- super-resolution


@pytest.mark.parametrize("factor", [2, 4])
def test_nearest_is_the_mean_of_every_square(factor):
    x = images()
    picture = SuperResolution(factor, "nearest")(x, stream(4))
    expected = box(x, factor).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-14)


def test_bilinear_weights_the_two_nearest_squares_by_three_to_one():
    """Of factor 2: a pixel's center lies a quarter of a square from the nearer center."""
    x = images(height=2, width=12)
    small = box(x, 2)[:, :, 0]
    picture = SuperResolution(2)(x, stream(4))
    padded = torch.cat([small[..., :1], small, small[..., -1:]], dim=-1)
    left = 0.25 * padded[..., :-2] + 0.75 * padded[..., 1:-1]
    right = 0.75 * padded[..., 1:-1] + 0.25 * padded[..., 2:]
    expected = torch.stack([left, right], dim=-1).flatten(-2)
    for row in range(2):
        torch.testing.assert_close(picture[:, :, row], expected, rtol=0, atol=1e-14)


def test_what_alternates_is_averaged_and_not_aliased():
    checkers = torch.ones(1, 1, 8, 8)
    checkers[..., ::2] = -1
    assert SuperResolution(2)(checkers, stream(1)).abs().max() == 0


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_a_users_small_picture_is_what_training_sees(upsampling):
    x = images()
    conditioner = SuperResolution(2, upsampling)
    picture = conditioner.prepare(box(x, 2))
    assert picture.shape == x.shape
    torch.testing.assert_close(picture, conditioner(x, stream(4)), rtol=0, atol=1e-14)


def test_noise_is_on_the_small_picture_and_of_the_stream():
    x = torch.zeros(64, 1, 32, 32)
    conditioner = SuperResolution(2, "nearest", noise=0.1)
    before = torch.get_rng_state()
    picture = conditioner(x, stream(64))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(picture, conditioner(x, stream(64)))
    assert not torch.equal(picture, conditioner(x, stream(64, seed=1)))
    small = picture[:, :, ::2, ::2]
    assert torch.equal(small.repeat_interleave(2, 2).repeat_interleave(2, 3), picture)
    # four standard deviations of the deviation of 16,384 numbers
    assert small.std().item() == pytest.approx(0.1, abs=4 * 0.1 / (2 * small.numel()) ** 0.5)
    assert SuperResolution(2)(x, stream(64)).abs().max() == 0


def test_sizes_that_the_factor_does_not_divide_are_refused():
    assert SuperResolution(4).channels((3, 12, 8)) == 3
    with pytest.raises(ValueError, match=r"factor=4.*divides.*12 x 10"):
        SuperResolution(4).channels((3, 12, 10))
    with pytest.raises(ValueError, match="12 x 8"):
        SuperResolution(8)(images(), stream(4))
    with pytest.raises(ValueError, match="factor of 2 or more"):
        SuperResolution(1)
    with pytest.raises(ValueError, match="bilinear or nearest"):
        SuperResolution(2, "cubic")
    with pytest.raises(ValueError, match="standard deviation"):
        SuperResolution(2, noise=-1.0)
    with pytest.raises(ValueError, match=r"floats.*uint8"):
        SuperResolution(2).prepare(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        SuperResolution(2).prepare(torch.zeros(1, 4, 4))


# ---------------------------------------------------------------------- inpainting


@pytest.mark.parametrize("kind", ["box", "half", "random_box"])
@pytest.mark.parametrize("channels", [1, 3])
def test_known_pixels_are_the_images_and_the_others_zero(kind, channels):
    x = images(16, channels)
    conditioner = InpaintingMask(kind)
    picture = conditioner(x, stream(16))
    known, mask = picture[:, :-1], picture[:, -1:]
    assert picture.shape[1] == conditioner.channels(x.shape[1:]) == channels + 1
    assert picture.dtype == x.dtype
    assert mask.unique().tolist() == [0, 1]
    assert torch.equal(known, x * mask)
    assert (mask.flatten(1).min(1).values == 0).all()


def test_the_box_lies_in_the_middle():
    mask = InpaintingMask("box", size=0.5)(images(2, 1, 12, 8), stream(2))[:, -1]
    expected = torch.ones(2, 12, 8)
    expected[:, 3:9, 2:6] = 0
    assert torch.equal(mask, expected.double())


def test_each_of_the_four_halves_is_hidden():
    masks = InpaintingMask("half")(images(400, 1, 12, 8), stream(400))[:, -1]
    kinds, counts = masks.flatten(1).unique(dim=0, return_counts=True)
    expected = torch.zeros(4, 12, 8, dtype=torch.float64)
    expected[0, :6], expected[1, 6:], expected[2, :, :4], expected[3, :, 4:] = 1, 1, 1, 1
    assert torch.equal(kinds, expected.flatten(1).unique(dim=0))
    # a quarter each, within four standard deviations
    assert (counts - 100).abs().max() < 4 * (400 * 0.25 * 0.75) ** 0.5


def test_random_boxes_have_the_sizes_and_places_promised():
    n, height, width = 20_000, 16, 8
    masks = InpaintingMask("random_box", size=0.5, smallest=0.25)(images(n, 1, height, width), stream(n))[:, -1]
    for axis, length in ((2, height), (1, width)):
        hidden = (masks == 0).any(axis)
        first, size = hidden.long().argmax(1), hidden.sum(1)
        # one piece
        index = torch.arange(length)
        assert torch.equal(hidden, (index >= first[:, None]) & (index < (first + size)[:, None]))
        assert sorted(size.unique().tolist()) == list(range(length // 4, length // 2 + 1))
        # of every size all places, equally often
        for one in size.unique().tolist():
            counts = torch.bincount(first[size == one])
            places = length - one + 1
            assert len(counts) == places
            expected = counts.sum() / places
            assert ((counts - expected).square() / expected).sum() < places + 5 * (2 * places) ** 0.5
    # height and width are drawn by themselves
    sizes = torch.stack([(masks == 0).any(2).sum(1), (masks == 0).any(1).sum(1)]).double()
    assert torch.corrcoef(sizes)[0, 1].abs() < 4 / n**0.5
    # and the box is all of it
    assert torch.equal((masks == 0).sum((1, 2)), sizes.prod(0).long())


@pytest.mark.parametrize("kind", ["box", "half", "random_box"])
def test_a_mask_depends_on_its_image_alone(kind):
    x = images(8)
    conditioner = InpaintingMask(kind)
    before = torch.get_rng_state()
    whole = conditioner(x, SampleStreams(3, 0, 8))
    assert torch.equal(conditioner(x[5:], SampleStreams(3, 5, 3)), whole[5:])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_users_picture_and_mask():
    x = images(2)
    mask = torch.ones(1, 1, 12, 8)
    mask[..., :4] = 0
    conditioner = InpaintingMask()
    x[..., :4] = float("nan")
    picture = conditioner.prepare(x, mask)
    assert torch.equal(picture[:, -1:], mask.double().expand(2, -1, -1, -1))
    assert picture[:, :-1, :, :4].abs().max() == 0
    assert torch.equal(picture[:, :-1, :, 4:], x[..., 4:])
    joined = torch.cat([x, mask.double().expand(2, -1, -1, -1)], dim=1)
    assert torch.equal(conditioner.prepare(joined), picture)


def test_what_is_no_mask_is_refused():
    conditioner, x = InpaintingMask(), images(2)
    with pytest.raises(ValueError, match="1 where pixels are known"):
        conditioner.prepare(x, torch.full((2, 1, 12, 8), 0.5))
    with pytest.raises(ValueError, match=r"its mask \(B, 1, H, W\).*\(2, 3, 12, 8\) and \(2, 1, 8, 12\)"):
        conditioner.prepare(x, torch.ones(2, 1, 8, 12))
    with pytest.raises(ValueError, match=r"both as \(B, C \+ 1"):
        conditioner.prepare(torch.ones(2, 1, 12, 8))
    with pytest.raises(ValueError, match=r"There is no mask 'bx'.*'box'"):
        InpaintingMask("bx")
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        InpaintingMask("box", size=0.0)
    with pytest.raises(ValueError, match="smallest is at most size"):
        InpaintingMask(size=0.2, smallest=0.3)
