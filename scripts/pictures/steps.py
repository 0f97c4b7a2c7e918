"""How good samples are against how often the network is asked, for each solver."""

import time
from argparse import Namespace
from typing import Any

from lightning_gen.diffusion import SOLVERS
from lightning_gen.diffusion.solvers import Solver
from lightning_gen.errors import choose
from pictures.files import COLORS, MARKERS, fit_scale, pyplot, write_plot
from pictures.model import Model, reported, value_of


def make(model: Model, asked: Namespace) -> dict[str, Any]:
    """Write the plot; return the scores. Guided, an evaluation is one pass of twice the batch.

    Raises:
        ValueError: where there is nothing to score, or no such solver.
    """
    if not asked.n:
        raise ValueError("`steps` are scores alone: --n is 2 or more for them.")
    kinds = {name: choose("solver", name, SOLVERS)() for name in asked.solvers}
    # what is missing is missed before the work and not after
    pyplot(), model.evaluator
    how = {} if asked.guidance is None else {"guidance": asked.guidance}
    entries = []
    for name, solver in kinds.items():
        for wanted in asked.evaluations:
            steps = steps_for(solver, wanted)
            begin = time.monotonic()
            scores = model.scores(solver=name, steps=steps, **how)
            entry = {"solver": name, "steps": steps, "evaluations": solver.evaluations(steps)}
            entry |= {"seconds": round(time.monotonic() - begin, 1), "scores": reported(scores)}
            print(f"{name}, {entry['evaluations']} evaluations: {scores[0].describe()}", flush=True)
            entries.append(entry)
    guidance = model.module.guidance.scale if asked.guidance is None else asked.guidance
    path = asked.pictures / f"{model.name}_steps.png"
    title = f"{model.name}, {asked.n} samples, {model.weights}, guidance {guidance:g}"
    write_plot(path, _figure(entries, title))
    return {"files": {"plot": path.name}, "guidance": guidance, "scores": entries}


def steps_for(solver: Solver, evaluations: int) -> int:
    """Return the most steps that take no more evaluations than that; at least 1."""
    steps = evaluations
    while steps > 1 and solver.evaluations(steps) > evaluations:
        steps -= 1
    return steps


def _figure(entries: list[dict[str, Any]], title: str) -> Any:
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(6.4, 4), layout="constrained")
    names = list(dict.fromkeys(entry["solver"] for entry in entries))
    for number, name in enumerate(names):
        own = [entry for entry in entries if entry["solver"] == name]
        panel.plot(
            [entry["evaluations"] for entry in own],
            [value_of(entry["scores"], "fd-lenet5") for entry in own],
            marker=MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            label=name,
        )
    panel.set_xscale("log", base=2)
    fit_scale(panel, [value_of(entry["scores"], "fd-lenet5") for entry in entries])
    ticks = sorted({entry["evaluations"] for entry in entries})
    panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
    panel.tick_params(axis="x", which="minor", bottom=False)
    panel.set(xlabel="evaluations of the network, a sample", ylabel="fd-lenet5 (lower is better)")
    panel.grid(alpha=0.3)
    panel.legend()
    panel.set_title(title, fontsize=10)
    return figure
