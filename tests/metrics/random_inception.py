"""Inception with random weights, for tests that need the network and not its knowledge; no download."""

from unittest import mock

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def random_inception(seed: int = 0) -> dict[str, Tensor]:
    """Weights for torch-fidelity's network and ours: kaiming, batch norm calibrated on eight random images."""
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=_empty())
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    # logits of the size of a trained network's
    network.fc.weight.data.mul_(0.3)
    network.train()
    with torch.no_grad():
        network(torch.randint(0, 256, (8, 3, 32, 32), generator=generator, dtype=torch.uint8))
    return {key: value.clone() for key, value in network.state_dict().items()}


def _empty():
    import io

    buffer = io.BytesIO()
    torch.save({}, buffer)
    buffer.seek(0)
    return buffer
