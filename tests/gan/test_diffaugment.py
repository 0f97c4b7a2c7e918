"""DiffAugment: each policy against the formula it states, its distribution, and its gradients."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.gan.augmentation import Augmentation
from lightning_gen.gan.diffaugment import (
    POLICIES,
    DiffAugment,
    brightness,
    color,
    contrast,
    cutout,
    saturation,
    translation,
)

ALL = "color,translation,cutout"


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(function: Callable[[Tensor], Tensor], seed: int = 0) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return function(x)

    return call


def uniform_enough(values: Tensor, low: float, high: float) -> None:
    """Compare mean and share of the lower half with U[low, high) at four standard errors."""
    n, width = values.numel(), high - low
    assert values.min() >= low - 1e-9
    assert values.max() <= high + 1e-9
    assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * n)
    assert abs((values < (low + high) / 2).double().mean() - 0.5) < 2 / math.sqrt(n)


# ---------------------------------------------------------------- color


def test_brightness_adds_one_number_an_image() -> None:
    x = images(2000, 3, 2, 2)
    added = (seeded(brightness)(x) - x).flatten(1)
    assert (added.amax(1) - added.amin(1)).max() < 1e-12
    uniform_enough(added[:, 0], -0.5, 0.5)


def test_saturation_scales_the_distance_to_gray() -> None:
    x = images(2000, 3, 2, 2)
    y = seeded(saturation)(x)
    torch.testing.assert_close(y.mean(1), x.mean(1), rtol=0, atol=1e-14)
    ratio = ((y - y.mean(1, keepdim=True)) / (x - x.mean(1, keepdim=True))).flatten(1)
    assert (ratio.amax(1) - ratio.amin(1)).max() < 1e-8  # a difference near 0 is divided by
    uniform_enough(ratio.median(1).values, 0.0, 2.0)


def test_contrast_scales_the_distance_to_the_mean() -> None:
    x = images(2000, 3, 2, 2)
    y = seeded(contrast)(x)
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)), rtol=0, atol=1e-14)
    ratio = (y - y.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1) / (
        (x - x.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1)
    )
    uniform_enough(ratio, 0.5, 1.5)


def test_saturation_of_one_channel_is_the_identity() -> None:
    x = images(4, 1, 5, 5)
    assert saturation(x) is x
    # and color is then a brightness and a contrast: an affine map of each image's values
    y = seeded(color)(x)
    for before, after in zip(x.flatten(1), y.flatten(1), strict=True):
        slope = (after[1] - after[0]) / (before[1] - before[0])
        torch.testing.assert_close(after - after[0], slope * (before - before[0]))


# ---------------------------------------------------------------- translation and cutout


def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
    """Shift one image (C, H, W) by padding it and cutting it out again."""
    reach = 8
    padded = F.pad(x, (reach, reach, reach, reach))
    return padded[:, reach - dy : reach - dy + x.shape[1], reach - dx : reach - dx + x.shape[2]]


def test_translation_shifts_by_up_to_an_eighth() -> None:
    x = images(400, 2, 16, 24)
    y = seeded(translation)(x)
    counts: dict[tuple[int, int], int] = {}
    for before, after in zip(x, y, strict=True):
        found = [(dy, dx) for dy in range(-3, 4) for dx in range(-4, 5) if torch.equal(after, shifted(before, dy, dx))]
        assert len(found) == 1
        counts[found[0]] = counts.get(found[0], 0) + 1
    assert set(counts) == {(dy, dx) for dy in range(-2, 3) for dx in range(-3, 4)}  # all of 16/8 and 24/8
    for count in counts.values():
        assert abs(count - 400 / 35) < 4.5 * math.sqrt(400 / 35)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 6), (32, 20)])
def test_cutout_zeroes_a_rectangle_of_half_the_size(height: int, width: int) -> None:
    x = images(3000, 2, height, width) + 3  # nowhere zero
    y = seeded(cutout)(x)
    cut = (y == 0).all(1)
    assert torch.equal(y, torch.where(cut[:, None], 0.0, x))
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None, :])  # a rectangle
    for inside, size in ((rows, height), (columns, width)):
        length = int(size * 0.5 + 0.5)
        lengths = inside.sum(1)
        assert lengths.max() == length
        assert lengths.min() == length - length // 2  # the center reaches the border
        assert ((inside[:, 1:] != inside[:, :-1]).sum(1) <= 2).all()  # without holes
        share = inside.double().mean(0)
        assert (share - share.flip(0)).abs().max() < 5 * math.sqrt(0.5 / 3000)  # both borders alike
        centers = size + 1 - length % 2
        assert abs(share[size // 2] - length / centers) < 5 * math.sqrt(0.25 / 3000)


# ---------------------------------------------------------------- the whole


def test_the_empty_policy_is_the_identity() -> None:
    x = images(2, 3, 4, 4)
    for policy in ("", "  "):
        assert DiffAugment(policy)(x) is x


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "cutout,color", "translation, cutout", ALL])
def test_a_policy_is_the_chain_of_its_parts(policy: str) -> None:
    x = images(4, 3, 8, 8)
    y = seeded(DiffAugment(policy))(x)
    torch.manual_seed(0)
    expected = x
    for name in policy.replace(" ", "").split(","):
        expected = POLICIES[name](expected)
    assert torch.equal(y, expected)
    assert not torch.equal(y, x)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7), (3, 2, 5, 4), (2, 4, 33, 17), (0, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = DiffAugment()(torch.rand(shape).to(dtype))
    assert y.shape == shape
    assert y.dtype == dtype
    assert torch.isfinite(y).all()


def test_each_image_is_augmented_by_itself() -> None:
    x = images(1, 3, 16, 16).expand(8, -1, -1, -1)
    y = seeded(DiffAugment())(x)
    assert all(not torch.equal(y[0], other) for other in y[1:])
    # An image's result does not depend on the others in its batch.
    other = torch.cat([x[:1], images(7, 3, 16, 16, seed=9)])
    assert torch.equal(seeded(DiffAugment())(other)[0], y[0])


def test_it_is_differentiable_twice() -> None:
    x = images(2, 2, 5, 3).requires_grad_()
    for policy in (*POLICIES, ALL):
        augment = seeded(DiffAugment(policy))
        assert torch.autograd.gradcheck(augment, (x,))
        assert torch.autograd.gradgradcheck(augment, (x,))


def test_the_seed_decides() -> None:
    x = images(4, 3, 8, 8)
    augment = DiffAugment()
    assert torch.equal(seeded(augment)(x), seeded(augment)(x))
    assert not torch.equal(seeded(augment)(x), seeded(augment, 1)(x))


def test_unknown_policies_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'colour'.*color, translation, cutout.*Did you mean 'color'"):
        DiffAugment("colour,cutout")
    with pytest.raises(ValueError, match="''"):
        DiffAugment("color,")
    with pytest.raises(ValueError, match="twice"):
        DiffAugment("color,cutout,color")


def test_it_is_an_augmentation_that_does_not_adapt() -> None:
    augment = DiffAugment()
    assert isinstance(augment, Augmentation)
    augment.update(torch.ones(4), 4)
    assert augment.state_dict() == {}
    assert "color,translation,cutout" in repr(augment)
