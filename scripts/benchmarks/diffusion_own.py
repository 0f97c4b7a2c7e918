"""Our diffusion by itself: how the cost of samples grows, and what is spent around the network in training."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import MemoryData
from benchmarks.diffusion_lanes import TickingDiffusion
from benchmarks.gans import fit_lane
from benchmarks.timing import Options, Row, Seconds, alternate, timed
from lightning_gen.diffusion import RectifiedFlow, Uniform
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.unet import UNet
from lightning_gen.optimizers import DiffusionAdamW
from lightning_gen.seeding import GeneratorStream

BATCH = 64


# ---------------------------------------------------------------------- growth


def diffusion_growth(options: Options) -> list[Row]:
    """Measure samples of the small network at one size after another: resolution, batch, steps."""
    side, batch, steps = options.size(32, 8), 4, options.size(10, 2)
    sides, steps_taken = [side // 2, side, 2 * side], [steps, 5 * steps]
    batches = [1, batch, 4 * batch]
    models = {pixels: _small(pixels, options) for pixels in sides}
    return [
        _growth(options, "resolution", " px", {p: _draw(models[p], batch, steps) for p in sides}, (batch, steps)),
        _growth(options, "batch", " a batch", {b: _draw(models[side], b, steps) for b in batches}, (None, steps)),
        _growth(options, "steps", " steps", {s: _draw(models[side], batch, s) for s in steps_taken}, (batch, None)),
    ]


def _small(side: int, options: Options) -> Diffusion:
    torch.manual_seed(0)
    channels = {"channels": 8} if options.tiny else {}
    return Diffusion(UNet.preset("small_32", image_shape=(3, side, side), **channels)).to(options.device).eval()


def _draw(module: Diffusion, batch: int, steps: int) -> Callable[[], Any]:
    generator = torch.Generator(module.device)
    return lambda: module.sample(batch, generator=generator, steps=steps)


def _growth(
    options: Options,
    name: str,
    unit: str,
    draws: Mapping[int, Callable[[], Any]],
    fixed: tuple[int | None, int | None],
) -> Row:
    """Time one draw at each size, and fit the time to a power of the size."""
    lanes = {f"{size}{unit}": timed(draw, 1, 1, options.device) for size, draw in draws.items()}
    what = [f"batch {fixed[0]}"] * (fixed[0] is not None) + [f"{fixed[1]} steps"] * (fixed[1] is not None)
    row = Row(f"diffusion_growth/{name}", f"draw, {', '.join(what)}", alternate(lanes, options.repeats), options.clock)
    medians = {
        size: statistics.median(getattr(seconds, options.clock) for seconds in row.lanes[f"{size}{unit}"])
        for size in draws
    }
    for size, seconds in medians.items():
        images = fixed[0] or size
        steps = fixed[1] or size
        row.facts[f"ms an image and step, {size}{unit}"] = f"{seconds / images / steps * 1e3:.3g}"
    row.facts[f"time grows as {name} to the power of"] = f"{exponent(medians):.2f}"
    return row


def exponent(times: Mapping[int, float]) -> float:
    """Return b of the least-squares fit of log time = a + b log size."""
    points = [(math.log(size), math.log(time)) for size, time in times.items()]
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


# ---------------------------------------------------------------------- parts


class SmallMLP(DenoisingNetwork):
    """A network so small that what is around it shows."""

    def __init__(self, image_shape: tuple[int, int, int] = (1, 8, 8), width: int = 32) -> None:
        super().__init__(image_shape)
        pixels = math.prod(image_shape)
        self.layers = nn.Sequential(nn.Linear(pixels + 1, width), nn.SiLU(), nn.Linear(width, pixels))

    def forward(
        self, x: Tensor, noise_label: Tensor, cond: Condition | None = None, second_label: Tensor | None = None
    ) -> Tensor:
        """Estimate the velocity."""
        told = torch.cat([x.flatten(1), noise_label.to(x.dtype)[:, None] / 1000], dim=1)
        return self.layers(told).view_as(x)


def diffusion_parts(options: Options) -> list[Row]:
    """Measure an iteration of rectified flow: by hand, by hand with our losses, and in `Trainer.fit`."""
    warmup, count = options.size(50, 1), options.size(400, 2)
    data = MemoryData((1, 8, 8), (warmup + count + 2) * BATCH, BATCH)
    lanes = {
        "hand loop": _hand(options, data, warmup, count, _flow_by_hand),
        "hand loop, our losses": _hand(options, data, warmup, count, _our_losses),
        "ours": fit_lane(options, lambda: _flow(TickingDiffusion), data, warmup, count),
    }
    row = Row("diffusion_parts", f"iteration, batch {BATCH}", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "hand loop", "extra")
    row.compare("hand loop, our losses", "hand loop", "extra")
    row.compare("ours", "hand loop, our losses", "extra")
    return [row]


def _flow(kind: type[Diffusion] = Diffusion) -> Diffusion:
    torch.manual_seed(0)
    return kind(SmallMLP(), path=RectifiedFlow(), times=Uniform(), optimizer=DiffusionAdamW)


def _flow_by_hand(module: Diffusion, images: Tensor) -> Tensor:
    noise, t = torch.randn_like(images), torch.rand(len(images), device=images.device)
    told = module.net(torch.lerp(images, noise, t[:, None, None, None]), 1000 * t)
    return F.mse_loss(told, noise - images)


def _our_losses(module: Diffusion, images: Tensor) -> Tensor:
    stream = GeneratorStream(None, len(images), images.device, images.dtype)
    return module._losses(module.net, {"image": images}, stream, training=True).total.mean()


def _hand(
    options: Options, data: MemoryData, warmup: int, count: int, loss_of: Callable[[Diffusion, Tensor], Tensor]
) -> Callable[[], Seconds]:
    images = data.split("train").images  # type: ignore[attr-defined]

    def measure() -> Seconds:
        module = _flow().to(options.device).train()
        optimizer = DiffusionAdamW(module.net.parameters())
        batches = iter(torch.randperm(len(images)).split(BATCH))

        def step() -> None:
            real = images.index_select(0, next(batches)).to(options.device).float() / 127.5 - 1
            optimizer.zero_grad()
            loss_of(module, real).backward()
            optimizer.step()

        return timed(step, count, warmup, options.device)()

    return measure
