"""The lanes of diffusion.py: training by hand and in `Trainer.fit`, DDIM by their scheduler and by our sampler."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data import MemoryData
from benchmarks.diffusion_pair import STEPS, Pair, relative
from benchmarks.gans import TickingOnly, fit_lane
from benchmarks.timing import Options, Seconds, Stopwatch, timed
from lightning_gen.diffusion import DDIM, DiscreteVP, Trailing
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.optimizers import DiffusionAdamW
from lightning_gen.seeding import GeneratorStream

ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6}
CLIP = 1.0


class TickingDiffusion(TickingOnly, Diffusion):
    """Our module, timed."""


def optimizer(parameters: Any) -> DiffusionAdamW:
    """The optimizer of our lanes: fused, as it is by default, and with the numbers of diffusers' example."""
    return DiffusionAdamW(parameters, **ADAMW)


def their_training(
    options: Options, pair: Pair, data: MemoryData, warmup: int, count: int, fused: bool | None
) -> Callable[[], Seconds]:
    """Make the lane of the step in diffusers' example, AdamW as torch has it by default or fused."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=STEPS)
    images = data.split("train").images  # type: ignore[attr-defined]

    def measure() -> Seconds:
        network = pair.theirs.train()
        optimizer = torch.optim.AdamW(network.parameters(), fused=fused, **ADAMW)
        batches = iter(images.split(data.batch_size))

        def step() -> None:
            clean = next(batches).to(options.device).float() / 127.5 - 1
            noise = torch.randn_like(clean)
            steps = torch.randint(0, STEPS, (len(clean),), device=clean.device)
            with pair.autocast():
                told = pair.ask_theirs(scheduler.add_noise(clean, noise, steps), steps)
            optimizer.zero_grad()
            F.mse_loss(told.float(), noise).backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
            optimizer.step()

        seconds = timed(step, count, warmup, options.device)()
        network.zero_grad(set_to_none=True)
        return seconds

    return measure


def our_training(options: Options, pair: Pair, data: MemoryData, warmup: int, count: int) -> Callable[[], Seconds]:
    """Make the lane of our module in `Trainer.fit`."""

    def module() -> TickingDiffusion:
        return TickingDiffusion(pair.ours, path=DiscreteVP(), optimizer=optimizer, gradient_clip_val=CLIP)

    precision = "bf16-mixed" if pair.variant.bf16 else "32-true"
    fit = fit_lane(options, module, data, warmup, count, precision)

    def measure() -> Seconds:
        seconds = fit()
        pair.ours.zero_grad(set_to_none=True)
        # the Trainer leaves a module on the CPU
        pair.ours.to(options.device)
        return seconds

    return measure


def run_lane(draw: Callable[[int], Any], steps: int, device: str) -> Callable[[], Seconds]:
    """Make a lane of one whole run, after a run of one step that does not count."""

    def measure() -> Seconds:
        draw(1)
        watch = Stopwatch(device)
        watch.start()
        draw(steps)
        return watch.stop()

    return measure


def module_of(pair: Pair, options: Options) -> Diffusion:
    """Return our module with DDIM on evenly spread steps, from the last one of the table to the image."""
    module = Diffusion(pair.ours, path=DiscreteVP(), solver=DDIM(), grid=Trailing())
    return module.to(options.device).eval()


@torch.no_grad()
def their_draw(pair: Pair, noise: Tensor, steps: int) -> Tensor:
    """Draw by diffusers' DDIM on the same steps, in the loop of its pipeline; nothing is clipped.

    The pipeline itself turns its images into arrays of numpy, which are none of bfloat16.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=STEPS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = noise
    for step in scheduler.timesteps:
        x = scheduler.step(pair.ask_theirs(x, step), step, x).prev_sample
    return x


def end_difference(pair: Pair, options: Options, batch: int, steps: int) -> dict[str, Any]:
    """Compare where a run of a few steps from the same noise ends, before anything is clipped."""
    reached: list[Tensor] = []

    def watch(number: int, point: Any, x: Tensor, x0: Tensor | None) -> None:
        reached.append(x)

    module = module_of(pair, options)

    def generator() -> torch.Generator:
        return torch.Generator(options.device).manual_seed(0)

    module.sample(batch, generator=generator(), steps=steps, watch=watch)
    noise = GeneratorStream(generator(), batch, module.device, torch.float32).normal(*module.sample_shape)
    theirs = their_draw(pair, (noise * module.grid.points(steps, module.path)[0].sigma).to(pair.dtype), steps)
    difference = relative({"": reached[-1]}, {"": theirs.float()})
    return {f"largest difference after {steps} steps, relative{pair.layout}": f"{difference:.1e}"}
