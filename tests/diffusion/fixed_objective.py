"""A denoising loss without chance: noise and times are functions of the images.

However a batch is split, over micro-batches or processes, each image meets the same noise at the same time.
"""

import torch

from lightning_gen.diffusion import DenoisingMSE, Uniform


class Fixed(DenoisingMSE):
    @staticmethod
    def noise(x0):
        return torch.sin(37 * x0 + 1)

    @staticmethod
    def times(x0):
        return 0.05 + 0.9 * (x0.flatten(1).sum(1).sin() + 1) / 2

    def forward(self, x0, cond, setting):
        setting.times, setting.stream = FixedTimes(x0), FixedStream(x0)
        return super().forward(x0, cond, setting)


class FixedTimes(Uniform):
    def __init__(self, x0):
        super().__init__()
        self.t = Fixed.times(x0).double()

    def forward(self, path, stream, rank=0, world=1):
        drawn = super().forward(path, stream, rank, world)
        return drawn._replace(t=self.t if path.steps is None else (self.t * path.steps).ceil() / path.steps)


class FixedStream:
    def __init__(self, x0):
        self.x0, self.dtype = x0, x0.dtype

    def normal(self, *shape):
        return Fixed.noise(self.x0)

    def uniform(self, *shape):
        return torch.full((len(self.x0),), 0.5, dtype=self.dtype)
