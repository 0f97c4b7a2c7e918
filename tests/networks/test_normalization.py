"""Spectral normalization against the singular values, norms by name, and who mixes samples."""

import copy

import pytest
import torch
from torch import nn

from lightning_gen.networks import (
    DCGANDiscriminator,
    MLPGenerator,
    ResNetDiscriminator,
    make_norm,
    mixes_samples,
    spectral_normalize,
)


def normalized_layers(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if hasattr(layer, "parametrizations")]


def build() -> ResNetDiscriminator:
    torch.manual_seed(0)
    return ResNetDiscriminator(4, (1, 28, 28), 3, "projection").double()


def test_sigma_is_the_largest_singular_value_after_many_forwards():
    net = build()
    x, label = torch.randn(2, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 2])
    with torch.no_grad():
        for _ in range(400):
            net(x, label)
    layers = normalized_layers(net)
    assert len(layers) == 4 * 2 + 2 + 2  # convolutions, learned shortcuts, psi and embedding
    net.eval()
    for layer in layers:
        original = layer.parametrizations.weight.original.flatten(1)
        sigma = torch.linalg.svdvals(original)[0]
        torch.testing.assert_close(layer.weight.flatten(1), original / sigma, rtol=1e-9, atol=1e-12)


def test_sigma_is_nearly_right_from_the_start():
    for layer in normalized_layers(build()):
        assert 0.99 < torch.linalg.svdvals(layer.weight.flatten(1))[0] < 1.2


def test_u_and_v_move_in_training_stand_in_evaluation_and_travel_in_the_state_dict():
    net = build()
    x, label = torch.randn(2, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 2])
    names = [name for name in net.state_dict() if name.endswith(("_u", "_v"))]
    assert len(names) == 2 * len(normalized_layers(net))
    before = copy.deepcopy(net.state_dict())
    net.eval()(x, label)
    assert all(torch.equal(before[name], net.state_dict()[name]) for name in names)
    net.train()(x, label)
    moved = [name for name in names if not torch.equal(before[name], net.state_dict()[name])]
    assert len(moved) >= len(names) - 4  # a matrix of one row (psi) has but one u and one v
    other = ResNetDiscriminator(4, (1, 28, 28), 3, "projection").double()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x, label), net(x, label))


def test_a_normalized_network_can_be_copied_after_a_forward_pass():
    net = build()
    x, label = torch.randn(2, 1, 28, 28, dtype=torch.float64), torch.tensor([0, 2])
    net(x, label)
    assert torch.equal(copy.deepcopy(net)(x, label), net(x, label))


def test_two_forwards_before_one_backward_and_a_second_derivative():
    net = build()
    x, label = torch.randn(2, 1, 28, 28, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2])
    first = net(x, label).sum()
    (slope,) = torch.autograd.grad(net(x, label).sum(), x, create_graph=True)
    (first + slope.square().sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_the_power_iteration_runs_outside_autocast():
    class Spy(nn.Module):
        def forward(self, weight):
            assert not torch.is_autocast_enabled("cpu")
            return weight

    layer = nn.Sequential(nn.Linear(3, 3))
    spectral_normalize(layer)
    layer[0].parametrizations.weight[0].inner = Spy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "dims"), [("batch", (0, 2, 3)), ("layer", (1, 2, 3)), ("instance", (2, 3)), ("group", None)]
)
def test_norms_standardize_over_what_their_name_says(name, dims):
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(4, 64, 5, 5, dtype=torch.float64)
    out = make_norm(name, 64).double()(x)
    if dims is None:  # 32 groups of two channels
        out, dims = out.view(4, 32, 2, 5, 5), (2, 3, 4)
    torch.testing.assert_close(out.mean(dims), torch.zeros_like(out.mean(dims)), rtol=0, atol=1e-12)
    # 1e-5 is in the denominator, beside a variance of about 4
    torch.testing.assert_close(out.var(dims, correction=0), torch.ones_like(out.mean(dims)), rtol=0, atol=3e-5)


def test_group_norm_takes_any_number_of_channels():
    assert [make_norm("group", channels).num_groups for channels in (4, 12, 96, 7)] == [4, 4, 32, 1]


def test_who_mixes_samples():
    assert mixes_samples(DCGANDiscriminator(4))
    assert mixes_samples(MLPGenerator(batch_norm=True))
    assert not any(mixes_samples(DCGANDiscriminator(4, norm=name)) for name in ("group", "layer", "instance"))
    assert not mixes_samples(ResNetDiscriminator(4, spectral_norm=False))
