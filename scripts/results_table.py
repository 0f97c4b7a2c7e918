"""Render docs/results.md from the JSON files under docs/results/ and the packaged configurations.

python scripts/results_table.py            # write the page
python scripts/results_table.py --check    # fail where the page is not what the files say
"""

import argparse
import json
from pathlib import Path
from typing import Any

from record_result import told

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "lightning_gen" / "configs"
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"

HEAD = """# Results

One row a packaged configuration, rendered by `python scripts/results_table.py` from the JSON files beside this
page; each file was written by a run (`scripts/record_result.py`) and holds the whole protocol, the commit, the
versions and the hardware. Scores are of the test split unless their name says otherwise. `fd-lenet5-...` is a
Frechet distance on the features of the LeNet-5 that the package ships: it compares models of digits trained with
this library, and is no FID.

"""


def score_text(name: str, score: dict[str, Any]) -> str:
    """Write one score."""
    spread = f" ± {score['std']:.2g}" if "std" in score else ""
    return f"{name} **{score['value']:.4g}**{spread}"


def row(config: Path) -> str:
    """Write the row of one configuration."""
    name = config.relative_to(CONFIGS).with_suffix("").as_posix()
    title = config.read_text().splitlines()[0].removeprefix("# ")
    file = RESULTS / f"{name.replace('/', '_')}.json"
    if not file.is_file():
        return f"| `{name}` | {title} | not yet run | | | |"
    result = json.loads(file.read_text())
    lines = [score_text(*entry) for entry in result["scores"].items()]
    scores = "<br>".join(lines + [f"{name} **{value:.4g}**" for name, value in told(result).items()])
    protocol = next((score["protocol"] for score in result["scores"].values()), None)
    protocol = protocol or {**result["held_out"]["protocol"], "seed": 0}
    changed = ", ".join(f"{key}={value['run']}" for key, value in result["differences"].items())
    spent = (
        f"{result['iterations']} iterations, {result['training_minutes']:.0f} min on {result['environment']['device']}"
    )
    drawn = f"{protocol['weights']}, seed {protocol['seed']}" + (f"; {changed}" if changed else "")
    return f"| `{name}` | {title} | {scores} | {drawn} | {spent} | {result['environment']['date']} |"


def page() -> str:
    """Render the page."""
    rows = [row(config) for config in sorted(CONFIGS.rglob("*.yaml"))]
    table = ["| configuration | what | scores | weights, seed | trained | date |", "|---|---|---|---|---|---|", *rows]
    return HEAD + "\n".join(table) + "\n"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the page is stale")
    if parser.parse_args().check:
        if not PAGE.is_file() or PAGE.read_text() != page():
            raise SystemExit(f"{PAGE.relative_to(ROOT)} is stale: run python scripts/results_table.py")
    else:
        PAGE.write_text(page())
        print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
