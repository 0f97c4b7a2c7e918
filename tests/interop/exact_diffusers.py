"""diffusers in float64: its code as it is, with the names of float32 in its modules standing for float64."""

import importlib
import math

import numpy as np
import torch


class Doubled:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


def exact_scheduler(monkeypatch, cls):
    """Turn a scheduler's module to float64; where it has tables, torch's default type has to be float64 as well."""
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(module, "torch", Doubled(torch))
    monkeypatch.setattr(module, "np", Doubled(np), raising=False)


def exact_times(monkeypatch):
    """The cosines and sines of the time, which diffusers makes in float32, too."""

    def embedding(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
        half = embedding_dim // 2
        powers = torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
        angles = scale * timesteps[:, None].double() * (-math.log(max_period) * powers).exp()
        halves = [angles.sin(), angles.cos()]
        return torch.cat(halves[::-1] if flip_sin_to_cos else halves, dim=1)

    monkeypatch.setattr("diffusers.models.embeddings.get_timestep_embedding", embedding)
