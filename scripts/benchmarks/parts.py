"""What an iteration of our GAN does beside the networks, each part by itself."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gans import BATCH, BareGAN, mlp
from benchmarks.timing import Options, Row, alternate, timed
from lightning_gen.gan.losses import NonSaturating
from lightning_gen.images import from_uint8
from lightning_gen.seeding import mix, seed_device
from lightning_gen.stepping import frozen, tracking_layers, untracked_statistics


def gan_parts(options: Options) -> list[Row]:
    """Measure the parts that are ours, and three costs in Lightning and torch that an iteration pays often."""
    generator, discriminator = mlp(options)
    bare, tracking = BareGAN(generator, discriminator), tracking_layers(generator)
    images = torch.zeros(BATCH, 1, 8, 8, dtype=torch.uint8)
    real, fake = (torch.randn(BATCH, requires_grad=True) for _ in range(2))
    loss, device, profiler = NonSaturating(), torch.device("cpu"), PassThroughProfiler()
    ways: Mapping[str, Callable[[], Any]] = {
        "ours: seed an iteration": lambda: seed_device(device, mix(0, 0, 1)),
        "ours: bytes to floats": lambda: from_uint8(images),
        "ours: freeze D and undo it": lambda: _through(frozen(discriminator)),
        "hand loop: freeze D and undo it": lambda: _frozen_by_hand(discriminator),
        "ours: hold G's running statistics": lambda: _through(untracked_statistics(tracking)),
        "ours: losses of D and G with gradients": lambda: (
            _backward(loss.discriminator(real, fake)),
            _backward(loss.generator(fake)),
        ),
        "hand loop: losses of D and G with gradients": lambda: (
            _backward(F.softplus(-real).mean() + F.softplus(fake).mean()),
            _backward(F.softplus(-fake).mean()),
        ),
        "Lightning: note which hook runs": lambda: setattr(bare, "_current_fx_name", "hook"),
        "Lightning: pass through the profiler": lambda: _through(profiler.profile("hook")),
        "Lightning: read the signature of training_step": lambda: inspect.getfullargspec(bare.training_step),
        "torch: look for a GPU": torch.cuda.is_available,
    }
    units, warmup = options.size(1000, 1), options.size(50, 1)
    lanes = {name: timed(work, units, warmup) for name, work in ways.items()}
    return [Row("gan_parts", "call", alternate(lanes, options.repeats), options.clock)]


def _through(block: AbstractContextManager[Any]) -> None:
    with block:
        pass


def _frozen_by_hand(network: nn.Module) -> None:
    network.requires_grad_(False)
    network.requires_grad_(True)


def _backward(loss: Tensor) -> None:
    loss.backward()
