"""Augmentation that is told to the network: exact moves, distributions, and that the numbers tell everything."""

import math

import pytest
import torch

from lightning_gen.diffusion.augmentation import NonLeakyAugmentation
from lightning_gen.gan.warp import warp
from lightning_gen.seeding import GeneratorStream, SampleStreams

ALL = "x_flip,y_flip,rot90,integer_translation,scaling,rotation,anisotropy,translation"


def stream(n, seed=0, dtype=torch.float32):
    return GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=dtype)


def images(n, channels=3, height=32, width=None, dtype=torch.float32):
    shape = (n, channels, height, width or height)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def told(**numbers):
    return {name: torch.tensor([values], dtype=torch.float64) for name, values in numbers.items()}


def smooth(height, width):
    """A picture that every look-up between pixels has right: a plane, and its value at any place."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    return (0.01 * x + 0.02 * y)[None, None], x, y


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32])
def test_no_probability_is_the_identity_bit_by_bit(channels, size):
    x = images(16, channels, size)
    moved, vector = NonLeakyAugmentation(p=0.0, transforms=ALL)(x, stream(16))
    assert torch.equal(moved, x)
    assert torch.equal(vector, torch.zeros(16, 13))


def test_the_default_is_the_papers_nine_numbers():
    augmentation = NonLeakyAugmentation()
    assert (augmentation.p, augmentation.augment_dim) == (0.12, 9)
    assert NonLeakyAugmentation(transforms=ALL).augment_dim == 13
    # the order of application is fixed, whatever the order in which they are named
    assert NonLeakyAugmentation(transforms="translation,x_flip").transforms == ("x_flip", "translation")


def test_without_transforms_there_is_nothing_to_tell():
    x = images(4)
    moved, vector = NonLeakyAugmentation(p=1.0, transforms="")(x, stream(4))
    assert torch.equal(moved, x)
    assert vector.shape == (4, 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32])
def test_flips_turns_and_whole_shifts_are_torchs_bit_by_bit(channels, size):
    x = images(1, channels, size)
    apply = NonLeakyAugmentation(transforms=ALL).apply
    assert torch.equal(apply(x, told(x_flip=[1.0])), x.flip(3))
    assert torch.equal(apply(x, told(y_flip=[1.0])), x.flip(2))
    for k in range(4):
        angle = told(rot90=[round(math.cos(k * math.pi / 2)) - 1.0, float(round(math.sin(k * math.pi / 2)))])
        assert torch.equal(apply(x, angle), torch.rot90(x, k, (2, 3)))
    # 2 pixels to the right and 3 up; the center of the border pixel is the mirror
    moved = apply(x, told(integer_translation=[2 * 8 / size, -3 * 8 / size]))
    assert torch.equal(moved[..., :-3, 2:], x[..., 3:, :-2])
    padded = torch.nn.functional.pad(x, (2, 0, 0, 3), mode="reflect")
    assert torch.equal(moved, padded[..., 3:, :-2])


def test_affine_moves_by_whole_turns_and_pixels_are_exact_to_rounding():
    x = images(1, 3, 28, dtype=torch.float64)
    apply = NonLeakyAugmentation().apply
    for k in range(1, 4):
        angle = told(rotation=[math.cos(k * math.pi / 2) - 1, math.sin(k * math.pi / 2)])
        torch.testing.assert_close(apply(x, angle), torch.rot90(x, k, (2, 3)), rtol=0, atol=1e-12)
    moved = apply(x, told(translation=[2 * 8 / 28, -3 * 8 / 28]))
    torch.testing.assert_close(moved[..., :-3, 2:], x[..., 3:, :-2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("numbers", "source"),
    [
        ({"scaling": [1.0]}, lambda x, y: (x / 2**0.2, y / 2**0.2)),
        # a quarter of pi counterclockwise as seen, y pointing down
        (
            {"rotation": [math.cos(math.pi / 4) - 1, math.sin(math.pi / 4)]},
            lambda x, y: ((x - y) / 2**0.5, (x + y) / 2**0.5),
        ),
        ({"anisotropy": [1.5, 0.0]}, lambda x, y: (x / 2**0.3, y * 2**0.3)),
        ({"anisotropy": [0.0, 1.5]}, lambda x, y: (x * 2**0.3, y / 2**0.3)),
        ({"translation": [0.5, -0.25]}, lambda x, y: (x - 0.5 * 24 / 8, y + 0.25 * 28 / 8)),
        # first scaled, then shifted: the shift is not scaled
        (
            {"scaling": [-1.0], "translation": [0.5, 0.0]},
            lambda x, y: ((x - 1.5) * 2**0.2, y * 2**0.2),
        ),
    ],
)
def test_where_a_pixel_comes_from(numbers, source):
    """On a plane the resampling is exact: the value at every pixel tells the place that it was looked up at."""
    height, width = 28, 24
    plane, x, y = smooth(height, width)
    moved = NonLeakyAugmentation().apply(plane, told(**numbers))[0, 0]
    there_x, there_y = source(x, y)
    expected = 0.01 * there_x + 0.02 * there_y
    # mirrored beyond the border, and the filters see four pixels around
    inside = (there_x.abs() < width / 2 - 5) & (there_y.abs() < height / 2 - 5)
    assert inside.sum() > 100
    torch.testing.assert_close(moved[inside], expected[inside], rtol=0, atol=1e-9)


def test_a_stretch_along_the_diagonal_leaves_what_lies_across_narrower():
    plane, x, y = smooth(32, 32)
    numbers = [1.5 * math.cos(math.pi / 4), 1.5 * math.sin(math.pi / 4)]
    moved = NonLeakyAugmentation().apply(plane, told(anisotropy=numbers))[0, 0]
    # as seen the direction goes up to the right, so along (1, -1) with y pointing down
    along, across = (x - y) / 2**0.5 / 2**0.3, (x + y) / 2**0.5 * 2**0.3
    there_x, there_y = (along + across) / 2**0.5, (across - along) / 2**0.5
    inside = (there_x.abs() < 11) & (there_y.abs() < 11)
    torch.testing.assert_close(moved[inside], (0.01 * there_x + 0.02 * there_y)[inside], rtol=0, atol=1e-9)


def test_the_vector_alone_tells_what_was_done():
    """The same images, moved by the numbers that came back, are the images that came back."""
    augmentation = NonLeakyAugmentation(p=0.5, transforms=ALL)
    x = images(64, dtype=torch.float64)
    moved, vector = augmentation(x, stream(64, dtype=torch.float64))
    again = augmentation.apply(x, augmentation.parts(vector))
    assert torch.equal(again, moved)
    unmoved = (vector == 0).all(1)
    assert torch.equal(moved[unmoved], x[unmoved])


def test_what_the_vector_tells_can_be_undone():
    """Every map of a plane is undone by the inverse of the matrix made of the numbers, written anew here."""
    n, size = 256, 32
    augmentation = NonLeakyAugmentation(p=0.7)
    plane, x, y = smooth(size, size)
    moved, vector = augmentation(plane.expand(n, 1, size, size), stream(n, seed=5, dtype=torch.float64))
    grid = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    checked = 0
    for picture, (fx, fy, s, cos1, sin, ax, ay, tx, ty) in zip(moved[:, 0], vector.tolist(), strict=True):
        flip = torch.diag(torch.tensor([1 - 2 * fx, 1 - 2 * fy, 1.0], dtype=torch.float64))
        scale = torch.diag(torch.tensor([2 ** (0.2 * s), 2 ** (0.2 * s), 1.0], dtype=torch.float64))
        # counterclockwise as seen, with y pointing down
        turn = torch.tensor([[cos1 + 1, sin, 0], [-sin, cos1 + 1, 0], [0, 0, 1]], dtype=torch.float64)
        length = math.hypot(ax, ay)
        c, d = (ax / length, ay / length) if length else (1.0, 0.0)
        along = torch.tensor([[c, d, 0], [-d, c, 0], [0, 0, 1]], dtype=torch.float64)
        by = torch.diag(torch.tensor([2 ** (0.2 * length), 2 ** (-0.2 * length), 1.0], dtype=torch.float64))
        shift = torch.eye(3, dtype=torch.float64)
        shift[0, 2], shift[1, 2] = tx * size / 8, ty * size / 8
        forward = shift @ along @ by @ along.T @ turn @ scale @ flip
        inverse = torch.linalg.inv(forward)
        there = (inverse @ grid)[:2].view(2, size, size)
        # the filters see two pixels of the output and two of the input around; beyond the border it is mirrored
        reach = 2 * inverse[:2, :2].abs().sum(1).max() + 2
        inside = (there.abs() < (size - 1) / 2 - reach).all(0)
        expected = 0.01 * there[0] + 0.02 * there[1]
        if inside.any():
            torch.testing.assert_close(picture[inside], expected[inside], rtol=0, atol=1e-9)
            checked += 1
    assert checked > 0.9 * n


def test_opposite_directions_are_one_stretch():
    """The sign of the two numbers together means nothing: a signed strength could not be told by them."""
    augmentation = NonLeakyAugmentation(p=1.0, transforms="anisotropy")
    x = images(1, 1, 28, dtype=torch.float64)
    for angle in torch.linspace(-3, 3, 7).tolist():
        numbers = torch.tensor([[1.3 * math.cos(angle), 1.3 * math.sin(angle)]], dtype=torch.float64)
        there, back = (augmentation.apply(x, {"anisotropy": sign * numbers}) for sign in (1, -1))
        torch.testing.assert_close(there, back, rtol=0, atol=1e-9)


N = 40_000


@pytest.fixture(scope="module")
def drawn():
    augmentation = NonLeakyAugmentation(p=0.12, transforms=ALL)
    _, vector = augmentation(torch.zeros(N, 1, 8, 8, dtype=torch.float64), stream(N, seed=3, dtype=torch.float64))
    return augmentation.parts(vector)


def close(measured, expected, spread):
    """Within four standard deviations of the mean of the draws."""
    assert abs(measured - expected) < 4 * spread / math.sqrt(N), (measured, expected)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("x_flip", 0.5),
        ("y_flip", 0.06),
        ("rot90", 0.09),
        ("scaling", 0.12),
        ("rotation", 0.12),
        ("anisotropy", 0.12),
        ("translation", 0.12),
    ],
)
def test_how_often_each_transform_happens(drawn, name, share):
    happens = (drawn[name] != 0).any(1).double().mean().item()
    close(happens, share, math.sqrt(share * (1 - share)))


def test_transforms_happen_independently(drawn):
    happens = torch.stack([(value != 0).any(1).double() for value in drawn.values()])
    correlation = torch.corrcoef(happens) - torch.eye(len(happens), dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / math.sqrt(N)


def test_the_distributions_of_the_parameters(drawn):
    from scipy import stats

    for name in ("scaling", "translation"):
        for column in drawn[name].T:
            values = column[column != 0].numpy()
            assert stats.kstest(values, "norm").pvalue > 1e-3
    x, y = (column[(drawn["translation"] != 0).any(1)] for column in drawn["translation"].T)
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 4 / math.sqrt(len(x))
    cos, sin = drawn["rotation"][(drawn["rotation"] != 0).any(1)].T
    torch.testing.assert_close((cos + 1) ** 2 + sin**2, torch.ones_like(cos), rtol=0, atol=1e-12)
    angle = torch.atan2(sin, cos + 1) / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3
    chosen = drawn["anisotropy"][(drawn["anisotropy"] != 0).any(1)]
    assert stats.kstest(chosen.norm(dim=1).numpy(), "halfnorm").pvalue > 1e-3
    angle = torch.atan2(chosen[:, 1], chosen[:, 0]) / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3
    turned = drawn["rot90"][(drawn["rot90"] != 0).any(1)]
    kinds, counts = turned.unique(dim=0, return_counts=True)
    assert kinds.tolist() == [[-2, 0], [-1, -1], [-1, 1]]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_whole_shifts_are_whole_and_at_most_an_eighth():
    augmentation = NonLeakyAugmentation(p=1.0, transforms="integer_translation")
    _, vector = augmentation(torch.zeros(2000, 1, 32, 48), stream(2000))
    pixels = vector * torch.tensor([48 / 8, 32 / 8])
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-5)
    assert pixels[:, 0].round().unique().tolist() == list(range(-6, 7))
    assert pixels[:, 1].round().unique().tolist() == list(range(-4, 5))


def test_what_is_done_to_an_image_does_not_depend_on_the_others():
    augmentation = NonLeakyAugmentation(p=0.5, transforms=ALL)
    x = images(12, dtype=torch.float64)
    whole, vector = augmentation(x, SampleStreams(7, 0, 12, dtype=torch.float64))
    for first, n in ((0, 5), (5, 1), (6, 6)):
        rows = slice(first, first + n)
        part, numbers = augmentation(x[rows], SampleStreams(7, first, n, dtype=torch.float64))
        assert torch.equal(numbers, vector[rows])
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)
    # images of a batch are not all treated alike
    assert len(vector.unique(dim=0)) == 12


def test_all_random_numbers_are_the_streams():
    before = torch.get_rng_state()
    augmentation = NonLeakyAugmentation(p=0.5, transforms=ALL)
    x = images(8)
    first, second = (augmentation(x, stream(8, seed=2)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_low_precision_is_moved_in_float32():
    x = images(8)
    augmentation = NonLeakyAugmentation(p=1.0)
    moved, vector = augmentation(x.bfloat16(), stream(8))
    full, _ = augmentation(x.bfloat16().float(), stream(8))
    assert (moved.dtype, vector.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(moved, full.bfloat16())


def test_the_matrix_is_the_discriminators_warp():
    """One affine map with all four parts, against a product made here and the warp by itself."""
    x = images(1, 3, 32, dtype=torch.float64)
    moved = NonLeakyAugmentation().apply(x, told(scaling=[0.7], translation=[0.3, -0.4]))
    by = 2 ** (0.2 * 0.7)
    inverse = torch.tensor([[[1 / by, 0, -0.3 * 4 / by], [0, 1 / by, 0.4 * 4 / by], [0, 0, 1]]], dtype=torch.float64)
    torch.testing.assert_close(moved, warp(x, inverse), rtol=0, atol=1e-12)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="probability"):
        NonLeakyAugmentation(p=1.2)
    with pytest.raises(ValueError, match="Did you mean 'x_flip'"):
        NonLeakyAugmentation(transforms="xflip")
    with pytest.raises(ValueError, match=r"square.*28 x 24"):
        NonLeakyAugmentation(transforms="rot90")(images(1, 1, 28, 24), stream(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_moves_images_as_the_cpu_does():
    augmentation = NonLeakyAugmentation(p=0.3, transforms=ALL)
    x = images(64)
    moved, vector = augmentation(x, SampleStreams(7, 0, 64))
    there, numbers = augmentation(x.cuda(), SampleStreams(7, 0, 64, device="cuda"))
    torch.testing.assert_close(numbers.cpu(), vector, rtol=0, atol=1e-6)
    torch.testing.assert_close(there.cpu(), moved, rtol=0, atol=1e-4)
    unmoved = (vector == 0).all(1)
    assert torch.equal(there.cpu()[unmoved], x[unmoved])
