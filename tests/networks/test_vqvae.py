"""The networks of VQ-VAE: shapes, the published sizes, and sizes that do not fit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_gen.networks import VQVAEDecoder, VQVAEEncoder
from lightning_gen.networks.vqvae import ResidualBlock

FACTORS = [1, 2, 4, 8]


def both(shape=(3, 16, 24), factor=4, channels=8):
    torch.manual_seed(0)
    sizes = {"channels": channels, "factor": factor, "blocks": 2, "block_channels": 6}
    return VQVAEEncoder(shape, 5, **sizes).double(), VQVAEDecoder(shape, 7, **sizes).double()


@pytest.mark.parametrize("factor", FACTORS)
def test_shapes(factor):
    encoder, decoder = both(factor=factor)
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    features = encoder(x)
    assert features.shape == (2, 5, 16 // factor, 24 // factor)
    assert features.shape[2:] == encoder.grid
    z = torch.randn(2, 7, *features.shape[2:], dtype=torch.float64)
    assert decoder(z).shape == x.shape
    # convolutional: other sizes that the factor divides
    assert encoder(torch.zeros(1, 3, 32, 8).double()).shape == (1, 5, 32 // factor, 8 // factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_every_parameter_gets_a_finite_gradient(factor):
    for net, inputs in zip(both(factor=factor), ((3, 16, 24), (7, 4, 6)), strict=True):
        output = net(torch.randn(2, *inputs, dtype=torch.float64))
        (output * torch.randn_like(output)).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("factor", FACTORS)
def test_the_last_layer_makes_the_images(factor):
    _, decoder = both(factor=factor)
    last = [module for module in decoder.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)][-1]
    assert decoder.last_layer is last.weight
    z = torch.randn(1, 7, 4, 4, dtype=torch.float64)
    before = decoder(z)
    with torch.no_grad():
        decoder.last_layer.mul_(3)
        bias = last.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(decoder(z) - bias, 3 * (before - bias), rtol=0, atol=1e-12)


def test_a_residual_block_by_hand():
    block = ResidualBlock(4, 3).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    kept = x.clone()
    inner = F.conv2d(F.relu(x), block.conv1.weight, block.conv1.bias, padding=1)
    expected = x + F.conv2d(F.relu(inner), block.conv2.weight, block.conv2.bias)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-13)
    assert torch.equal(x, kept)


def test_the_published_architecture():
    """Section 4.1: two convolutions 4 x 4 of stride 2, residual blocks of 3 x 3 and 1 x 1, all 256 wide."""
    encoder = VQVAEEncoder((3, 32, 32), 64, channels=256, block_channels=256)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.kernel_size[0], c.stride[0], c.out_channels) for c in convolutions] == [
        (4, 2, 128),
        (4, 2, 256),
        (3, 1, 256),
        *[(3, 1, 256), (1, 1, 256)] * 2,
        (1, 1, 64),
    ]
    decoder = VQVAEDecoder((3, 32, 32), 64, channels=256, block_channels=256)
    ups = [module for module in decoder.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [(c.kernel_size[0], c.stride[0], c.out_channels) for c in ups] == [(4, 2, 128), (4, 2, 3)]


@pytest.mark.parametrize("cls", [VQVAEEncoder, VQVAEDecoder])
def test_sizes_that_do_not_halve_are_told(cls):
    with pytest.raises(ValueError, match=r"28 x 30.*28 x 32"):
        cls((1, 28, 30))
    with pytest.raises(ValueError, match="take 4 or 8"):
        cls((1, 36, 36), factor=6)
    with pytest.raises(ValueError, match="even"):
        cls((1, 32, 32), channels=7)
    with pytest.raises(ValueError, match="blocks"):
        cls((1, 32, 32), blocks=0)


def test_images_that_do_not_fit_are_told():
    encoder, decoder = both()
    with pytest.raises(ValueError, match="does not divide"):
        encoder(torch.zeros(1, 3, 18, 16).double())
    with pytest.raises(ValueError, match="images of shape"):
        encoder(torch.zeros(1, 1, 16, 16).double())
    with pytest.raises(ValueError, match="latents of shape"):
        decoder(torch.zeros(1, 3, 4, 4).double())
