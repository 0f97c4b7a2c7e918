"""A small denoising network that shows whatever it is told in its output."""

import torch
from torch import nn

from lightning_gen.networks.denoiser import DenoisingNetwork


class AffineDenoiser(DenoisingNetwork):
    """A convolution of the input, and a shift a channel for each thing it is told."""

    def __init__(self, image_shape=(2, 4, 4), norm=False, seed=0, **told):
        super().__init__(image_shape, **told)
        self.mix = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(self.out_channels) if norm else nn.Identity()
        self.time = nn.Parameter(torch.empty(self.out_channels))
        self.second = nn.Parameter(torch.empty(self.out_channels))
        self.classes = nn.Parameter(torch.empty(self.label_rows, self.out_channels))
        self.vector = nn.Linear(max(self.vector_dim, 1), self.out_channels, bias=False)
        self.tokens = nn.Linear(max(self.token_dim, 1), self.out_channels, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.calls, self.seen = 0, []

    def forward(self, x, noise_label, cond=None, second_label=None):
        cond = self.check(x, cond, second_label)
        self.calls += 1
        self.seen.append((x, noise_label, cond, second_label))
        h = self.mix(x if cond.image is None else torch.cat([x, cond.image], 1))
        shift = torch.tanh(noise_label[:, None] / 500).to(h.dtype) * self.time
        if second_label is not None:
            shift = shift + torch.tanh(second_label[:, None] / 500).to(h.dtype) * self.second
        if cond.label is not None:
            shift = shift + self.classes[cond.label]
        if cond.vector is not None:
            shift = shift + self.vector(cond.vector)
        if cond.tokens is not None:
            shift = shift + self.tokens(cond.tokens).sum(1)
        return self.norm(h + shift[:, :, None, None])
