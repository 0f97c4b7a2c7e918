"""Write the tables of docs/performance.md from the JSON file of scripts/benchmark.py.

    python scripts/performance_table.py docs/results/benchmark_cpu.json

A table stands between `<!-- table:ROW -->` and `<!-- end -->`; what stood there before is replaced.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from marked_tables import filled

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
PEERS = ("torchmetrics", "torch-fidelity", "diffusers", "scipy")
WORDS = {"slowdown": "time of {}", "speedup": "speed of {}", "extra": "extra time of {}"}
LIMIT = {"slowdown": "at most", "speedup": "at least", "extra": "at most"}


def main() -> None:
    """Render every marked table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    rows = json.loads(asked.results.read_text(encoding="utf-8"))["rows"]
    page = asked.page.read_text(encoding="utf-8")
    asked.page.write_text(rendered(page, rows), encoding="utf-8")


def rendered(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with its tables made anew; a row of name a/b stands in the table a."""

    def made(wanted: str) -> str:
        if wanted == "environment":
            return surroundings(rows)
        chosen = [row for row in rows if row["name"].split("/")[0] == wanted]
        return "\n\n".join(table(row) for row in chosen) or "Not yet run."

    return filled(page, made)


def surroundings(rows: list[dict[str, Any]]) -> str:
    """Say what the rows were measured on; they may come from several runs."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        env = row["environment"]
        text = (
            f"{env['device']}, {env['threads']} thread(s), {env['date']}, Python {env['python']}, torch {env['torch']},"
            f" lightning {env['lightning']}"
        )
        text += "".join(
            f", {peer} {env[peer]}" for peer in ("torchmetrics", "torch-fidelity", "diffusers", "scipy") if peer in env
        )
        loads, name = found.setdefault(text, {}), row["name"].split("/")[0]
        loads[name] = max(env["load"][0], loads.get(name, 0.0))
    return "\n\n".join(
        f"Measured on: {text}. Load of the machine: {'; '.join(f'{name} {load:g}' for name, load in loads.items())}."
        for text, loads in found.items()
    )


def table(row: dict[str, Any]) -> str:
    """Return one row's lanes, comparisons and facts in Markdown."""
    if "skipped" in row:
        return f"`{row['name']}`: skipped, {row['skipped']}."
    clock = row["clock"]
    clock_name = {"wall": "wall clock", "cpu": "processor time"}[clock]
    out = [f"`{row['name']}`:", "", f"| lane | ms per {row['what']}, {clock_name} |", "|---|---|"]
    out += [f"| {lane} | {spread(times[clock])} |" for lane, times in row["lanes_ms"].items()]
    if row["comparisons"]:
        out += ["", "| comparison | value | goal | |", "|---|---|---|---|"]
    for compared in row["comparisons"]:
        ours, theirs = compared["what"].split(" against ")
        unit = " ms" if compared["kind"] == "extra" else " x"
        goal = "" if compared["goal"] is None else f"{LIMIT[compared['kind']]} {compared['goal']:g}{unit}"
        met = {None: "", True: "met", False: "**missed**"}[compared["met"]]
        what = f"{WORDS[compared['kind']].format(ours)} over {theirs}"
        out.append(f"| {what} | {spread(compared)}{unit} | {goal} | {met} |")
    if row["facts"]:
        out += ["", *(f"- {name}: {shown(value)}" for name, value in row["facts"].items())]
    return "\n".join(out)


def spread(values: dict[str, float]) -> str:
    """Return a median with its range."""
    return "{} ({} to {})".format(*(digits(values[name]) for name in ("median", "min", "max")))


def digits(value: float) -> str:
    """Return three digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def shown(value: Any) -> str:
    """Return a fact as it is printed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
