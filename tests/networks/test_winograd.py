import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.networks import winograd
from lightning_gen.networks.winograd import Conv3x3

# multiples of the tile, less than one, one and a half, a batch of more chunks than one, and images of more than one
SIZES = {"tiles": (2, 8, 8), "odd": (3, 7, 14), "wide": (1, 6, 13), "chunks": (5, 32, 32)}
SIZES |= {"bands": (2, 70, 69), "a band a row": (1, 9, 1040)}


@pytest.fixture(autouse=True)
def _from_any_width(monkeypatch):
    for least in ("_CHANNELS", "_SIDE", "_TILES"):
        monkeypatch.setattr(winograd, least, 1)


def channels_last(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def made(size, dtype=torch.float64, inputs=5, outputs=4):
    torch.manual_seed(0)
    batch, height, width = size
    conv = Conv3x3(inputs, outputs).to(dtype)
    return conv, channels_last(batch, inputs, height, width, dtype=dtype).requires_grad_()


def called(monkeypatch):
    """Count how often the fast way is taken."""
    calls = []
    inner = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", lambda *given: calls.append(1) or inner(*given))
    return calls


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_is_the_convolution(size, monkeypatch):
    calls = called(monkeypatch)
    conv, x = made(size)
    y = conv(x)
    expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert len(calls) == 1
    assert (y - expected).abs().max() < 1e-12
    assert y.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(expected)
    inputs = (x, conv.weight, conv.bias)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-11
    assert len(calls) == 2


def test_its_rounding_in_float32_is_a_few_times_that_of_the_direct_sum():
    torch.manual_seed(0)
    conv = Conv3x3(64, 64)
    x = channels_last(4, 64, 16, 16, dtype=torch.float32)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    with torch.no_grad():
        ours = (conv(x) - exact).square().mean().sqrt()
        direct = (F.conv2d(x, conv.weight, conv.bias, padding=1) - exact).square().mean().sqrt()
    assert 0 < ours < 8 * direct


def test_only_what_is_wanted_has_a_gradient():
    conv, x = made((2, 8, 8))
    conv.weight.requires_grad_(False)
    conv(x).sum().backward()
    assert conv.weight.grad is None
    assert (conv.bias.grad == 2 * 64).all()
    assert x.grad is not None


def test_a_result_may_be_changed_in_place():
    conv, x = made((1, 6, 7))
    y = conv(x).add_(1).mul_(2)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    again = (F.conv2d(x, conv.weight, conv.bias, padding=1) + 1) * 2
    assert (gradient - torch.autograd.grad(again.square().sum(), x)[0]).abs().max() < 1e-11


def test_derivatives_of_every_kind():
    torch.manual_seed(0)
    x = channels_last(1, 2, 6, 6).requires_grad_()
    weight, bias = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    given = (x, weight.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(winograd.Winograd.apply, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(winograd.Winograd.apply, given, fast_mode=True)


def test_inside_function_transforms():
    conv, x = made((2, 8, 8))
    x, weight = x.detach(), conv.weight.detach()
    tangent = channels_last(*x.shape)
    _, moved = torch.func.jvp(conv, (x,), (tangent,))
    assert (moved - F.conv2d(tangent, weight, padding=1)).abs().max() < 1e-12
    stacked = torch.vmap(conv)(x[:, None].contiguous())
    assert (stacked[:, 0] - conv(x)).abs().max() < 1e-12


def refuses(conv, x):
    return not winograd._worthwhile(x, conv.weight)


def test_where_it_is_the_ordinary_convolution(monkeypatch):
    conv, x = made((2, 8, 8), torch.float32, 64, 64)
    assert winograd._worthwhile(x, conv.weight)
    assert refuses(conv, x.contiguous())
    assert refuses(conv, x.bfloat16())
    assert refuses(conv.bfloat16(), x.bfloat16())
    conv = conv.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert refuses(conv, x)
        assert conv(x).dtype == torch.bfloat16
    monkeypatch.undo()
    wide = torch.empty(128, 128, 3, 3)
    for batch, channels, side, fast in (
        (4, 128, 16, True),
        (3, 128, 16, False),
        (64, 128, 7, False),
        (4, 64, 16, False),
    ):
        x = torch.empty(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        assert winograd._worthwhile(x, wide[:, :channels]) == fast


def test_it_is_a_conv2d_with_hooks_and_the_same_state():
    conv, x = made((1, 8, 8))
    seen = []
    conv.register_forward_hook(lambda *given: seen.append(1))
    conv(x)
    plain = nn.Conv2d(5, 4, 3, padding=1)
    plain.load_state_dict(conv.state_dict(), strict=True)
    assert isinstance(conv, nn.Conv2d)
    assert seen == [1]
