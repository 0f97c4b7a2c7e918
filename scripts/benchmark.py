"""Measure our parts against peers, in one run and in turn.

    python scripts/benchmark.py --repeats 7 --threads 1 --out docs/results/benchmark_cpu.json
    python scripts/benchmark.py --rows gan_mlp,ema
    python scripts/benchmark.py --device cuda --out docs/results/benchmark_cuda.json

Peers come with `pip install -e ".[bench]"`; a row whose peer or device is missing is skipped, and says so.
`scripts/performance_table.py` writes the tables of docs/performance.md from the JSON file.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# row: the module under benchmarks/ that measures it, in a function of the row's name
ROWS = {
    "gan_dcgan32": "gans",
    "gan_dcgan32_bf16": "gans",
    "gan_dcgan32_compiled": "gans",
    "gan_mlp": "gans",
    "gan_parts": "parts",
    "ema": "ema",
    "sqrt_trace": "metrics",
    "features": "metrics",
    "data": "data",
    "shards": "shards",
    "survival": "survival",
    "checkpoint": "survival",
    "diffusion_forward": "diffusion",
    "diffusion_forward_bf16": "diffusion",
    "diffusion_forward_compiled": "diffusion",
    "diffusion_forward_bf16_compiled": "diffusion",
    "diffusion_train": "diffusion",
    "diffusion_train_bf16": "diffusion",
    "diffusion_train_compiled": "diffusion",
    "diffusion_train_bf16_compiled": "diffusion",
    "diffusion_ddim": "diffusion",
    "diffusion_ddim_bf16": "diffusion",
    "diffusion_ddim_compiled": "diffusion",
    "diffusion_ddim_bf16_compiled": "diffusion",
    "diffusion_conv": "diffusion_changes",
    "diffusion_changes": "diffusion_changes",
    "diffusion_growth": "diffusion_own",
    "diffusion_parts": "diffusion_own",
    "vae_train": "vae",
    "vae_train_compiled": "vae",
    "iwae_step": "iwae",
    "iwae_step_compiled": "iwae",
    "autoencoder_train": "autoencoder",
    "autoencoder_train_compiled": "autoencoder",
    "autoencoder_encode": "autoencoder",
    "autoencoder_conv": "autoencoder",
    "tiled_decode": "tiles",
}
PEERS = ("pythae", "webdataset", "torchvision", "torchmetrics", "torch-fidelity", "diffusers", "scipy", "numpy")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="rounds through the lanes of a row (default 5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="processor threads of torch and BLAS (default 1)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="what comparisons are read from; the processor's own time bears a busy machine (default wall)",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write; its rows of other names are kept")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: shows that the rows run, nothing else")
    parser.add_argument("--batch", type=int, help="images of a batch in the rows of diffusion (default: the rows' own)")
    options = parser.parse_args(arguments)
    options.rows = options.rows.split(",")
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"no rows called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if options.repeats < 1 or options.threads < 1 or (options.batch is not None and options.batch < 1):
        parser.error("--repeats, --threads and --batch are 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure the rows asked for, print them, write them; return them as plain data."""
    asked = parse(arguments)
    # read by the BLAS libraries when they are loaded, so before torch and scipy are
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(asked.threads))
    import torch
    from benchmarks.timing import Options

    if asked.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda was asked for, and torch sees no GPU.")
    torch.set_num_threads(asked.threads)
    options = Options(asked.repeats, asked.device, asked.clock, asked.tiny, asked.batch)
    reports = []
    for name in asked.rows:
        for report in measure(name, options):
            reports.append(report | {"environment": environment(asked.threads, asked.device)})
            print("\n".join(lines(report)), flush=True)
            if asked.out is not None:
                write(asked.out, reports)
    return reports


def measure(name: str, options: Any) -> list[dict[str, Any]]:
    """Return the report of a row; where it is skipped, why."""
    from benchmarks.timing import Unavailable

    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        row_function = getattr(importlib.import_module(f"benchmarks.{ROWS[name]}"), name)
        return [row.report() for row in row_function(options)]
    except Unavailable as error:
        return [{"name": name, "skipped": str(error)}]


def environment(threads: int, device: str) -> dict[str, Any]:
    """Return what a row was measured on and with; rows of one file may come from several runs."""
    from lightning_gen.results import environment as common

    found = common() | {"threads": threads, "load": [round(load, 1) for load in os.getloadavg()]}
    if device == "cpu":
        found["device"] = f"{_processor()}, {os.cpu_count()} cores"
    installed = {peer: _version(peer) for peer in PEERS}
    return found | {peer: version for peer, version in installed.items() if version is not None}


def _processor() -> str:
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        described = []
    return next((line.split(":", 1)[1].strip() for line in described if line.startswith("model name")), "CPU")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def lines(report: dict[str, Any]) -> list[str]:
    """Return a report as it is printed."""
    if "skipped" in report:
        return [f"\n{report['name']}: skipped, {report['skipped']}"]
    clock = report["clock"]
    found = [f"\n{report['name']}: ms per {report['what']} ({clock} clock), median (min to max)"]
    for lane, times in report["lanes_ms"].items():
        spread = times[clock]
        found.append(f"  {lane:32s} {spread['median']:10.3f}  ({spread['min']:.3f} to {spread['max']:.3f})")
    for compared in report["comparisons"]:
        unit = " ms" if compared["kind"] == "extra" else " x"
        spread = f"{compared['median']:.3f}{unit} ({compared['min']:.3f} to {compared['max']:.3f})"
        goal = (
            "" if compared["goal"] is None else f", goal {compared['goal']:g}: {'met' if compared['met'] else 'MISSED'}"
        )
        found.append(f"  {compared['kind']:9s} {compared['what']}: {spread}{goal}")
    return [*found, *(f"  {name}: {value}" for name, value in report["facts"].items())]


def write(path: Path, reports: list[dict[str, Any]]) -> None:
    """Write the rows; those of other names that the file has are kept."""
    from lightning_gen.files import written_whole

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    merged = {row["name"]: row for row in [*rows, *reports]}
    with written_whole(path) as partial:
        partial.write_text(json.dumps({"rows": list(merged.values())}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
