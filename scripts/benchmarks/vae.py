"""A training iteration of a VAE against pythae's of the same architecture: in its trainer, and in a loop by hand."""

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.data import MemoryData
from benchmarks.gans import TickingOnly, fit_lane
from benchmarks.timing import Options, Row, Seconds, Stopwatch, Unavailable, alternate
from lightning_gen.autoencoder.likelihoods import Gaussian
from lightning_gen.autoencoder.vae import VAE
from lightning_gen.networks import MLPDecoder, MLPEncoder

SHAPE, LATENT, HIDDEN, BATCH, RATE = (1, 28, 28), 16, 512, 128, 1e-3
GOAL, COMPILED_GOAL = 1.0, 1.2


class TickingVAE(TickingOnly, VAE):
    """Our module, timed."""


def vae_train(options: Options) -> list[Row]:
    """Measure 784-512-16-512-784 with a Gaussian likelihood, by Adam."""
    return _train(options, "vae_train", GOAL)


def vae_train_compiled(options: Options) -> list[Row]:
    """Measure it with ours compiled."""
    return _train(options, "vae_train_compiled", COMPILED_GOAL, compiled=True)


def _train(options: Options, name: str, goal: float, compiled: bool = False) -> list[Row]:
    try:
        import pythae.models as theirs
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
    except ImportError as error:
        raise Unavailable("needs pythae: pip install -e '.[bench]'") from error
    warmup, count = options.size(50, 1), options.size(300, 2)
    data = MemoryData(SHAPE, (warmup + count + 2) * BATCH, BATCH)
    images = data.split("train").images[: count * BATCH].float() / 255  # type: ignore[attr-defined]

    def model() -> Any:
        torch.manual_seed(0)
        config = theirs.VAEConfig(input_dim=SHAPE, latent_dim=LATENT, reconstruction_loss="mse")
        return theirs.VAE(config).to(options.device)

    cpu = options.device == "cpu"

    def trainer() -> Seconds:
        with tempfile.TemporaryDirectory() as folder:
            config = BaseTrainerConfig(
                output_dir=folder, learning_rate=RATE, per_device_train_batch_size=BATCH, no_cuda=cpu
            )
            made = BaseTrainer(model(), BaseDataset(images, torch.zeros(len(images))), training_config=config)
            made.prepare_training()
            made.callback_handler.callbacks.clear()  # its progress bars
            made.train_step(1)
            watch = Stopwatch(options.device)
            watch.start()
            made.train_step(2)
            return watch.stop(count)

    def by_hand() -> Seconds:
        network = model().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        watch = Stopwatch(options.device)
        for number in range(warmup + count):
            if number == warmup:
                watch.start()
            rows = torch.randperm(len(images))[:BATCH]
            loss = network({"data": images[rows].to(options.device)}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return watch.stop(count)

    logging.getLogger("pythae").setLevel(logging.ERROR)
    lanes = {
        "pythae, its trainer": trainer,
        "pythae, loop by hand": by_hand,
    }
    for ours, fused in (("ours", None), ("ours, fused Adam", True)):
        make = lambda fused=fused: _ours(fused, compiled)  # noqa: E731
        lanes[ours] = fit_lane(options, make, data, warmup, count)
    row = Row(name, f"iteration, batch {BATCH}", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "pythae, its trainer", "speedup", goal)
    row.compare("ours", "pythae, loop by hand", "speedup")
    row.compare("ours, fused Adam", "pythae, its trainer", "speedup")
    row.facts = {"parameters, pythae": _size(model()), "parameters, ours": _size(_ours().net)}
    return [row]


def _ours(fused: bool | None = None, compiled: bool = False) -> TickingVAE:
    torch.manual_seed(0)
    networks = MLPEncoder([HIDDEN], SHAPE), MLPDecoder([HIDDEN], SHAPE)
    adam: Callable[..., Any] = lambda parameters: torch.optim.Adam(parameters, lr=RATE, fused=fused)  # noqa: E731
    return TickingVAE(*networks, latent_dim=LATENT, likelihood=Gaussian(0.5), compile_network=compiled, optimizer=adam)


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
