"""Record a finished run: its scores go to docs/results/, their summary into the head of its configuration.

    lightning-gen fit -c gan/mnist_cgan
    lightning-gen test --ckpt_path runs/gan/mnist_cgan/checkpoints/last.ckpt
    python scripts/record_result.py runs/gan/mnist_cgan

Numbers are taken from the run folder alone. What the run did otherwise than the packaged configuration says is
recorded beside them, under "differences".
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "lightning_gen" / "configs"
RESULTS = ROOT / "docs" / "results"
# where data lies and where runs are kept changes no number
NEUTRAL = ("trainer.callbacks", "trainer.default_root_dir", "trainer.logger", "trainer.plugins")
NEUTRAL += ("data.init_args.root", "data.init_args.path")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Write a nested configuration as one level of dotted keys."""
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in flatten(entry, f"{prefix}{key}.").items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return flatten({str(place): entry for place, entry in enumerate(value)}, prefix)
    return {prefix.rstrip("."): value}


def differences(run: dict[str, Any], packaged: dict[str, Any]) -> dict[str, Any]:
    """Return what the packaged configuration sets and the run had otherwise."""
    ours, theirs = flatten(packaged), flatten(run)
    changed = {}
    for key, value in ours.items():
        if key.startswith(NEUTRAL):
            continue
        run = theirs.get(key, value)
        if key.endswith("class_path"):  # a run writes whole paths
            value, run = (str(path).rpartition(".")[2] for path in (value, run))
        if run != value:
            changed[key] = {"packaged": value, "run": run}
    return changed


def summary(result: dict[str, Any]) -> str:
    """Write the scores of a result in one line, under the names that tell their protocol."""
    scores = [f"{name} {score['value']:.4g}" for name, score in result["scores"].items()]
    return ", ".join(scores + [f"{name} {value:.4g}" for name, value in told(result).items()])


# of the means over the test split: those that papers report
REPORTED = ("log_likelihood", "bits_per_dim", "psnr", "ssim", "usage")


def told(result: dict[str, Any]) -> dict[str, float]:
    """Return the means over the test split that are worth a place in a table, by name."""
    values = result.get("held_out", {}).get("values", {})
    found = {name: value for name, value in values.items() if name.removeprefix("test/").startswith(REPORTED)}
    # the loss says little, and is told where there is nothing else
    return found or ({} if result["scores"] else {name: value for name, value in values.items() if name == "test/loss"})


def set_header(config: Path, key: str, value: str) -> None:
    """Replace one line of a configuration's head."""
    text = config.read_text()
    replaced, count = re.subn(rf"^# {key}: .*$", lambda _: f"# {key}: {value}", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise SystemExit(f"{config} has no line '# {key}: ...' in its head.")
    config.write_text(replaced)


def main() -> None:
    """Record one run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="holds results.json and config.yaml")
    parser.add_argument("--config", help="short name; by default the last two parts of the run folder's path")
    arguments = parser.parse_args()
    name = arguments.config or "/".join(arguments.run_folder.resolve().parts[-2:])
    config = CONFIGS / f"{name}.yaml"
    for needed in (config, arguments.run_folder / "results.json", arguments.run_folder / "config.yaml"):
        if not needed.is_file():
            raise SystemExit(f"{needed} is not there: run fit and test first, or name the configuration by --config.")
    result = json.loads((arguments.run_folder / "results.json").read_text())
    changed = differences(
        yaml.safe_load((arguments.run_folder / "config.yaml").read_text()), yaml.safe_load(config.read_text())
    )
    result = {"config": name, "command": f"lightning-gen fit -c {name}", "differences": changed, **result}
    RESULTS.mkdir(parents=True, exist_ok=True)
    target = RESULTS / f"{name.replace('/', '_')}.json"
    target.write_text(json.dumps(result, indent=2) + "\n")
    set_header(config, "result", summary(result))
    set_header(config, "time", f"{result['training_minutes']:.0f} minutes, {result['iterations']} iterations")
    set_header(config, "hardware", result["environment"]["device"])
    print(f"{target.relative_to(ROOT)}: {summary(result)}")
    if changed:
        print("otherwise than packaged:", json.dumps(changed))


if __name__ == "__main__":
    main()
