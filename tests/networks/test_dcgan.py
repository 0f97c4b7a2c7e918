"""DCGAN: the published sizes by arithmetic, its initial weights, and the layers written as convolutions."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gen.networks import DCGANDiscriminator, DCGANGenerator


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_published_generator():
    stack = [100, 512, 256, 128, 64, 3]
    kernels = sum(16 * before * after for before, after in itertools.pairwise(stack))
    norms = sum(2 * width for width in stack[1:-1])
    assert count(DCGANGenerator()) == kernels + norms == 3_576_704


def test_the_published_discriminator():
    stack = [3, 64, 128, 256, 512, 1]
    kernels = sum(16 * before * after for before, after in itertools.pairwise(stack))
    norms = sum(2 * width for width in stack[2:-1])
    assert count(DCGANDiscriminator()) == kernels + norms == 2_765_568
    assert count(DCGANDiscriminator(spectral_norm=True)) == 2_765_568


@pytest.mark.parametrize(
    ("side", "bottom", "widths"),
    [
        (8, 2, [8, 4]),
        (16, 4, [8, 4]),
        (28, 7, [8, 4]),
        (32, 4, [16, 8, 4]),
        (64, 4, [32, 16, 8, 4]),
        (128, 4, [64, 32, 16, 8, 4]),
    ],
)
def test_the_stack_of_each_side(side, bottom, widths):
    generator = DCGANGenerator(5, 4, (1, side, side))
    kernels = 5 * widths[0] * bottom**2
    kernels += sum(16 * before * after for before, after in zip(widths, [*widths[1:], 1], strict=True))
    assert count(generator) == kernels + 2 * sum(widths)
    discriminator = DCGANDiscriminator(4, (1, side, side), norm="none")
    upward = [1, *widths[::-1]]
    kernels = sum(16 * before * after for before, after in itertools.pairwise(upward))
    assert count(discriminator) == kernels + widths[0] * bottom**2 + sum(widths) + 1  # biases too


def test_the_conditional_ones_add_their_parameters():
    assert count(DCGANGenerator(num_classes=10, conditioning="concat")) == 3_576_704 + 10 * 512 * 16
    assert count(DCGANGenerator(num_classes=10, conditioning="cbn")) == 3_576_704 + 9 * 2 * 960
    shape = dict(num_classes=10)
    assert count(DCGANDiscriminator(**shape, conditioning="concat")) == 2_765_568 + 16 * 10 * 64
    assert count(DCGANDiscriminator(**shape, conditioning="auxiliary")) == 2_765_568 + 10 * 8192
    # The projection's psi reads 512 summed features in place of 8192 positions.
    assert count(DCGANDiscriminator(**shape, conditioning="projection")) == 2_765_568 - 8192 + 512 + 5120


def test_initial_weights():
    torch.manual_seed(0)
    for net in (DCGANGenerator(), DCGANDiscriminator()):
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert layer.bias is None
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert abs(layer.weight.mean().item()) < 1e-3
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.3)
                assert not layer.bias.any()


def test_the_generator_is_a_chain_of_transposed_convolutions():
    torch.manual_seed(0)
    net = DCGANGenerator(5, 4, (3, 32, 32)).double()
    z = torch.randn(3, 5, dtype=torch.float64)
    kernel = net.project.weight.T.reshape(5, 16, 4, 4)
    h = F.conv_transpose2d(z[:, :, None, None], kernel)
    for norm, up in zip(net.norms, net.ups, strict=True):
        h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True).clamp(min=0)
        h = F.conv_transpose2d(h, up.weight, stride=2, padding=1)
    torch.testing.assert_close(net(z), torch.tanh(h), rtol=1e-12, atol=1e-12)


def test_the_discriminator_is_a_chain_of_convolutions():
    torch.manual_seed(0)
    net = DCGANDiscriminator(4, (3, 32, 32)).double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    convolutions = [layer for layer in net.layers if isinstance(layer, nn.Conv2d)]
    norms = [None, *(layer for layer in net.layers if isinstance(layer, nn.BatchNorm2d))]
    h = x
    for convolution, norm in zip(convolutions, norms, strict=True):
        h = F.conv2d(h, convolution.weight, stride=2, padding=1)
        if norm is not None:
            h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True)
        h = torch.where(h > 0, h, 0.2 * h)
    expected = F.conv2d(h, net.head.psi.weight.reshape(1, 16, 4, 4)).flatten()
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_projection_reads_the_features_summed_over_positions():
    torch.manual_seed(0)
    net = DCGANDiscriminator(4, (1, 16, 16), 3, "projection", norm="none").double()
    x, label = torch.randn(3, 1, 16, 16, dtype=torch.float64), torch.tensor([2, 0, 2])
    features = torch.einsum("bchw->bc", net.layers(x))
    rows = net.head.psi.weight + net.head.embedding.weight[label]
    expected = torch.einsum("bc,bc->b", features, rows) + net.head.psi.bias
    torch.testing.assert_close(net(x, label), expected, rtol=1e-12, atol=1e-12)
