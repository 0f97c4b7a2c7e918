"""Inception with random weights, for tests that need the network and not its knowledge; no download."""

import io
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def random_inception(seed: int = 0) -> dict[str, Tensor]:
    """Weights for torch-fidelity's network and ours: kaiming, batch norm calibrated on eight images."""
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=_empty())
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    # class scores that differ between images, or every inception score is 1
    network.fc.weight.data.mul_(3)
    network.train()
    with torch.no_grad():
        network(smooth(8, seed))
    return {key: value.clone() for key, value in network.state_dict().items()}


def smooth(n: int, seed: int, size: int = 32, channels: int = 3) -> Tensor:
    """Blurred noise (n, channels, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.rand(n, channels, 8, 8, generator=generator), (size, size), mode="bilinear")
    return (images * 255).round().to(torch.uint8)


def _empty() -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    return buffer
