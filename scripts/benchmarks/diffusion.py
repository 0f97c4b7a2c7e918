"""The DDPM network for CIFAR-10 against diffusers' `UNet2DModel`, with the same weights: asked, trained, sampled from.

Training is against the step of diffusers' example for unconditional images: noise, network, loss, backward pass,
clipping, AdamW as torch has it by default. A second lane has their network with the fused AdamW that ours has.
Sampling is DDIM in 50 steps, against the loop of `DDIMPipeline` over `DDIMScheduler`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.data import MemoryData
from benchmarks.diffusion_lanes import end_difference, module_of, our_training, run_lane, their_draw, their_training
from benchmarks.diffusion_pair import Pair, Variant, layouts
from benchmarks.memory import PeakMemory
from benchmarks.timing import Options, Row, Seconds, alternate, timed

EAGER, BF16, COMPILED, BOTH = Variant(), Variant(bf16=True), Variant(compiled=True), Variant(True, True)
# at most a minute a repeat on one core, so that a row of five takes five minutes: see --batch
BATCHES = {"forward": {"cpu": [16], "cuda": [128, 512]}, "train": {"cpu": [4], "cuda": [128, 512]}}
BATCHES["ddim"] = {"cpu": [4], "cuda": [16, 128, 512]}
# (row, device, batch) to what our speed over theirs is to be; batch None stands for any
GOALS: dict[tuple[str, str, int | None], float] = {
    ("diffusion_train", "cpu", None): 1.25,
    ("diffusion_ddim", "cpu", None): 1.25,
    ("diffusion_train_bf16", "cuda", None): 1.5,
    ("diffusion_train_bf16_compiled", "cuda", None): 1.15,
    ("diffusion_ddim_bf16", "cuda", 16): 1.5,
    ("diffusion_ddim_bf16", "cuda", 512): 1.2,
}


def diffusion_forward(options: Options) -> list[Row]:
    """Measure one evaluation of the network."""
    return _forward(options, EAGER)


def diffusion_forward_bf16(options: Options) -> list[Row]:
    """Measure it in bfloat16, where there is a GPU."""
    return _forward(options, BF16)


def diffusion_forward_compiled(options: Options) -> list[Row]:
    """Measure it compiled."""
    return _forward(options, COMPILED, cpu=True)


def diffusion_forward_bf16_compiled(options: Options) -> list[Row]:
    """Measure it compiled in bfloat16, where there is a GPU."""
    return _forward(options, BOTH)


def diffusion_train(options: Options) -> list[Row]:
    """Measure a step of training."""
    return _train(options, EAGER)


def diffusion_train_bf16(options: Options) -> list[Row]:
    """Measure it in bfloat16, where there is a GPU."""
    return _train(options, BF16)


def diffusion_train_compiled(options: Options) -> list[Row]:
    """Measure it compiled, where there is a GPU."""
    return _train(options, COMPILED)


def diffusion_train_bf16_compiled(options: Options) -> list[Row]:
    """Measure it compiled in bfloat16, where there is a GPU."""
    return _train(options, BOTH)


def diffusion_ddim(options: Options) -> list[Row]:
    """Measure a run of DDIM."""
    return _ddim(options, EAGER)


def diffusion_ddim_bf16(options: Options) -> list[Row]:
    """Measure it in bfloat16, where there is a GPU."""
    return _ddim(options, BF16)


def diffusion_ddim_compiled(options: Options) -> list[Row]:
    """Measure it compiled, where there is a GPU."""
    return _ddim(options, COMPILED)


def diffusion_ddim_bf16_compiled(options: Options) -> list[Row]:
    """Measure it compiled in bfloat16, where there is a GPU."""
    return _ddim(options, BOTH)


# ---------------------------------------------------------------------- one evaluation


def _forward(options: Options, variant: Variant, cpu: bool = False) -> list[Row]:
    variant.need(options, cpu)
    name = f"diffusion_forward{variant.suffix}"
    cuda = options.device == "cuda"
    units, warmup = options.size(50 if cuda else 3, 1), options.size(10 if cuda else 1, 1)

    def lanes_of(pair: Pair, batch: int) -> dict[str, Callable[[], Seconds]]:
        x, steps = pair.inputs(batch)
        pair.ours.eval(), pair.theirs.eval()
        ours, theirs = torch.no_grad()(pair.ask_ours), torch.no_grad()(pair.ask_theirs)
        return {
            f"diffusers{pair.layout}": timed(lambda: theirs(x, steps), units, warmup, options.device),
            f"ours{pair.layout}": timed(lambda: ours(x, steps), units, warmup, options.device),
        }

    rows = []
    for batch in _batches(options, "forward"):
        pairs = [Pair(options, variant, layout, cast=True) for layout in layouts(options)]
        rows.append(_row(options, name, "evaluation", batch, pairs, lanes_of))
    return rows


# ---------------------------------------------------------------------- a step of training


def _train(options: Options, variant: Variant) -> list[Row]:
    variant.need(options)
    name = f"diffusion_train{variant.suffix}"
    cuda = options.device == "cuda"
    warmup, count = options.size(20 if cuda else 1, 1), options.size(50 if cuda else 3, 1)
    rows = []
    for batch in _batches(options, "train"):
        data = MemoryData((3, 32, 32), (warmup + count + 2) * batch, batch)
        pairs = [Pair(options, variant, layout) for layout in layouts(options)]

        def lanes_of(pair: Pair, batch: int, data: MemoryData = data) -> dict[str, Callable[[], Seconds]]:
            return {
                f"diffusers{pair.layout}": their_training(options, pair, data, warmup, count, fused=None),
                f"diffusers, fused AdamW{pair.layout}": their_training(options, pair, data, warmup, count, fused=True),
                f"ours{pair.layout}": our_training(options, pair, data, warmup, count),
            }

        rows.append(_row(options, name, "step", batch, pairs, lanes_of, training=True))
    return rows


# ---------------------------------------------------------------------- a run of DDIM


def _ddim(options: Options, variant: Variant) -> list[Row]:
    variant.need(options)
    name, steps = f"diffusion_ddim{variant.suffix}", options.size(50, 4)

    def lanes_of(pair: Pair, batch: int) -> dict[str, Callable[[], Seconds]]:
        module, shape = module_of(pair, options), (batch, *pair.ours.image_shape)
        generator = torch.Generator(options.device).manual_seed(0)

        def theirs(steps: int) -> Tensor:
            noise = torch.randn(shape, generator=generator, device=options.device, dtype=pair.dtype)
            return their_draw(pair, noise, steps).clamp(-1, 1)

        return {
            f"diffusers{pair.layout}": run_lane(theirs, steps, options.device),
            f"ours{pair.layout}": run_lane(
                lambda n: module.sample(batch, generator=generator, steps=n), steps, options.device
            ),
        }

    rows = []
    for batch in _batches(options, "ddim"):
        pairs = [Pair(options, variant, layout, cast=True) for layout in layouts(options)]
        row = _row(options, name, f"run of {steps} steps", batch, pairs, lanes_of)
        for pair in pairs:
            # another batch would have to be compiled anew
            row.facts |= end_difference(pair, options, batch if variant.compiled else 1, 10 if steps == 50 else 4)
        rows.append(row)
    return rows


# ---------------------------------------------------------------------- what the rows have in common


def _batches(options: Options, kind: str) -> list[int]:
    if options.batch is not None:
        return [options.batch]
    return [2] if options.tiny else BATCHES[kind][options.device]


def _row(
    options: Options,
    name: str,
    unit: str,
    batch: int,
    pairs: list[Pair],
    lanes_of: Callable[[Pair, int], dict[str, Callable[[], Seconds]]],
    training: bool = False,
) -> Row:
    """Compare what the networks say, measure the lanes of all layouts in turn, and compare ours with theirs."""
    facts = pairs[0].facts()
    for pair in pairs:
        facts |= pair.first_calls(batch, training)
    memory, lanes = PeakMemory(options.device), {}
    for pair in pairs:
        lanes |= {lane: memory.watch(lane, measure) for lane, measure in lanes_of(pair, batch).items()}
    title = f"{name}/batch {batch}" if options.device == "cuda" else name
    row = Row(title, f"{unit}, batch {batch}", alternate(lanes, options.repeats), options.clock)
    goal = next((GOALS[key] for b in (batch, None) if (key := (name, options.device, b)) in GOALS), None)
    # as both are built by default, and ours in its other layout
    for pair in pairs:
        row.compare(f"ours{pair.layout}", "diffusers", "speedup", goal)
        if training:
            row.compare(f"ours{pair.layout}", "diffusers, fused AdamW", "speedup")
        if pair.layout:
            row.compare(f"ours{pair.layout}", f"diffusers{pair.layout}", "speedup")
    row.facts = facts | memory.facts()
    return row
