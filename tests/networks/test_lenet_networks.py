"""LeNet-5 as a discriminator: sizes by arithmetic."""

import pytest
import torch
from torch import nn

from lightning_gen.networks import LeNetDiscriminator


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


BODY = (25 + 1) * 6 + (6 * 25 + 1) * 16 + (400 + 1) * 120 + (120 + 1) * 84


@pytest.mark.parametrize("side", [28, 32])
def test_parameters_are_those_of_lenet5_with_one_logit(side):
    assert count(LeNetDiscriminator((1, side, side))) == BODY + 84 + 1 == 60_941


@pytest.mark.parametrize(
    ("conditioning", "extra"),
    [("concat", 10 * 25 * 6), ("projection", 10 * 84), ("auxiliary", 85 * 10)],
)
def test_conditioning_adds_its_parameters(conditioning, extra):
    assert count(LeNetDiscriminator(num_classes=10, conditioning=conditioning)) == 60_941 + extra


def test_28_pixels_are_32_with_a_border_of_zeros():
    torch.manual_seed(0)
    small, large = LeNetDiscriminator((1, 28, 28)).double(), LeNetDiscriminator((1, 32, 32)).double()
    large.load_state_dict(small.state_dict())
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(small(x), large(nn.functional.pad(x, (2, 2, 2, 2))), rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net, x = LeNetDiscriminator(dropout=0.5), torch.randn(4, 1, 28, 28)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
