"""A flow in closed form: independent normal pixels."""

import torch
from torch import nn

from lightning_gen.networks.flow import FlowNetwork


class AffineFlow(FlowNetwork):
    """z = (x - mean) / std, a mean for every class."""

    def __init__(self, image_shape=(1, 4, 4), num_classes=None, mean=0.1, std=0.4, spread=0.3):
        super().__init__(image_shape, num_classes)
        generator = torch.Generator().manual_seed(3)
        self.mean = nn.Parameter(mean + spread * torch.randn(self.image_shape, generator=generator))
        self.log_std = nn.Parameter(
            torch.full(self.image_shape, std).log() + spread * torch.randn(self.image_shape, generator=generator)
        )
        self.classes = nn.Parameter(torch.linspace(-0.2, 0.2, self.label_rows))

    def _mean(self, label):
        return self.mean if label is None else self.mean + self.classes[label].view(-1, 1, 1, 1)

    def forward(self, x, label=None):
        self.check(x, label)
        z = (x - self._mean(label)) * torch.exp(-self.log_std)
        return z, -self.log_std.sum().expand(len(x))

    def inverse(self, z, label=None, guidance=1.0, weak_temperature=1.0):
        return z * torch.exp(self.log_std) + self._mean(label)
