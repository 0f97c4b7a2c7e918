"""The patch discriminator: what a logit sees, how it starts, and sizes that do not fit."""

import pytest
import torch
from torch import nn

from lightning_gen.gan.losses import LOSSES
from lightning_gen.networks import PatchDiscriminator, mixes_samples


def make(side=32, **arguments):
    torch.manual_seed(0)
    return PatchDiscriminator((2, side, side), **({"channels": 3, "norm": "none"} | arguments)).double()


@pytest.mark.parametrize(("n_layers", "side", "patch"), [(1, 32, 16), (2, 64, 34), (3, 128, 70)])
def test_a_logit_sees_a_patch(n_layers, side, patch):
    """By the gradient of a logit in the middle: nonzero on a square of the published side, and nowhere else."""
    net = make(side, n_layers=n_layers)
    for layer in net.modules():  # no rectifier and no chance to vanish
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.01)
    x = torch.ones(1, 2, side, side, dtype=torch.float64, requires_grad=True)
    logits = net(x)
    rows, columns = net.grid
    assert logits.shape == (1, rows * columns)
    row, column = rows // 2 - 1, columns // 2 - 1
    (slope,) = torch.autograd.grad(logits[0, row * columns + column], x)
    seen = slope[0].abs().sum(0) > 0
    down, across = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert net.patch_size == patch
    for places in (down, across):
        assert int(places[-1] - places[0]) + 1 == len(places) == patch
    assert int(seen.sum()) == patch**2


@pytest.mark.parametrize(
    ("n_layers", "side", "grid"), [(3, 256, 30), (2, 256, 62), (1, 256, 126), (3, 32, 2), (2, 32, 6), (1, 32, 14)]
)
def test_the_grid_of_the_table(n_layers, side, grid):
    net = make(side, n_layers=n_layers, channels=1)
    assert net.grid == (grid, grid)
    with torch.no_grad():
        assert net(torch.zeros(1, 2, side, side).double()).shape == (1, grid * grid)


@pytest.mark.parametrize("shape", [(24, 47), (33, 25), (40, 24)])
def test_the_grid_of_other_sizes(shape):
    net = PatchDiscriminator((1, *shape), channels=2)
    assert net(torch.zeros(2, 1, *shape)).shape == (2, net.grid[0] * net.grid[1])


def test_widths_double_up_to_eight_times():
    net = PatchDiscriminator((3, 256, 256), channels=64, n_layers=5)
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 512, 512, 1]
    assert [c.stride[0] for c in convolutions] == [2] * 5 + [1, 1]
    assert [c.bias is not None for c in convolutions] == [True, *[False] * 5, True]
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [128, 256, 512, 512, 512]


def test_the_parameters_of_the_published_one():
    """pix2pix: 70 x 70 patches, 64 channels; sum of kernels, the biases of both ends, gains and biases of the norms."""
    net = PatchDiscriminator((3, 256, 256))
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert sum(p.numel() for p in net.parameters()) == kernels + 64 + 1 + 2 * (128 + 256 + 512) == 2_765_633


def test_weights_start_small():
    net = PatchDiscriminator((3, 64, 64))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            # three standard deviations of the estimate of a standard deviation
            assert layer.weight.std().item() == pytest.approx(0.02, rel=3 / (2 * layer.weight.numel()) ** 0.5)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert layer.bias.abs().max() == 0


@pytest.mark.parametrize("arguments", [{"norm": "batch"}, {"norm": "group"}, {}, {"spectral_norm": True}])
def test_every_norm_trains(arguments):
    net = make(**arguments)
    assert mixes_samples(net) == (arguments.get("norm") == "batch")
    x = torch.randn(4, 2, 32, 32, dtype=torch.float64)
    loss = LOSSES["hinge"]().discriminator(net(x), net(x.flip(0) * 0.5))
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_spectral_norm_is_on_every_layer():
    net = make(spectral_norm=True)
    for _ in range(200):
        net(torch.zeros(1, 2, 32, 32).double())
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast(dtype):
    net = make(norm="group").float()
    x = torch.randn(2, 2, 32, 32)
    exact = net(x)
    with torch.autocast("cpu", dtype=dtype):
        rough = net(x)
    assert (rough.float() - exact).abs().max() <= 0.05 * exact.abs().max() + 0.01


def test_images_that_are_too_small_are_told():
    with pytest.raises(ValueError, match=r"24 pixels.*16 x 28.*n_layers of 2 at most"):
        PatchDiscriminator((1, 16, 28))
    with pytest.raises(ValueError, match="6 pixels"):
        PatchDiscriminator((1, 4, 4), n_layers=1)
    PatchDiscriminator((1, 6, 6), n_layers=1)(torch.zeros(2, 1, 6, 6))
    with pytest.raises(ValueError, match="n_layers"):
        PatchDiscriminator((1, 28, 28), n_layers=0)
    with pytest.raises(ValueError, match="images of shape"):
        make()(torch.zeros(1, 2, 28, 28).double())
    with pytest.raises(ValueError, match="unconditional"):
        make()(torch.zeros(1, 2, 32, 32).double(), torch.tensor([0]))
