"""ADA: every transform against an independent reference, its probability, the rule of p, its gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.gan import ada_transforms as maps
from lightning_gen.gan.ada import ADA, GROUPS, _Draw
from lightning_gen.gan.penalties import R1, WGANGP
from lightning_gen.gan.warp import ANALYSIS, MARGIN, SYNTHESIS, doubling, halving, warp

CPU = torch.device("cpu")
NAMES = [name for group in GROUPS.values() for name in group]
GEOMETRY = GROUPS["blit"] + GROUPS["geometric"]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def each(value: float, n: int) -> Tensor:
    return torch.full((n,), value, dtype=torch.float64)


def seeded(function: Callable[[Tensor], Tensor], seed: int = 0) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return function(x)

    return call


def mirrored(x: Tensor, dy: int, dx: int) -> Tensor:
    """Shift the content of one image (C, H, W) down and right; numpy's mirror comes in."""
    reach = 9
    padded = np.pad(x.numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    height, width = x.shape[1:]
    return torch.from_numpy(padded[:, reach - dy : reach - dy + height, reach - dx : reach - dx + width].copy())


def standard_normal_enough(values: Tensor) -> None:
    """Compare mean, variance and the share within one sigma with N(0, 1), at about four standard errors."""
    n = values.numel()
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((values.abs() < 1).double().mean() - 0.6827) < 4 * math.sqrt(0.2166 / n)


# ---------------------------------------------------------------- the filters


def test_the_filter_pair_is_biorthogonal_with_four_vanishing_moments() -> None:
    h = np.array(ANALYSIS[:0:-1] + ANALYSIS)
    g = np.array(SYNTHESIS[:0:-1] + SYNTHESIS)
    both = np.convolve(h, g)
    even = both[len(both) // 2 % 2 :: 2]
    np.testing.assert_allclose(even, np.eye(len(even))[len(even) // 2], atol=1e-14)
    for taps, total in ((h, 1.0), (g, 2.0)):
        k = np.arange(len(taps)) - len(taps) // 2
        assert taps.sum() == pytest.approx(total, abs=1e-14)
        for moment in range(4):  # zeros of order 4 at the Nyquist frequency: what makes 9/7 the 9/7 pair
            assert abs(((-1.0) ** k * k**moment * taps).sum()) < 1e-12


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 17])
def test_doubling_mirrors_without_end(n: int) -> None:
    long = np.pad(np.eye(n), ((16, 16), (0, 0)), mode="reflect") if n > 1 else np.ones((33, 1))
    zeros = np.zeros((2 * len(long) - 1, n))
    zeros[::2] = long
    g = np.array(SYNTHESIS[:0:-1] + SYNTHESIS)
    doubled = np.stack([np.convolve(column, g, mode="same") for column in zeros.T], axis=1)
    expected = torch.from_numpy(doubled[32 : 32 + 2 * n - 1])
    torch.testing.assert_close(doubling(n, torch.float64, CPU), expected, rtol=0, atol=1e-14)
    both = halving(n, torch.float64, CPU) @ torch.from_numpy(doubled[32 - MARGIN : 32 + 2 * n - 1 + MARGIN])
    torch.testing.assert_close(both, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)


def test_the_filters_serve_training_after_inference_mode() -> None:
    doubling.cache_clear()
    halving.cache_clear()
    x = images(2, 3, 6, 6)
    turn = maps.inverse_quarter_turns(each(1, 2))
    with torch.inference_mode():
        warp(x, turn)
    x.requires_grad_()
    warp(x, turn).sum().backward()
    assert x.grad is not None


def test_the_filters_are_the_9_7_pair() -> None:
    # Daubechies' polynomial 1 + 4 y + 10 y^2 + 20 y^3, y = sin^2(w / 2), split into its real root (synthesis)
    # and its pair of complex roots (analysis), each times (1 - y)^2.
    roots = np.roots([20, 10, 4, 1])
    real = roots[abs(roots.imag) < 1e-9].real[0]
    pair = roots[abs(roots.imag) > 1e-9]
    w = np.linspace(0, math.pi, 50)
    y = np.sin(w / 2) ** 2
    for half, expected in (
        (SYNTHESIS, 2 * (1 - y) ** 2 * (1 - y / real)),
        (ANALYSIS, (1 - y) ** 2 * ((1 - y / pair[0]) * (1 - y / pair[1])).real),
    ):
        response = half[0] + sum(2 * tap * np.cos(k * w) for k, tap in enumerate(half) if k > 0)
        np.testing.assert_allclose(response, expected, atol=1e-13)


# ---------------------------------------------------------------- geometry against references


@pytest.mark.parametrize("size", [1, 2, 7, 8])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_quarter_turns_are_rot90(k: int, size: int) -> None:
    x = images(2, 3, size, size)
    expected = torch.rot90(x, k, dims=(2, 3))
    torch.testing.assert_close(warp(x, maps.inverse_quarter_turns(each(k, 2))), expected, rtol=0, atol=1e-12)
    by_angle = maps.inverse_rotation(each(k * math.pi / 2, 2))
    torch.testing.assert_close(warp(x, by_angle), expected, rtol=0, atol=1e-12)


def test_half_turns_of_unequal_sides() -> None:
    x = images(2, 3, 6, 9)
    expected = torch.rot90(x, 2, dims=(2, 3))
    torch.testing.assert_close(warp(x, maps.inverse_quarter_turns(each(2, 2))), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (1, 5), (5, 1), (2, 3)])
def test_flips_are_flips(height: int, width: int) -> None:
    x = images(2, 3, height, width)
    for sx, sy, dims in ((-1, 1, (3,)), (1, -1, (2,)), (-1, -1, (2, 3)), (1, 1, ())):
        moved = warp(x, maps.inverse_scaling(each(sx, 2), each(sy, 2)))
        torch.testing.assert_close(moved, x.flip(dims), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 1), (-3, 2), (7, -8), (0, 0)])
def test_whole_pixel_shifts_are_rolls(dx: int, dy: int) -> None:
    x = images(2, 3, 10, 12)
    moved = warp(x, maps.inverse_translation(each(dx, 2), each(dy, 2)))
    rolled = torch.roll(x, (dy, dx), dims=(2, 3))
    rows = slice(max(dy, 0), 10 + min(dy, 0))
    columns = slice(max(dx, 0), 12 + min(dx, 0))
    torch.testing.assert_close(moved[..., rows, columns], rolled[..., rows, columns], rtol=0, atol=1e-12)
    expected = torch.stack([mirrored(image, dy, dx) for image in x])
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_affine_maps_carry_ramps(seed: int) -> None:
    # A linear ramp is kept by both filters and by the bilinear look-up, so away from the borders the warped
    # ramp must be the ramp at G^-1 v, here with G built by numpy from the forward transforms.
    rng = np.random.default_rng(seed)
    sx, sy, angle, tx, ty = rng.uniform(0.9, 1.3), rng.uniform(0.9, 1.3), rng.uniform(-3, 3), *rng.uniform(-2, 2, 2)
    scaling = np.diag([sx, sy, 1.0])
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])  # counterclockwise where y points down
    translation = np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1.0]])
    inverse = np.linalg.inv(translation @ rotation @ scaling)
    ours = (
        maps.inverse_scaling(each(sx, 1), each(sy, 1))
        @ maps.inverse_rotation(each(angle, 1))
        @ maps.inverse_translation(each(tx, 1), each(ty, 1))
    )
    np.testing.assert_allclose(ours[0].numpy(), inverse, atol=1e-12)

    height, width = 40, 46
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    a, b, offset = rng.normal(size=3)
    source = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))
    inner = (abs(x) < 8) & (abs(y) < 8)
    moved = warp(torch.from_numpy(a * x + b * y + offset)[None, None], ours)[0, 0].numpy()
    np.testing.assert_allclose(moved[inner], (a * source[0] + b * source[1] + offset)[inner], atol=1e-11)


def test_smooth_images_are_resampled_accurately() -> None:
    # Half a turn's worth of a cosine that the mirror continues: f(x) = cos(pi k x / (n - 1)).
    n, shift = 48, 0.37
    position = torch.arange(n, dtype=torch.float64)
    x = torch.cos(math.pi * 3 * position / (n - 1)).expand(1, 1, n, n)
    moved = warp(x, maps.inverse_translation(each(shift, 1), each(0, 1)))
    expected = torch.cos(math.pi * 3 * (position - shift) / (n - 1)).expand(1, 1, n, n)
    assert (moved - expected).abs().max() < 0.006


def test_shrinking_does_not_alias() -> None:
    # Stripes at the Nyquist frequency, halved in size: picking every second pixel would give a flat 1.
    stripes = ((-1.0) ** torch.arange(33)).double().expand(1, 1, 33, 33)
    small = warp(stripes, maps.inverse_scaling(each(0.5, 1), each(0.5, 1)))
    assert small.abs().max() < 0.05


# ---------------------------------------------------------------- color against references


def test_brightness_adds_and_contrast_multiplies() -> None:
    x = images(3, 3, 4, 4)
    values = torch.tensor([-0.3, 0.0, 1.7], dtype=torch.float64)
    torch.testing.assert_close(maps.recolor(x, maps.shift_color(values)), x + values.view(3, 1, 1, 1))
    torch.testing.assert_close(maps.recolor(x, maps.scale_color(values)), x * values.view(3, 1, 1, 1))


def test_luma_flip_negates_luma_and_keeps_chroma() -> None:
    x = images(2, 3, 4, 4)
    flip = maps.luma_flip(each(1, 2))
    y = maps.recolor(x, flip)
    luma = x.mean(1, keepdim=True)
    torch.testing.assert_close(y, (x - luma) - luma)
    torch.testing.assert_close(maps.recolor(y, flip), x)  # twice is the identity
    assert torch.equal(maps.luma_flip(each(0, 2)), torch.eye(4).double().expand(2, 4, 4))


def test_hue_rotation_keeps_luma_and_length() -> None:
    x = images(5, 3, 4, 4)
    angle = torch.tensor([0.3, -2.0, math.pi, 1.0, 3.0], dtype=torch.float64)
    y = maps.recolor(x, maps.rotate_hue(angle))
    torch.testing.assert_close(y.mean(1), x.mean(1))
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))
    # A third of a turn moves red to green to blue to red.
    third = maps.recolor(x, maps.rotate_hue(each(2 * math.pi / 3, 5)))
    torch.testing.assert_close(third, x.roll(1, dims=1))
    torch.testing.assert_close(maps.recolor(y, maps.rotate_hue(-angle)), x)
    # The angle between the chroma before and after is the angle asked for.
    before, after = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    cos = (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))
    torch.testing.assert_close(cos, angle.cos().view(5, 1, 1).expand_as(cos))
    assert torch.equal(maps.rotate_hue(each(0, 2)), torch.eye(4).double().expand(2, 4, 4))


def test_saturation_scales_chroma() -> None:
    x = images(3, 3, 4, 4)
    s = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    luma = x.mean(1, keepdim=True)
    torch.testing.assert_close(maps.recolor(x, maps.saturate(s)), luma + s.view(3, 1, 1, 1) * (x - luma))
    assert torch.equal(maps.saturate(each(1, 2)), torch.eye(4).double().expand(2, 4, 4))


def test_one_channel_is_the_gray_of_three() -> None:
    x = images(6, 1, 4, 4)
    torch.manual_seed(0)
    draw = torch.randn(5, 6, dtype=torch.float64)
    matrix = (
        maps.saturate(draw[0].exp())
        @ maps.rotate_hue(draw[1])
        @ maps.luma_flip((draw[2] > 0).double())
        @ maps.scale_color(draw[3].exp())
        @ maps.shift_color(draw[4])
    )
    as_three = maps.recolor(x.expand(-1, 3, -1, -1), matrix)
    torch.testing.assert_close(as_three - as_three.mean(1, keepdim=True), torch.zeros_like(as_three))  # stays gray
    torch.testing.assert_close(maps.recolor(x, matrix), as_three[:, :1])


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"these have 4.*transforms='blit,geometric'"):
        ADA(p=1.0)(images(2, 4, 8, 8))
    assert ADA(p=1.0, transforms="blit,geometric")(images(2, 4, 8, 8)).shape == (2, 4, 8, 8)


# ---------------------------------------------------------------- each transform, drawn by ADA


def test_drawn_flips() -> None:
    x = images(200, 1, 5, 6)
    y = seeded(ADA(p=1.0, transforms="flip"))(x)
    kept = (y == x).flatten(1).all(1)
    torch.testing.assert_close(y[~kept], x[~kept].flip(3), rtol=0, atol=1e-12)
    assert abs(kept.double().mean() - 0.5) < 4 * math.sqrt(0.25 / 200)


def test_drawn_quarter_turns() -> None:
    x = images(400, 1, 5, 5)
    y = seeded(ADA(p=1.0, transforms="rot90"))(x)
    turned = torch.stack([torch.rot90(x, k, dims=(2, 3)) for k in range(4)])
    distances = (turned - y).abs().flatten(2).amax(2)
    assert distances.amin(0).max() < 1e-12
    shares = torch.bincount(distances.argmin(0), minlength=4) / 400
    assert (shares - 0.25).abs().max() < 4 * math.sqrt(0.1875 / 400)


def test_drawn_integer_translations() -> None:
    x = images(300, 1, 16, 24)
    y = seeded(ADA(p=1.0, transforms="integer_translation"))(x)
    found = []
    for before, after in zip(x, y, strict=True):
        shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-4, 5)]
        match = [s for s in shifts if (after - mirrored(before, *s)).abs().max() < 1e-12]
        assert len(match) == 1
        found.append(match[0])
    dy, dx = torch.tensor(found).T
    assert (dy.abs().max(), dx.abs().max()) == (2, 3)  # an eighth of 16 and of 24
    # round(U(-2, 2)): the outermost values get half the share of the others
    assert abs((dy.abs() == 2).double().mean() - 1 / 4) < 4 * math.sqrt(0.1875 / 300)
    assert abs((dx == 0).double().mean() - 1 / 6) < 4 * math.sqrt(0.139 / 300)


def ramp(n: int, height: int, width: int, dim: int) -> Tensor:
    """Return images whose values are pixels right of (3) or below (2) the center."""
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    return (x if dim == 3 else y[:, None]).expand(n, 1, height, width)


def slopes(transforms: str, n: int = 1500, size: int = 25) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measure the inverse matrix [[a, b], [c, d]] of each drawn transform at the center of warped ramps."""
    augment, c = seeded(ADA(p=1.0, transforms=transforms)), size // 2
    x, y = (augment(ramp(n, size, size, dim))[:, 0] for dim in (3, 2))
    return (
        x[:, c, c + 1] - x[:, c, c],
        x[:, c + 1, c] - x[:, c, c],
        y[:, c, c + 1] - y[:, c, c],
        y[:, c + 1, c] - y[:, c, c],
    )


def test_drawn_scalings() -> None:
    a, b, c, d = slopes("scaling")
    torch.testing.assert_close(a, d, rtol=0, atol=1e-6)
    assert max(b.abs().max(), c.abs().max()) < 1e-6
    standard_normal_enough(-a.log2() / 0.2)


def test_drawn_anisotropic_scalings() -> None:
    a, b, c, d = slopes("anisotropic_scaling")
    torch.testing.assert_close(a * d, torch.ones_like(a), rtol=0, atol=1e-6)  # keeps the area
    assert max(b.abs().max(), c.abs().max()) < 1e-6
    standard_normal_enough(-a.log2() / 0.2)


def test_drawn_rotations() -> None:
    a, b, c, d = slopes("rotation")
    torch.testing.assert_close(a * a + c * c, torch.ones_like(a), rtol=0, atol=1e-6)
    torch.testing.assert_close((a, b), (d, -c), rtol=0, atol=1e-6)
    # The sum of two angles from U(-pi, pi) is uniform on the circle.
    assert max(abs(a.mean()), abs(c.mean())) < 4 * math.sqrt(0.5 / 1500)
    assert abs((a > 0).double().mean() - 0.5) < 2 / math.sqrt(1500)


def test_drawn_translations() -> None:
    height, width, n = 33, 17, 1500
    augment = seeded(ADA(p=1.0, transforms="translation"))
    for dim, size in ((2, height), (3, width)):
        moved = augment(ramp(n, height, width, dim))[:, 0, height // 2, width // 2]
        t = -moved / (size / 8)
        # The mirror at 4 sigma folds the outermost values back, far outside of the quantiles compared.
        assert abs(t.mean()) < 4 / math.sqrt(n)
        for quantile, share in ((0.5, 0.3829), (1.0, 0.6827), (2.0, 0.9545)):
            assert abs((t.abs() < quantile).double().mean() - share) < 4 * math.sqrt(share * (1 - share) / n)


def test_drawn_colors() -> None:
    x = images(1500, 3, 1, 1)
    luma = x.mean(1, keepdim=True)
    added = (seeded(ADA(p=1.0, transforms="brightness"))(x) - x).flatten(1)
    assert (added.amax(1) - added.amin(1)).max() < 1e-12
    standard_normal_enough(added[:, 0] / 0.2)
    scaled = (seeded(ADA(p=1.0, transforms="contrast"))(x) / x).flatten(1)
    standard_normal_enough(scaled.median(1).values.log2() / 0.5)
    saturated = seeded(ADA(p=1.0, transforms="saturation"))(x)
    standard_normal_enough(((saturated - luma).norm(dim=1) / (x - luma).norm(dim=1)).flatten().log2())
    flipped = seeded(ADA(p=1.0, transforms="luma_flip"))(x)
    mirror = ((flipped - (x - 2 * luma)).abs().amax((1, 2, 3)) < 1e-12).double()
    assert abs(mirror.mean() - 0.5) < 2 / math.sqrt(1500)
    hue = seeded(ADA(p=1.0, transforms="hue"))(x)
    cos = ((hue - luma) * (x - luma)).sum(1) / (x - luma).square().sum(1)
    assert abs(cos.mean()) < 4 * math.sqrt(0.5 / 1500)
    torch.testing.assert_close(hue.norm(dim=1), x.norm(dim=1))


def fixed_draws(monkeypatch: pytest.MonkeyPatch, values: list[float | tuple[float, float]]) -> _Draw:
    """Let the next draws be these values, one image."""
    left = iter(values)

    def chosen(self: _Draw, value: Tensor, neutral: float, p: Tensor | None) -> Tensor:
        return torch.tensor(next(left), dtype=torch.float64).view(-1, 1).expand_as(value.view(-1, 1)).view_as(value)

    monkeypatch.setattr(_Draw, "_chosen", chosen)
    return _Draw(1, torch.tensor(1.0), torch.float64)


def test_geometry_is_composed_in_the_order_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = 48, 32
    draw = fixed_draws(monkeypatch, [1, 1, (0.11, -0.07), 0.3, 0.5, -0.4, -1.1, (0.05, 0.02)])
    inverse = ADA()._geometry(draw, height, width)[0].numpy()

    def scale(sx: float, sy: float) -> np.ndarray:
        return np.diag([sx, sy, 1.0])

    def turn(angle: float) -> np.ndarray:
        c, s = math.cos(angle), math.sin(angle)
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])

    def shift(tx: float, ty: float) -> np.ndarray:
        return np.array([[1, 0, tx], [0, 1, ty], [0, 0, 1.0]])

    s, a = 2**0.3, 2**-0.4
    steps = [
        scale(-1, 1),
        turn(math.pi / 2),
        shift(round(0.11 * width), round(-0.07 * height)),
        scale(s, s),
        turn(0.5),
        scale(a, 1 / a),
        turn(-1.1),
        shift(0.05 * width, 0.02 * height),
    ]
    forward = np.eye(3)
    for step in steps:
        forward = step @ forward
    np.testing.assert_allclose(inverse, np.linalg.inv(forward), atol=1e-6)  # the draws are float32


def test_colors_are_composed_in_the_order_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = fixed_draws(monkeypatch, [0.2, -0.5, 1, 0.7, 0.9])
    x = images(1, 3, 4, 4)
    y = maps.recolor(x, ADA()._color(draw, 3))
    expected = x + 0.2
    expected = expected * 2**-0.5
    expected = expected - 2 * expected.mean(1, keepdim=True)
    expected = maps.recolor(expected, maps.rotate_hue(each(0.7, 1)))
    luma = expected.mean(1, keepdim=True)
    torch.testing.assert_close(y, luma + 2**0.9 * (expected - luma), rtol=0, atol=1e-6)


# What share of images a transform alters at p = 1: drawing no flip, no turn or no shift is one of its outcomes.
ALTERS = {"flip": 1 / 2, "rot90": 3 / 4, "integer_translation": 15 / 16, "luma_flip": 1 / 2}


@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_altered_images(name: str) -> None:
    n, p = 1500, 0.3
    x = images(n, 3, 16, 16) if name == "integer_translation" else images(n, 3, 4, 4)
    share = p * ALTERS.get(name, 1.0)
    altered = (seeded(ADA(p=p, transforms=name))(x) != x).flatten(1).any(1)
    assert abs(altered.double().mean() - share) < 4 * math.sqrt(share * (1 - share) / n)


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("shape", [(8, 3, 16, 16), (8, 1, 9, 12)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_zero_it_is_the_identity_bit_by_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = images(*shape).to(dtype)
    assert torch.equal(ADA(p=0.0)(x), x)
    assert torch.equal(ADA(p=1.0, transforms="")(x), x)


def test_images_that_are_not_chosen_keep_their_bits() -> None:
    x = images(400, 3, 8, 8).float()
    y = seeded(ADA(p=0.02))(x)
    kept = (y == x).flatten(1).all(1).double().mean()
    # The chance that none of the altering outcomes is drawn, blits of 8 pixels rounding to none in 1/4.
    alters = {**ALTERS, "integer_translation": 3 / 4}
    untouched = math.prod(1 - 0.02 * alters.get(name, 1.0) for name in NAMES)
    assert abs(kept - untouched) < 4 * math.sqrt(untouched * (1 - untouched) / 400)


@pytest.mark.parametrize(
    "shape", [(32, 3, 16, 16), (32, 1, 28, 28), (4, 3, 7, 12), (4, 1, 1, 1), (4, 3, 2, 3), (0, 3, 8, 8)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_at_one_values_are_finite(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y = ADA(p=1.0)(images(*shape).to(dtype))
    assert y.shape == shape
    assert y.dtype == dtype
    assert torch.isfinite(y).all()


def test_autocast_changes_nothing() -> None:
    x = images(16, 3, 8, 8).float()
    augment = seeded(ADA(p=0.8))
    plain = augment(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(augment(x), plain, rtol=0, atol=0)


def test_each_image_is_augmented_by_itself() -> None:
    x = images(6, 3, 8, 8)
    other = torch.cat([x[:1], images(5, 3, 8, 8, seed=4)])
    augment = seeded(ADA(p=0.9))
    torch.testing.assert_close(augment(x)[0], augment(other)[0], rtol=0, atol=0)
    same = augment(x[:1].expand(6, -1, -1, -1))
    assert all(not torch.equal(same[0], y) for y in same[1:])


def test_it_is_differentiable_twice() -> None:
    x = images(3, 3, 4, 5).requires_grad_()
    augment = seeded(ADA(p=0.9))
    assert torch.autograd.gradcheck(augment, (x,))
    assert torch.autograd.gradgradcheck(augment, (x,))


def test_penalties_go_through_it() -> None:
    # The penalty of the image before the augmentation, with the gradient through it.
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(48, 2), nn.Softplus(), nn.Linear(2, 1), nn.Flatten(0)).double()
    augment = seeded(ADA(p=0.9), seed=5)
    real, fake = images(3, 3, 4, 4), images(3, 3, 4, 4, seed=1)
    for penalty in (R1(), WGANGP()):

        def value(weight: Tensor, penalty: R1 | WGANGP = penalty) -> Tensor:
            torch.manual_seed(2)
            state = {**dict(critic.named_parameters()), "1.weight": weight}
            return penalty(lambda x: torch.func.functional_call(critic, state, (augment(x),)), real, fake)

        assert torch.autograd.gradcheck(value, (critic[1].weight.detach().clone().requires_grad_(),))


def test_functional_gradients_go_through_it() -> None:
    x = images(2, 1, 4, 4)
    turn = maps.inverse_rotation(each(0.4, 2))
    gradient = torch.func.grad(lambda v: warp(v, turn).square().sum())(x)
    leaf = x.clone().requires_grad_()
    warp(leaf, turn).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


# ---------------------------------------------------------------- the rule of p


def test_p_moves_by_the_rule() -> None:
    augment = ADA(target=0.6, images=1000, every=4)
    logits = torch.cat([torch.full((9,), 2.5), torch.full((1,), -0.1)])  # r = 0.8
    for call in range(1, 13):
        augment.update(logits, batch_size=10)
        assert augment.p.item() == pytest.approx(call // 4 * 4 * 10 / 1000, rel=1e-6)
    down = torch.cat([torch.ones(7), -torch.ones(3)])  # r = 0.4
    for _ in range(8):
        augment.update(down, batch_size=10)
    assert augment.p.item() == pytest.approx(0.12 - 0.08, rel=1e-5)


def test_the_mean_runs_over_all_calls_since_the_last_move() -> None:
    augment = ADA(target=0.6, images=100, every=2, p=0.5)
    augment.update(torch.ones(30), 1)
    augment.update(-torch.ones(5), 1)  # r = 25/35 > 0.6 although the last call alone is at -1
    assert augment.p.item() == pytest.approx(0.52, rel=1e-6)
    augment.update(-torch.ones(5), 1)  # the tally began anew
    augment.update(torch.ones(5), 1)  # r = 0
    assert augment.p.item() == pytest.approx(0.5, rel=1e-6)


def test_on_target_p_stays() -> None:
    augment = ADA(target=0.6, images=100, every=1, p=0.5)
    augment.update(torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0]), 50)
    assert augment.p.item() == 0.5
    augment.update(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), 50)  # a logit of 0 has the sign 0
    assert augment.p.item() == 0.5


def test_p_stays_a_probability() -> None:
    augment = ADA(images=100, every=1)
    for _ in range(5):
        augment.update(torch.ones(8), 64)
    assert augment.p.item() == 1.0
    for _ in range(5):
        augment.update(-torch.ones(8), 64)
    assert augment.p.item() == 0.0


def test_p_reaches_one_after_the_stated_number_of_images() -> None:
    augment = ADA(images=6400, every=4)
    for _ in range(96):
        augment.update(torch.ones(64), 64)
    assert augment.p.item() == pytest.approx(0.96, rel=1e-5)
    for _ in range(4):
        augment.update(torch.ones(64), 64)
    assert augment.p.item() == pytest.approx(1.0, rel=1e-5)


def test_without_a_target_p_is_fixed() -> None:
    augment = ADA(target=None, every=1, p=0.3)
    augment.update(torch.ones(8), 100_000)
    assert augment.p.item() == pytest.approx(0.3)
    assert augment.tally.tolist() == [0, 0, 0, 0]


def test_odd_logits_neither_learn_nor_break_p() -> None:
    logits = torch.ones(8, dtype=torch.float16, requires_grad=True)
    augment = ADA(every=1, images=100)
    augment.update(logits, 8)
    assert not augment.p.requires_grad
    augment.update(torch.full((8,), float("nan")), 8)
    augment.update(torch.empty(0), 0)
    assert torch.isfinite(augment.p)


def test_the_state_resumes_between_two_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, generator=generator) + 1 for _ in range(23)]
    straight = ADA(images=2000, every=5)
    for batch in batches:
        straight.update(batch, 16)
    first = ADA(images=2000, every=5)
    for batch in batches[:12]:  # two calls after a move
        first.update(batch, 16)
    resumed = ADA(images=2000, every=5, p=0.9)
    resumed.load_state_dict(first.state_dict())
    assert resumed.tally[3] == 2
    for batch in batches[12:]:
        resumed.update(batch, 16)
    assert torch.equal(resumed.p, straight.p)
    assert torch.equal(resumed.tally, straight.tally)
    assert straight.p > 0
    state = straight.state_dict()
    assert set(state) == {"p", "tally"}
    assert (state["p"].dtype, state["p"].shape) == (torch.float32, torch.Size([]))


def test_processes_share_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other process has 30 logits of sign -1 and as many images.
    def all_reduce(tensor: Tensor) -> None:
        tensor += torch.tensor([-30, 30, 30])

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    augment = ADA(images=1000, every=2, p=0.5)
    augment.update(torch.ones(10), 10)
    assert augment.tally.tolist() == [-20, 40, 40, 1]
    augment.update(torch.ones(10), 10)  # r = -0.5 of 80 images
    assert augment.p.item() == pytest.approx(0.5 - 0.08, rel=1e-6)


# ---------------------------------------------------------------- settings


def test_groups_and_names_choose_transforms() -> None:
    assert ADA().transforms == frozenset(NAMES)
    assert ADA(transforms="blit, hue").transforms == frozenset((*GROUPS["blit"], "hue"))
    assert ADA(transforms="color,hue").transforms == frozenset(GROUPS["color"])
    # Without geometry no pixel moves.
    x = F.one_hot(torch.arange(36)).double().view(1, 36, 6, 6)[:, :3]
    y = ADA(p=1.0, transforms="brightness,contrast")(x)
    assert len(y[0, 0].unique()) == 2


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'rotate'.*Did you mean 'rotation'"):
        ADA(transforms="rotate")
    for bad in ({"p": 1.5}, {"p": -0.1}, {"p": float("nan")}, {"target": 1.0}, {"target": -2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
            ADA(**bad)
    for bad_count in ({"every": 0}, {"images": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ADA(**bad_count)


def test_repr_names_the_settings() -> None:
    assert "target=0.6" in repr(ADA(transforms="hue,flip"))
    assert "transforms='flip,hue'" in repr(ADA(transforms="hue,flip"))
