"""Pictures of how a diffusion model samples: its way from noise, guidance, and steps against quality.

    python scripts/diffusion_pictures.py runs/diffusion/mnist_cond
    python scripts/diffusion_pictures.py runs/diffusion/mnist_cond --what steps --n 5000 --solvers ddim,heun

Three kinds, all drawn by the library's own sampler:

    trajectory   some samples on their way from noise to image: the states, and the images estimated on the way
    guidance     samples of each class at several scales of guidance, and the scores of N samples at each scale
    steps        the score of N samples against the evaluations of the network, for each solver

Pictures go to docs/pictures/NAME_*.png, every number with its protocol to docs/results/NAME_pictures.json, where NAME
is made of the last two parts of the run folder. Plots need `pip install -e ".[docs]"`. The scores are `fd-lenet5` and
`class-accuracy`, which are made for digits; models of other images have a trajectory, and grids of guidance with
`--n 0`.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("trajectory", "guidance", "steps")
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
SOLVERS = ("ddim", "heun", "dpmpp_2m", "unipc", "euler_ancestral")
EVALUATIONS = (5, 10, 20, 40)
FOLDERS = ("--pictures", "--results", "--data_root")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run folder, or a checkpoint of it")
    parser.add_argument("--what", default=",".join(KINDS), help=f"some of {', '.join(KINDS)}; all by default")
    parser.add_argument("--n", type=int, default=1000, help="samples of each score (default 1000); 0 scores nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", help="raw, ema, ema-10000 ...; the model's own choice by default")
    parser.add_argument("--steps", type=int, help="steps of trajectory and guidance; the model's own by default")
    parser.add_argument("--columns", type=int, default=12, help="points of the trajectory that are shown (default 12)")
    parser.add_argument("--scales", default=",".join(f"{scale:g}" for scale in SCALES), help="of guidance")
    parser.add_argument("--solvers", default=",".join(SOLVERS), help="by name; see docs/diffusion.md")
    parser.add_argument("--evaluations", default=",".join(map(str, EVALUATIONS)), help="at most so many, per solver")
    parser.add_argument("--guidance", type=float, help="scale for `steps`; the model's own by default")
    parser.add_argument("--data", help="reference of the scores; what the checkpoint names by default")
    parser.add_argument("--data_root", help="where the data lies")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--batch_size", type=int, default=100, help="images drawn at once (default 100)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--name", help="of the files; the last two parts of the run folder's path by default")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "pictures", help="folder")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder")
    asked = parser.parse_args(arguments)
    asked.what, asked.solvers = asked.what.split(","), asked.solvers.split(",")
    for kind in asked.what:
        if kind not in KINDS:
            parser.error(f"there is no '{kind}'; --what takes some of {', '.join(KINDS)}")
    try:
        asked.scales = [float(scale) for scale in asked.scales.split(",")]
        asked.evaluations = sorted(int(count) for count in asked.evaluations.split(","))
    except ValueError:
        parser.error("--scales and --evaluations are numbers, with commas between them")
    for name, least in (("n", 0), ("batch_size", 1), ("columns", 2)):
        if getattr(asked, name) < least:
            parser.error(f"--{name} is {least} or more")
    if asked.evaluations[0] < 1:
        parser.error("--evaluations are 1 or more")
    return asked


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Make the pictures asked for, write the numbers; return them as plain data."""
    asked = parse(arguments)
    typed = list(arguments) if arguments is not None else sys.argv[1:]
    from pictures.model import Model

    from lightning_gen.errors import MissingData, MissingExtra
    from lightning_gen.files import written_whole

    try:
        model = Model(asked)
        path = asked.results / f"{model.name}_pictures.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for kind in asked.what:
            begin = time.monotonic()
            section = run(kind, model, asked)
            if section is None:
                continue
            section |= {"minutes": round((time.monotonic() - begin) / 60, 2)}
            section |= {"command": command(typed, asked.checkpoint, model.shown)}
            content[kind] = model.context() | section
            # after every kind, for the next one may take hours
            with written_whole(path) as partial:
                partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except (MissingData, MissingExtra, FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(path)
    return content


def command(typed: list[str], checkpoint: Path, shown: str) -> str:
    """Return what makes the same numbers: without the folders of this machine, which change none of them."""
    kept, skip = [], False
    for word in typed:
        option = word.split("=")[0]
        if not skip and option not in FOLDERS:
            kept.append(shown if word == str(checkpoint) else word)
        skip = option in FOLDERS and "=" not in word
    return shlex.join(["python", "scripts/diffusion_pictures.py", *kept])


def run(kind: str, model: Any, asked: argparse.Namespace) -> dict[str, Any] | None:
    """Make one kind of picture; return its numbers, or None where the model has no such picture."""
    from pictures import guidance, steps, trajectory

    print(f"{kind} ...", file=sys.stderr, flush=True)
    if kind == "guidance" and not model.guidable:
        print("guidance: left out, this model has no classes, or was not trained without them.")
        return None
    made: dict[str, Any] = {"trajectory": trajectory, "guidance": guidance, "steps": steps}[kind].make(model, asked)
    return made


if __name__ == "__main__":
    main()
