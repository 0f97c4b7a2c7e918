"""A training iteration of a GAN: ours in `Trainer.fit` against a plain PyTorch loop and a bare LightningModule."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import MemoryData
from benchmarks.timing import Options, Row, Seconds, Stopwatch, Unavailable, alternate
from lightning_gen import GAN
from lightning_gen.networks import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from lightning_gen.networks.base import Discriminator, Generator
from lightning_gen.optimizers import GANAdam
from lightning_gen.quiet import quiet_lightning

BATCH = 64
Networks = tuple[Generator, Discriminator]


def fused_adam(parameters: Any) -> GANAdam:
    """The optimizer of all lanes."""
    return GANAdam(parameters, fused=True)


def dcgan(options: Options) -> Networks:
    """DCGAN at 32 px, with the published widths."""
    torch.manual_seed(0)
    shape, width = (3, 32, 32), options.size(64, 4)
    return DCGANGenerator(100, width, shape), DCGANDiscriminator(width, shape)


def mlp(options: Options) -> Networks:
    """Networks so small that the loop around them shows."""
    torch.manual_seed(0)
    return MLPGenerator(16, [32, 32], (1, 8, 8)), MLPDiscriminator([32, 32], (1, 8, 8))


class Ticking:
    """Mixin that times n iterations from the start of one training step to that of another."""

    warmup: int
    count: int
    watch: Stopwatch
    seconds: Seconds
    _ticks: int = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Tick, and train."""
        if self._ticks == self.warmup:
            self.watch.start()
        elif self._ticks == self.warmup + self.count:
            self.seconds = self.watch.stop(self.count)
        self._ticks += 1
        return super().training_step(batch, batch_idx)  # type: ignore[misc]


class TickingOnly(Ticking):
    """Mixin that leaves out the step whose start ends the time."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Tick, and train."""
        if self._ticks < self.warmup + self.count:
            super().training_step(batch, batch_idx)
        else:
            self.seconds = self.watch.stop(self.count)


class TickingGAN(Ticking, GAN):
    """Our module, timed."""

    # named here, so that the module keeps its signature as it does for a step of its own
    training_step = Ticking.training_step


class BareGAN(LightningModule):
    """The least one can write on Lightning: manual optimization, two optimizers, no logging."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Step both networks."""
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[misc, union-attr]
        real = batch["image"].float() / 127.5 - 1
        iterate(real, self.generator, self.discriminator, optimizer_g, optimizer_d, self.manual_backward)

    def configure_optimizers(self) -> Any:
        """One optimizer a network."""
        return [fused_adam(self.generator.parameters()), fused_adam(self.discriminator.parameters())]


class TickingBareGAN(Ticking, BareGAN):
    """The bare module, timed."""


def iterate(
    real: Tensor,
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer_g: Any,
    optimizer_d: Any,
    backward: Callable[[Tensor], None] = Tensor.backward,
    reuse: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """One step of each network, as our GAN takes them: fresh fakes for each, D frozen in G's step."""
    size = (len(real), generator.latent_dim)
    with autocast():
        if reuse:
            fake = generator(torch.randn(size, device=real.device))
            shown = fake.detach()
        else:
            with torch.no_grad():
                shown = generator(torch.randn(size, device=real.device))
        loss_d = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(shown)).mean()
    optimizer_d.zero_grad()
    backward(loss_d)
    optimizer_d.step()
    discriminator.requires_grad_(False)
    with autocast():
        if not reuse:
            fake = generator(torch.randn(size, device=real.device))
        loss_g = F.softplus(-discriminator(fake)).mean()
    optimizer_g.zero_grad()
    backward(loss_g)
    optimizer_g.step()
    discriminator.requires_grad_(True)


def from_memory(images: Tensor, batches: int) -> Iterator[Tensor]:
    """Bytes of shuffled batches, with nothing in between."""
    for indices in torch.randperm(len(images))[: batches * BATCH].split(BATCH):
        yield images.index_select(0, indices)


def hand_lane(
    options: Options, make: Callable[[Options], Networks], data: MemoryData, warmup: int, count: int, **how: Any
) -> Callable[[], Seconds]:
    """Make the lane of a plain loop.

    Args:
        options: of the benchmark.
        make: makes the networks.
        data: the images.
        warmup: iterations that do not count.
        count: iterations that do.
        **how: `loader=True` reads from our loader; `compiled=True` compiles; others go to `iterate`.
    """
    loader, compiled = how.pop("loader", False), how.pop("compiled", False)

    def measure() -> Seconds:
        generator, discriminator = (network.to(options.device).train() for network in make(options))
        if compiled:
            generator.compile()
            discriminator.compile()
        optimizers = fused_adam(generator.parameters()), fused_adam(discriminator.parameters())
        watch = Stopwatch(options.device)
        batches = (
            (batch["image"] for batch in data.train_dataloader())
            if loader
            else from_memory(data.split("train").images, warmup + count)
        )
        for number, batch in zip(range(warmup + count), batches, strict=False):
            if number == warmup:
                watch.start()
            real = batch.to(options.device).float() / 127.5 - 1
            iterate(real, generator, discriminator, *optimizers, **how)
        return watch.stop(count)

    return measure


def fit_lane(
    options: Options,
    make_module: Callable[[], Any],
    data: MemoryData,
    warmup: int,
    count: int,
    precision: Any = "32-true",
    callbacks: Callable[[], list[Callback]] = list,
) -> Callable[[], Seconds]:
    """Make the lane of a module in `Trainer.fit`, logging every 50 iterations where it logs."""

    def measure() -> Seconds:
        quiet_lightning()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        module = make_module()
        module.warmup, module.count, module.watch = warmup, count, Stopwatch(options.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                accelerator="cpu" if options.device == "cpu" else "gpu",
                devices=1,
                precision=precision,
                max_epochs=1,
                limit_train_batches=warmup + count + 1,
                limit_val_batches=0,
                logger=False,
                callbacks=(extra := callbacks()),
                enable_checkpointing=bool(extra),
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, data)
        return module.seconds

    return measure


def gan_mlp(options: Options) -> list[Row]:
    """Measure what the loop costs, from a bare one to ours."""
    warmup, count = options.size(50, 1), options.size(400, 2)
    data = memory_data((1, 8, 8), warmup + count)
    lanes = {
        "hand loop": hand_lane(options, mlp, data, warmup, count),
        "hand loop, our loader": hand_lane(options, mlp, data, warmup, count, loader=True),
        "bare LightningModule": fit_lane(options, lambda: TickingBareGAN(*mlp(options)), data, warmup, count),
        "ours": fit_lane(options, lambda: our_gan(mlp(options)), data, warmup, count),
    }
    row = Row("gan_mlp", f"iteration, batch {BATCH}", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "hand loop", "extra", goal=0.6)
    row.compare("ours", "bare LightningModule", "extra")
    row.compare("bare LightningModule", "hand loop, our loader", "extra")
    row.compare("hand loop, our loader", "hand loop", "extra")
    return [row]


def gan_dcgan32(options: Options) -> list[Row]:
    """Measure the iteration of a real network."""
    return _dcgan(options, "gan_dcgan32", reuse_lane=True)


def gan_dcgan32_bf16(options: Options) -> list[Row]:
    """Measure it in bfloat16, where there is a GPU."""
    _need_cuda(options)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(options.device, dtype=torch.bfloat16)

    return _dcgan(options, "gan_dcgan32_bf16", precision="bf16-mixed", autocast=autocast)


def gan_dcgan32_compiled(options: Options) -> list[Row]:
    """Measure it compiled, where there is a GPU."""
    _need_cuda(options)
    return _dcgan(options, "gan_dcgan32_compiled", compiled=True)


def our_gan(networks: Networks, **arguments: Any) -> TickingGAN:
    """Our module with the optimizer of all lanes."""
    return TickingGAN(*networks, optimizer_g=fused_adam, optimizer_d=fused_adam, **arguments)


def memory_data(shape: tuple[int, int, int], batches: int) -> MemoryData:
    """Random images, a few batches more than are asked for, so that no epoch ends within the time."""
    return MemoryData(shape, (batches + 2) * BATCH, BATCH)


def _dcgan(
    options: Options, name: str, *, reuse_lane: bool = False, precision: Any = "32-true", **how: Any
) -> list[Row]:
    cuda = options.device == "cuda"
    warmup, count = options.size(20 if cuda else 2, 1), options.size(100 if cuda else 8, 1)
    data = memory_data((3, 32, 32), warmup + count)
    compiled = how.get("compiled", False)
    lanes = {
        "hand loop": hand_lane(options, dcgan, data, warmup, count, **how),
        "ours": fit_lane(
            options,
            lambda: our_gan(dcgan(options), compile_networks=compiled),
            data,
            warmup,
            count,
            precision,
        ),
    }
    if reuse_lane:
        lanes["hand loop, reused fakes"] = hand_lane(options, dcgan, data, warmup, count, reuse=True)
    row = Row(name, f"iteration, batch {BATCH}", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "hand loop", "slowdown", goal=1.05)
    row.compare("ours", "hand loop", "extra")
    if reuse_lane:
        row.compare("hand loop", "hand loop, reused fakes", "slowdown")
    return [row]


def _need_cuda(options: Options) -> None:
    if options.device != "cuda":
        raise Unavailable("measured on a GPU only: --device cuda")
