"""Residual networks: sizes from the published layer tables, and the published order written out."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gen.networks import ResNetDiscriminator, ResNetGenerator


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def conv(before: int, after: int, kernel: int) -> int:
    return before * after * kernel**2 + after


def generator_block(before: int, after: int) -> int:
    norms = 2 * before + 2 * after
    return norms + conv(before, after, 3) + conv(after, after, 3) + conv(before, after, 1)


def discriminator_block(before: int, after: int, down: bool, first: bool = False) -> int:
    hidden = after if first else before
    return conv(before, hidden, 3) + conv(hidden, after, 3) + (conv(before, after, 1) if down else 0)


def test_generators_of_the_published_tables():
    # 32: dense to 4 x 4 x 256, three blocks of 256, BN, ReLU, 3 x 3 convolution
    expected = 129 * 16 * 256 + 3 * generator_block(256, 256) + 2 * 256 + conv(256, 3, 3)
    assert count(ResNetGenerator()) == expected == 4_276_739
    # 64: dense to 4 x 4 x 1024, blocks of 512, 256, 128, 64
    stack = [1024, 512, 256, 128, 64]
    blocks = sum(generator_block(before, after) for before, after in itertools.pairwise(stack))
    expected = 129 * 16 * 1024 + blocks + 2 * 64 + conv(64, 3, 3)
    with torch.device("meta"):
        assert count(ResNetGenerator(image_shape=(3, 64, 64))) == expected
    # 28: dense to 7 x 7 x 256, two blocks of 256
    expected = 129 * 49 * 256 + 2 * generator_block(256, 256) + 2 * 256 + conv(256, 1, 3)
    assert count(ResNetGenerator(image_shape=(1, 28, 28))) == expected


def test_discriminators_of_the_published_tables():
    rest = discriminator_block(128, 128, down=True) + 2 * discriminator_block(128, 128, down=False) + conv(128, 1, 1)
    expected = discriminator_block(3, 128, down=True, first=True) + rest
    assert count(ResNetDiscriminator()) == expected == 1_053_825
    assert count(ResNetDiscriminator(spectral_norm=False, pooling="mean")) == expected
    expected = discriminator_block(1, 128, down=True, first=True) + rest
    assert count(ResNetDiscriminator(image_shape=(1, 28, 28))) == expected
    stack = [64, 128, 256, 512, 1024]
    expected = discriminator_block(3, 64, down=True, first=True) + conv(1024, 1, 1)
    for before, after in itertools.pairwise(stack):
        expected += discriminator_block(before, after, down=True)
    with torch.device("meta"):
        assert count(ResNetDiscriminator(image_shape=(3, 64, 64), spectral_norm=False)) == expected


def test_the_conditional_ones_add_their_parameters():
    # ten pairs of gain and bias in place of one, in both norms of the three blocks
    extra = 3 * 2 * (10 - 1) * 2 * 256
    assert count(ResNetGenerator(num_classes=10, conditioning="cbn")) == 4_276_739 + extra
    assert count(ResNetGenerator(num_classes=10, conditioning="concat")) == 4_276_739 + 10 * 16 * 256
    projected = ResNetDiscriminator(num_classes=10, conditioning="projection")
    assert count(projected) == 1_053_825 + 10 * 128
    assert count(ResNetDiscriminator(num_classes=10, conditioning="auxiliary")) == 1_053_825 + 10 * 129


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_the_generator_in_the_published_order(mode):
    """Shortcut: upsampling and then the 1 x 1 convolution, as in the papers' code."""
    torch.manual_seed(0)
    net = ResNetGenerator(5, 4, (3, 32, 32), upsampling=mode).double()
    z = torch.randn(3, 5, dtype=torch.float64)

    def up(x):
        return nn.Upsample(scale_factor=2, mode=mode)(x)

    def norm(layer, x):
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True).clamp(min=0)

    h = (z @ net.project.weight.T + net.project.bias).reshape(3, 4, 4, 4)
    for block in net.blocks:
        residual = block.conv1(up(norm(block.norm1, h)))
        residual = block.conv2(norm(block.norm2, residual))
        h = residual + block.shortcut(up(h))
    expected = torch.tanh(net.to_image(norm(net.norm, h)))
    torch.testing.assert_close(net(z), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("side", [28, 32])
def test_the_discriminator_in_the_published_order(pooling, side):
    """Shortcut: the 1 x 1 convolution and then pooling in all blocks but the first, of x before its ReLU."""
    torch.manual_seed(0)
    net = ResNetDiscriminator(4, (3, side, side), 3, "projection", spectral_norm=False, pooling=pooling).double()
    x, label = torch.randn(3, 3, side, side, dtype=torch.float64), torch.tensor([2, 0, 2])
    pool = nn.AvgPool2d(2)
    first, second, *others = net.blocks
    h = pool(first.conv2(first.conv1(x).relu())) + first.shortcut(pool(x))
    h = pool(second.conv2(second.conv1(h.relu()).relu())) + pool(second.shortcut(h))
    for block in others:
        h = block.conv2(block.conv1(h.relu()).relu()) + h
    features = h.relu().flatten(2).sum(2)
    if pooling == "mean":
        features = features / (side // 4) ** 2
    expected = net.head.psi(features)[:, 0] + torch.einsum("bf,bf->b", net.head.embedding.weight[label], features)
    torch.testing.assert_close(net(x, label), expected, rtol=1e-12, atol=1e-12)


def bound(layer: nn.Module, gain: float) -> float:
    """The Xavier-uniform bound: gain * sqrt(6 / (fan in + fan out)), fans with the kernel's area."""
    weight = layer.weight
    area = weight[0, 0].numel()
    return gain * math.sqrt(6 / ((weight.shape[0] + weight.shape[1]) * area))


def test_initial_weights():
    torch.manual_seed(0)
    generator, discriminator = ResNetGenerator(), ResNetDiscriminator(spectral_norm=False)
    expected = [(generator.project, 1.0), (generator.to_image, 1.0), (discriminator.head.psi, 1.0)]
    for block in [*generator.blocks, *discriminator.blocks]:
        expected += [(block.conv1, math.sqrt(2)), (block.conv2, math.sqrt(2))]
        if isinstance(block.shortcut, nn.Conv2d):
            expected.append((block.shortcut, 1.0))
    for layer, gain in expected:
        limit = bound(layer, gain)
        largest = layer.weight.abs().max().item()
        assert largest <= limit * (1 + 1e-6)
        assert largest > 0.95 * limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
        assert not layer.bias.any()


def test_there_is_no_normalization_in_the_critic():
    kinds = {type(layer) for layer in ResNetDiscriminator(4, spectral_norm=False).modules()}
    assert not any("Norm" in kind.__name__ for kind in kinds)


def test_every_layer_of_the_sngan_discriminator_is_spectrally_normalized():
    net = ResNetDiscriminator(4, num_classes=3, conditioning="projection")
    plain = [name for name, _ in net.named_parameters() if "parametrizations" not in name]
    assert all(name.endswith("bias") for name in plain)
