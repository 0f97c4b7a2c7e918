"""Networks whose answer is known in closed form, small ones that are trained, and the parts around them."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.diffusion.couplings import Independent
from lightning_gen.diffusion.denoiser import Denoiser
from lightning_gen.diffusion.objectives import Setting
from lightning_gen.diffusion.times import TimeSampler
from lightning_gen.diffusion.weightings import Plain
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.seeding import GeneratorStream


class Told(DenoisingNetwork):
    """Answers by a function of (x, labels as (B, 1, 1, 1), cond), plus a learned number; remembers what it was told."""

    def __init__(self, function, shape, shift=0.0, **how):
        super().__init__(shape, **how)
        self.function = function
        self.shift = nn.Parameter(torch.tensor(float(shift), dtype=torch.float64))
        self.calls = []

    def forward(self, x, noise_label, cond=None, second_label=None):
        cond = self.check(x, cond, second_label)
        self.calls.append((noise_label, second_label))
        labels = [label.view(-1, 1, 1, 1) for label in (noise_label, second_label) if label is not None]
        return self.function(x, *labels, cond) + self.shift


class Tiny(DenoisingNetwork):
    """Two convolutions between which the times and the class are added."""

    def __init__(self, shape=(1, 4, 4), width=8, dropout=0.0, batch_norm=False, **how):
        super().__init__(shape, **how)
        self.first, self.last = (nn.Conv2d(*pair, 3, padding=1) for pair in ((shape[0], width), (width, shape[0])))
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.GroupNorm(2, width)
        self.times = nn.Linear(4 if self.two_times else 2, width)
        self.classes = nn.Embedding(self.label_rows, width) if self.label_rows else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, noise_label, cond=None, second_label=None):
        cond = self.check(x, cond, second_label)
        labels = [label for label in (noise_label, second_label) if label is not None]
        waves = torch.stack([wave(label) for label in labels for wave in (torch.sin, torch.cos)], 1)
        told = self.times(waves.to(x.dtype))
        if self.classes is not None:
            told = told + self.classes(cond.label)
        hidden = self.norm(self.first(x)) + told[:, :, None, None]
        return self.last(self.dropout(F.silu(hidden)))


class At(TimeSampler):
    """Times given beforehand, one list after the other."""

    def __init__(self, *times):
        super().__init__()
        self.times = [torch.as_tensor(each, dtype=torch.float64) for each in times]
        self.drawn = 0

    def quantile(self, u, path):
        self.drawn += 1
        return self.times[(self.drawn - 1) % len(self.times)].expand(len(u))


def setting(net, path, parameterization, n, times, weighting=None, seed=0, dtype=torch.float64, **where):
    stream = GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=dtype)
    denoiser = Denoiser(net, path, parameterization)
    return Setting(denoiser, times, weighting or Plain(), Independent(), stream, **where)


def drawn(n, shape, times, path, seed=0, pairs=1):
    """Draw again what an objective drew: its times, then the noise."""
    stream = GeneratorStream(torch.Generator().manual_seed(seed), n, dtype=torch.float64)
    told = [times(path, stream).t for _ in range(pairs)]
    return *told, stream.normal(*shape)


def column(values):
    return values.view(-1, 1, 1, 1)


def none():
    return Condition()
