"""Densities in closed form, and noise taken off where the answer is known."""

import pytest
import torch
from affine_flow import AffineFlow

from lightning_gen.flow import denoised, log_density
from lightning_gen.networks import TarFlow

SHAPE = (1, 2, 3)


def images(n=4):
    return torch.randn(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_density_of_an_affine_flow_is_normal():
    net, x = AffineFlow(SHAPE).double(), images()
    normal = torch.distributions.Normal(net.mean, net.log_std.exp())
    torch.testing.assert_close(log_density(net, x), normal.log_prob(x).flatten(1).sum(1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("noise_std", [0.1, 0.7])
def test_the_image_behind_a_noisy_one(noise_std, mode):
    """Images N(m, s^2) with noise are N(m, s^2 + sigma^2); the mean of an image behind x is the regression on x."""
    net = AffineFlow(SHAPE).double()
    clean = net.log_std.exp().square()
    noisy = AffineFlow(SHAPE).double()
    with torch.no_grad():
        noisy.log_std.copy_((clean + noise_std**2).log() / 2)
    with mode():
        x = images()
        kept = x.clone()
        found = denoised(noisy, x, noise_std)
        assert torch.equal(x, kept)
        assert not found.requires_grad
        expected = net.mean + clean / (clean + noise_std**2) * (x - net.mean)
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-13)
    assert all(parameter.grad is None for parameter in noisy.parameters())


def test_denoising_works_in_inference_mode_of_a_transformer():
    torch.manual_seed(0)
    net = TarFlow((1, 4, 4), 2, 8, 2, 1, 2, num_classes=2).eval()
    torch.nn.init.normal_(net.blocks[0].last.weight, std=0.3)
    x, label = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    expected = denoised(net, x, 0.3, label)
    with torch.inference_mode():
        assert torch.equal(denoised(net, x.clone(), 0.3, label.clone()), expected)
