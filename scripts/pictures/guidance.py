"""Samples of each class, and their scores, as guidance grows."""

from argparse import Namespace
from typing import Any

import torch

from lightning_gen.images import image_grid
from pictures.files import COLORS, fit_scale, pyplot, write_plot, write_small
from pictures.model import Model, reported, value_of


def make(model: Model, asked: Namespace) -> dict[str, Any]:
    """Write the grid and the plot; return the scores."""
    classes = model.classes or []
    if asked.n:
        # what is missing is missed before the work and not after
        pyplot(), model.evaluator
    cond = torch.tensor(classes, device=model.module.device)
    rows = [model.draw(len(classes), cond, guidance=scale, steps=asked.steps) for scale in asked.scales]
    grid = asked.pictures / f"{model.name}_guidance.png"
    write_small(grid, image_grid(torch.cat(rows), columns=len(classes)))
    found: dict[str, Any] = {"files": {"grid": grid.name}, "scales": asked.scales, "classes": classes}
    if not asked.n:
        return found
    found["steps"] = asked.steps or model.module.sampling_steps
    found["scores"] = []
    for scale in asked.scales:
        scores = model.scores(guidance=scale, steps=asked.steps)
        print(f"guidance {scale:g}: " + "; ".join(score.describe() for score in scores), flush=True)
        found["scores"].append({"scale": scale, "scores": reported(scores)})
    plot = asked.pictures / f"{model.name}_guidance_scores.png"
    write_plot(plot, _figure(found["scores"], f"{model.name}, {asked.n} samples, {model.weights}"))
    found["files"]["plot"] = plot.name
    return found


def _figure(entries: list[dict[str, Any]], title: str) -> Any:
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    words = {"fd-lenet5": "fd-lenet5 (lower is better)", "class-accuracy": "class accuracy"}
    entries = sorted(entries, key=lambda entry: entry["scale"])
    for panel, color, (metric, label) in zip(panels, COLORS, words.items(), strict=False):
        values = [value_of(entry["scores"], metric) for entry in entries]
        panel.plot([entry["scale"] for entry in entries], values, marker="o", color=color)
        panel.set(xlabel="scale of guidance (1 is none)", ylabel=label)
        panel.grid(alpha=0.3)
    fit_scale(panels[0], [value_of(entry["scores"], "fd-lenet5") for entry in entries])
    figure.suptitle(title, fontsize=10)
    return figure
