"""Samples on their way from noise to image."""

import math
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from lightning_gen.diffusion.solvers.base import Point
from lightning_gen.images import image_grid, to_uint8
from lightning_gen.seeding import SampleStreams
from pictures.files import write_small
from pictures.model import ROWS_WITHOUT_CLASSES, Model


def make(model: Model, asked: Namespace) -> dict[str, Any]:
    """Write one picture of the states and one of the estimates; return which noise levels they show."""
    states, estimates, points = walk(model, asked)
    chosen = spread(len(states), asked.columns)
    files = {}
    for what, frames in (("states", states), ("estimates", estimates)):
        path = asked.pictures / f"{model.name}_trajectory_{what}.png"
        write_small(path, strip([frames[i] for i in chosen]))
        files[what] = path.name
    levels = [points[i].noise_level for i in chosen]
    return {
        "files": files,
        "steps": len(states) - 1,
        "t": [points[i].t for i in chosen],
        # an infinite one is no JSON
        "noise_levels": [level if math.isfinite(level) else "infinite" for level in levels],
        "classes": model.classes,
    }


def walk(model: Model, asked: Namespace) -> tuple[list[Tensor], list[Tensor], list[Point]]:
    """Draw one sample of each class, or some, and keep all states and estimates on the way.

    Returns:
        The states `(n, C, H, W)` at every point of the grid, scaled to the range of images; the estimates of the image
        made at each, the first and the last twice, as there is one fewer; and the points.
    """
    module, classes = model.module, model.classes
    n = ROWS_WITHOUT_CLASSES if classes is None else len(classes)
    points = module.grid.points(asked.steps or module.sampling_steps, module.path)
    # a run draws its first noise before all else
    noise = SampleStreams(asked.seed, 0, n, module.device, torch.float32).normal(*module.sample_shape)
    states, estimates = [_in_range(noise * points[0].sigma, points[0])], []

    def watch(number: int, point: Point, x: Tensor, x0: Tensor | None) -> None:
        states.append(_in_range(x, point))
        estimates.append(x if x0 is None else x0)

    cond = None if classes is None else torch.tensor(classes, device=module.device)
    model.draw(n, cond, steps=asked.steps, watch=watch)
    return states, [*estimates, states[-1]], points


def _in_range(x: Tensor, point: Point) -> Tensor:
    """Divide a state by its deviation where that is above 1, as at large noise of exploding variance."""
    return x / max(1.0, math.hypot(point.alpha, point.sigma))


def spread(count: int, columns: int) -> list[int]:
    """Return that many of the numbers 0 ... count - 1, evenly spread, both ends among them."""
    columns = min(count, columns)
    return [round(i * (count - 1) / (columns - 1)) for i in range(columns)]


def strip(frames: list[Tensor]) -> Tensor:
    """Lay frames `(n, C, H, W)` out: a sample a row, a frame a column; bytes `(C, H', W')`."""
    rows = torch.stack([to_uint8(frame.clamp(-1, 1)).cpu() for frame in frames], dim=1)
    return image_grid(rows.flatten(0, 1), columns=len(frames))
