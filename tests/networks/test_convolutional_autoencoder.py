"""What is not settled by the comparison with diffusers in tests/interop/test_interop_autoencoder.py."""

import copy

import pytest
import torch

from lightning_gen.networks import convolutional_autoencoder, winograd
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

SMALL = {"channels": 8, "channel_multipliers": (1, 2, 2), "blocks": 1, "norm_groups": 4}
SHAPE = (3, 16, 24)


def encoder(**how):
    torch.manual_seed(0)
    return ConvolutionalEncoder(**{"image_shape": SHAPE, "out_channels": 8} | SMALL | how)


def decoder(**how):
    torch.manual_seed(0)
    return ConvolutionalDecoder(**{"image_shape": SHAPE, "in_channels": 4} | SMALL | how)


NETS = {
    "encoder": (encoder, (2, *SHAPE), (2, 8, 4, 6)),
    "decoder": (decoder, (2, 4, 4, 6), (2, *SHAPE)),
}
both = pytest.mark.parametrize(("make", "given", "wanted"), NETS.values(), ids=NETS)


def inputs(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types(make, given, wanted, dtype):
    net = make().to(dtype)
    made = net(inputs(given, dtype))
    assert made.shape == wanted
    assert made.dtype == dtype
    assert made.is_contiguous()
    assert net(inputs(given)).dtype == dtype  # images in another precision are taken


@both
def test_every_parameter_gets_a_finite_gradient(make, given, wanted):
    net = make(attention_levels=(0, -1)).double()
    x = inputs(given, torch.float64).requires_grad_()
    (net(x) * torch.randn(wanted, dtype=torch.float64)).sum().backward()
    for name, parameter in [*net.named_parameters(), ("the input", x)]:
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@both
def test_checkpointing_changes_no_gradient(make, given, wanted, monkeypatch):
    calls = []
    inner = convolutional_autoencoder.checkpoint
    monkeypatch.setattr(
        convolutional_autoencoder, "checkpoint", lambda *given, **how: calls.append(1) or inner(*given, **how)
    )
    nets = [make(checkpointing=again).double() for again in (False, True)]
    x = inputs(given, torch.float64)
    for net in nets:
        net(x).square().sum().backward()
    for plain, again in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(plain.grad, again.grad)
    blocks = 3 * (1 if make is encoder else 2) + 2 + 2  # of three levels and the middle, and two that resample
    assert len(calls) == blocks
    with torch.no_grad():
        nets[1](x)
    assert len(calls) == blocks


@both
def test_dropout_is_of_training_alone(make, given, wanted):
    net, plain = make(dropout=0.5), make()
    x = inputs(given)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), plain(x))


@both
def test_bf16_autocast_is_near(make, given, wanted):
    net, x = make(), inputs(given)
    exact = net(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x)
    rough.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
    assert (rough.float() - exact).abs().max() <= 0.05 * exact.abs().max()


@both
@pytest.mark.slow
def test_compiles_without_a_graph_break(make, given, wanted):
    torch._dynamo.reset()
    eager = make().eval()
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="eager", fullgraph=True)
    x = inputs(given)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), eager(x), rtol=0, atol=0)


@both
def test_a_state_dict_carries_everything(make, given, wanted, tmp_path):
    net, other = make(), make()
    for parameter in net.parameters():
        parameter.data.add_(0.1)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(other(inputs(given)), net(inputs(given)))


def test_full_resolution_is_convolved_the_fast_way(monkeypatch):
    calls = []
    inner = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", lambda *given: calls.append(given[0].shape[2]) or inner(*given))
    net = encoder(image_shape=(3, 32, 32), channels=128, channel_multipliers=(1, 1), norm_groups=32)
    with torch.no_grad():
        net(inputs((4, 3, 32, 32)))
    # a block of two convolutions at full resolution, then three blocks of two, and none of the ends
    assert calls == [32, 32] + [16] * 6


def test_the_gradient_of_the_last_layer_is_that_of_its_convolution():
    net = decoder().double()
    assert net.last_layer is net.output.weight
    assert net.last_layer.shape == (3, 8, 3, 3)
    (grad,) = torch.autograd.grad(net(inputs((1, 4, 4, 6), torch.float64)).sum(), net.last_layer)
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(16, 24), (4, 4), (40, 8)])
def test_any_size_that_halves_is_taken_whatever_it_is_built_for(size):
    net = encoder()
    assert net(inputs((1, 3, *size))).shape == (1, 8, size[0] // 4, size[1] // 4)
    assert decoder()(inputs((1, 4, size[0] // 4, size[1] // 4))).shape == (1, 3, *size)


@pytest.mark.parametrize("make", [encoder, decoder])
def test_a_size_that_does_not_halve_is_answered_with_one_that_does(make):
    with pytest.raises(ValueError, match="28 x 24"):
        make(image_shape=(3, 27, 25))


def test_images_that_do_not_halve_are_answered_with_a_size_that_does():
    with pytest.raises(ValueError, match="16 x 16"):
        encoder()(inputs((1, 3, 16, 18)))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        encoder()(inputs((1, 1, 16, 16)))
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\)"):
        decoder()(inputs((1, 8, 4, 4)))


@pytest.mark.parametrize("make", [encoder, decoder])
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"channel_multipliers": ()}, "channel_multipliers"),
        ({"channel_multipliers": (1, 0.3)}, "channel_multipliers"),
        ({"attention_levels": (3,)}, "attention_levels"),
        ({"blocks": 0}, "blocks"),
        ({"channels": 0}, "channels"),
        ({"norm_groups": 0}, "norm_groups"),
        ({"dropout": 1.0}, "dropout"),
        ({"quant_channels": 0}, "quant_channels"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_by_name(make, how, what):
    with pytest.raises(ValueError, match=what):
        make(**how)


def test_channels_of_a_1x1_that_is_not_there_are_refused():
    with pytest.raises(ValueError, match="quant_channels"):
        encoder(quant_conv=False, quant_channels=4)
    with pytest.raises(ValueError, match="quant_channels"):
        decoder(post_quant_conv=False, quant_channels=4)
