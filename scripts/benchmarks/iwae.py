"""A step of the importance-weighted autoencoder by itself: what torch's softplus costs it, and what compiling saves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.timing import Options, Row, Seconds, alternate, timed
from lightning_gen.autoencoder import IWAE, Bernoulli, GaussianLatents, VAENet, likelihoods
from lightning_gen.autoencoder.objectives import Setting
from lightning_gen.networks import MLPDecoder, MLPEncoder
from lightning_gen.seeding import GeneratorStream

HIDDEN, LATENT, SAMPLES, BATCH = [200, 200], 50, 50, 100


def iwae_step(options: Options) -> list[Row]:
    """Measure 2 x 200 tanh units with 50 draws of 50 latents, without Lightning."""
    size = options.size(BATCH, 2)
    ways = {
        "torch's softplus": _lane(options, size, torchs=True),
        "ours": _lane(options, size),
    }
    row = Row("iwae_step", f"step, batch {size}", alternate(ways, options.repeats), options.clock)
    row.compare("ours", "torch's softplus", "speedup")
    losses = [_step(options, size)().item()]
    with _torchs_softplus():
        losses.append(_step(options, size)().item())
    row.facts = {"difference of the losses, relative": f"{abs(losses[0] - losses[1]) / abs(losses[1]):.1e}"}
    return [row]


def iwae_step_compiled(options: Options) -> list[Row]:
    """Measure it compiled; what the compiler makes sets the whole process to take tiny numbers for 0."""
    size = options.size(BATCH, 2)
    ways = {
        "ours, compiled": _lane(options, size, compiled=True),
        "torch's softplus": _lane(options, size, torchs=True),
        "ours": _lane(options, size),
    }
    row = Row("iwae_step_compiled", f"step, batch {size}", alternate(ways, options.repeats), options.clock)
    row.compare("ours, compiled", "ours", "speedup")
    row.compare("ours", "torch's softplus", "speedup")
    return [row]


def _lane(options: Options, size: int, torchs: bool = False, compiled: bool = False) -> Callable[[], Seconds]:
    def measure() -> Seconds:
        with _torchs_softplus() if torchs else nullcontext():
            return timed(_step(options, size, compiled), options.size(30, 2), options.size(5, 1), options.device)()

    return measure


def _step(options: Options, size: int, compiled: bool = False) -> Callable[[], Any]:
    torch.manual_seed(0)
    networks = MLPEncoder(HIDDEN, activation="tanh"), MLPDecoder(HIDDEN, activation="tanh")
    net = VAENet(*networks, GaussianLatents(LATENT), Bernoulli()).to(options.device)
    if compiled:
        net.compile()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    objective = IWAE(2 if options.tiny else SAMPLES)
    x = 2 * (torch.rand(size, 1, 28, 28, device=options.device) < 0.13).float() - 1

    def step() -> torch.Tensor:
        stream = GeneratorStream(None, size, x.device)
        _, terms = net(x, net.noise(stream, objective.samples))
        loss: torch.Tensor = objective(terms, Setting(net.latents, stream)).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@contextmanager
def _torchs_softplus() -> Iterator[None]:
    ours = likelihoods.softplus_sum
    likelihoods.softplus_sum = lambda logits: F.softplus(logits).sum(-1)
    try:
        yield
    finally:
        likelihoods.softplus_sum = ours
