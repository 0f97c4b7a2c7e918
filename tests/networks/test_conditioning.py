"""Conditioning against independent computations in float64."""

import math

import pytest
import torch
from torch import nn

from lightning_gen.networks import AuxiliaryHead, ConditionalBatchNorm2d, ProjectionHead
from lightning_gen.networks.conditioning import concat_label, concat_label_maps, one_hot

LABEL = torch.tensor([2, 0, 2, 1, 0])


def test_one_hot_is_torchs():
    assert torch.equal(one_hot(LABEL, 4, torch.float64), nn.functional.one_hot(LABEL, 4).double())


def test_concatenation_keeps_the_input_and_marks_the_class():
    z = torch.randn(5, 7)
    joined = concat_label(z, LABEL, 3)
    assert torch.equal(joined[:, :7], z)
    assert joined[:, 7:].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_label_maps_are_constant_over_positions():
    x = torch.randn(5, 2, 3, 4)
    joined = concat_label_maps(x, LABEL, 3)
    assert joined.shape == (5, 5, 3, 4)
    assert torch.equal(joined[:, :2], x)
    for sample, label in enumerate(LABEL.tolist()):
        for channel in range(3):
            assert (joined[sample, 2 + channel] == float(channel == label)).all()


def test_conditional_batch_norm_is_its_formula():
    torch.manual_seed(0)
    layer = ConditionalBatchNorm2d(4, 3).double()
    nn.init.normal_(layer.bias.weight)
    x = 2 + 3 * torch.randn(5, 4, 6, 6, dtype=torch.float64)
    out = layer(x, LABEL)
    for sample, label in enumerate(LABEL.tolist()):
        for channel in range(4):
            values = x[:, channel].flatten().tolist()
            mean = math.fsum(values) / len(values)
            variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
            gain = 1 + layer.gain.weight[label, channel].item()
            bias = layer.bias.weight[label, channel].item()
            expected = gain * (x[sample, channel] - mean) / math.sqrt(variance + 1e-5) + bias
            torch.testing.assert_close(out[sample, channel], expected, rtol=1e-12, atol=1e-12)


def test_conditional_batch_norm_starts_near_the_plain_one():
    torch.manual_seed(0)
    layer = ConditionalBatchNorm2d(256, 10)
    assert layer.gain.weight.mean().abs() < 0.002
    assert abs(layer.gain.weight.std().item() - 0.02) < 0.001
    assert not layer.bias.weight.any()


def test_conditional_batch_norm_uses_running_statistics_in_evaluation():
    layer = ConditionalBatchNorm2d(2, 3).double().eval()
    layer.norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
    layer.norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    gain = 1 + layer.gain.weight[LABEL][:, :, None, None]
    normalized = torch.stack([(x[:, 0] - 1) / math.sqrt(4 + 1e-5), (x[:, 1] + 1) / math.sqrt(0.25 + 1e-5)], dim=1)
    torch.testing.assert_close(layer(x, LABEL), gain * normalized, rtol=1e-12, atol=1e-12)


def test_conditional_batch_norm_survives_conversion_to_sync_batch_norm():
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.ModuleList([ConditionalBatchNorm2d(4, 3)]))[0]
    assert isinstance(converted, ConditionalBatchNorm2d)
    assert isinstance(converted.norm, nn.SyncBatchNorm)
    assert converted.gain.weight.shape == (3, 4)


@pytest.mark.parametrize("bias", [True, False])
def test_projection_is_psi_plus_an_inner_product(bias):
    torch.manual_seed(0)
    head = ProjectionHead(6, 3, bias).double()
    h = torch.randn(5, 6, dtype=torch.float64)
    logits = head(h, LABEL)
    for sample, label in enumerate(LABEL.tolist()):
        expected = head.psi.bias.item() if bias else 0.0
        for feature in range(6):
            weight = head.psi.weight[0, feature].item() + head.embedding.weight[label, feature].item()
            expected += weight * h[sample, feature].item()
        assert logits[sample].item() == pytest.approx(expected, rel=1e-12)


def test_projection_differs_between_classes():
    torch.manual_seed(0)
    head = ProjectionHead(6, 3)
    h = torch.randn(1, 6)
    assert len({head(h, torch.tensor([label])).item() for label in range(3)}) == 3


def test_auxiliary_head_is_two_linear_maps_that_do_not_read_the_label():
    torch.manual_seed(0)
    head = AuxiliaryHead(6, 3).double()
    h = torch.randn(5, 6, dtype=torch.float64)
    logits, class_logits = head(h)
    torch.testing.assert_close(logits, torch.einsum("bf,f->b", h, head.psi.weight[0]) + head.psi.bias)
    expected = torch.einsum("bf,kf->bk", h, head.classifier.weight) + head.classifier.bias
    torch.testing.assert_close(class_logits, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(head(h, LABEL).class_logits, class_logits)
