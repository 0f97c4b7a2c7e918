"""Imports point down: what is on the ground floor sees neither Lightning nor a family's module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_gen

ROOT = Path(lightning_gen.__file__).parent
# a file may import files of its own floor and of those below
FLOORS = [
    ["errors", "files", "quiet", "nonfinite", "__init__"],
    [
        "images",
        "seeding",
        "dequantization",
        "networks",
        "gan.losses",
        "gan.penalties",
        "gan.augmentation",
        "gan.diffaugment",
    ],
    [
        "gan.ada",
        "gan.warp",
        "gan.ada_transforms",
        "gan.latents",
        "labels",
        "training_images",
        "metrics",
        "data",
        "checkpoint_files",
        "checkpoint_folders",
    ],
    ["agreement", "place", "epoch_means", "background"],
    [
        "gan.__init__",
        "diffusion",
        "autoencoder",
        "codec",
        "latent_cache",
        "flow",
        "stepping",
        "ema",
        "ema_profiles",
        "posthoc",
        "optimizers",
        "loggers",
        "overhead",
    ],
    ["sharding", "fsdp2", "checks"],
    ["held_out", "run_state"],
    ["module"],
    [
        "checkpoints",
        "results",
        "gan.module",
        "diffusion.module",
        "diffusion.drawing",
        "one_network",
        "autoencoder.module",
        "autoencoder.coding",
        "autoencoder.vae",
        "autoencoder.sampling_prior",
        "autoencoder.variational_coder",
        "autoencoder.drawing",
        "flow.module",
        "callbacks",
        "interop",
    ],
    ["cli", "__main__"],
]
PURE = ("networks", "metrics", "gan.losses", "gan.penalties", "gan.augmentation", "gan.diffaugment", "gan.ada")
PURE += ("diffusion", "autoencoder", "flow", "dequantization", "labels", "ema", "posthoc")


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def floor(name: str) -> int:
    names = [name[: len(name) - len(tail)] if tail else name for tail in ("", ".__init__") if name.endswith(tail)]
    best = -1, -1
    for level, entries in enumerate(FLOORS):
        for entry in entries:
            if any(n == entry or n.startswith(entry + ".") for n in names) and len(entry) > best[0]:
                best = len(entry), level
    assert best[1] >= 0, f"{name} has no floor: enter it in tests/test_layers.py"
    return best[1]


def imports(path: Path) -> set[str]:
    """Modules imported anywhere but under TYPE_CHECKING and in functions, which run later."""
    found = set()

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.update(
                    f"{node.module}.{alias.name}"
                    if (ROOT.parent / Path(*node.module.split("."), f"{alias.name}.py")).exists()
                    else node.module
                    for alias in node.names
                )
            elif isinstance(node, (ast.Try, ast.With, ast.ClassDef)):
                visit(node.body)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
                visit(node.body + node.orelse)

    visit(ast.parse(path.read_text()).body)
    return found


def own(name: str) -> str | None:
    if name == "lightning_gen":
        return "__init__"
    if not name.startswith("lightning_gen."):
        return None
    name = name.removeprefix("lightning_gen.")
    return name + ".__init__" if (ROOT / Path(*name.split("."))).is_dir() else name


GRAPH = {name: {o for i in imports(path) if (o := own(i))} for name, path in modules()}


@pytest.mark.parametrize("name", GRAPH)
def test_arrows_point_down(name):
    upward = {other for other in GRAPH[name] if floor(other) > floor(name)}
    assert not upward, f"{name} imports {upward}, which stand above it"


def test_there_is_no_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name not in done:
            path.append(name)
            for other in GRAPH.get(name, ()):
                visit(other)
            path.pop()
            done.add(name)

    for name in GRAPH:
        visit(name)


@pytest.mark.parametrize("name", [n for n in GRAPH if n.startswith(PURE) and floor(n) < floor("module")])
def test_pure_parts_do_without_lightning(name):
    used = {i for i in imports(ROOT / Path(*name.split(".")).with_suffix(".py")) if i.split(".")[0] == "lightning"}
    assert not used


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"lightning_gen.{n}" for n in ("networks", "metrics", "gan", "diffusion", "autoencoder", "flow")]
)
def test_pure_packages_load_without_lightning(name):
    code = f"import sys, {name}; sys.exit('lightning.pytorch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
