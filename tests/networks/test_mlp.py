"""Fully connected networks: sizes by arithmetic."""

import torch
from torch import nn

from lightning_gen.networks import MLPDiscriminator, MLPGenerator


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_default_generator_has_128_256_and_784_units():
    net = MLPGenerator()
    units = [layer.out_features for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert units == [128, 256, 784]
    assert count(net) == (100 + 1) * 128 + (128 + 1) * 256 + (256 + 1) * 784 == 247_440


def test_labels_and_batch_norm_add_their_parameters():
    assert count(MLPGenerator(num_classes=10)) == 247_440 + 10 * 128
    assert count(MLPGenerator(batch_norm=True)) == 247_440 + 2 * 128 + 2 * 256


def test_the_discriminator():
    base = (784 + 1) * 256 + (256 + 1) * 128 + 128 + 1
    assert count(MLPDiscriminator()) == base == count(MLPDiscriminator(spectral_norm=True))
    assert count(MLPDiscriminator(num_classes=10)) == base + 10 * 256


def test_without_hidden_layers_the_networks_are_linear():
    generator = MLPGenerator(3, [], (1, 2, 2), num_classes=2).double()
    z, label = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    weight, bias = generator.layers[0].weight, generator.layers[0].bias
    expected = torch.tanh(z @ weight[:, :3].T + weight[:, 3:].T[label] + bias)
    torch.testing.assert_close(generator(z, label).flatten(1), expected, rtol=1e-12, atol=1e-12)
    critic = MLPDiscriminator([], (1, 2, 2)).double()
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    expected = x.flatten(1) @ critic.head.psi.weight[0] + critic.head.psi.bias
    torch.testing.assert_close(critic(x), expected, rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net, z = MLPGenerator(dropout=0.5), torch.randn(4, 100)
    assert not torch.equal(net(z), net(z))
    assert torch.equal(net.eval()(z), net(z))
