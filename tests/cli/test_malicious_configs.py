"""A configuration builds models, data and callbacks, and nothing else."""

from pathlib import Path

import pytest
import yaml

MARK = "executed"
GOOD = {
    "model": {"class_path": "toy.Toy", "init_args": {"net": {"class_path": "toy.ToyNet"}}},
    "data": {"class_path": "toy.ToyData"},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
}
SHELL = {"class_path": "os.system", "init_args": {"command": f"touch {MARK}"}}
PROCESS = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", MARK]}}
FILE = {"class_path": "pathlib.Path.touch", "init_args": {"self": MARK}}
BUILTIN = {"class_path": "builtins.exec", "init_args": {"source": f"open({MARK!r}, 'w')"}}


def with_part(place, part):
    config = yaml.safe_load(yaml.safe_dump(GOOD))
    inner = config
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = part
    return config


@pytest.mark.parametrize("part", [SHELL, PROCESS, FILE, BUILTIN], ids=["shell", "process", "file", "builtin"])
@pytest.mark.parametrize(
    "place",
    [
        ("model",),
        ("model", "init_args", "net"),
        ("data",),
        ("trainer", "callbacks"),
        ("trainer", "logger"),
        ("trainer", "plugins"),
        ("trainer", "strategy"),
        ("trainer", "profiler"),
    ],
    ids=".".join,
)
def test_nothing_is_executed(place, part, here, run):
    given = [part] if place[-1] in ("callbacks", "plugins") else part
    (here / "bad.yaml").write_text(yaml.safe_dump(with_part(place, given)))
    code, _, err = run("fit", "-c", "bad.yaml")
    assert code in (1, 2)
    assert "Traceback" not in err
    assert not (here / MARK).exists()
    assert not Path("runs/Toy/checkpoints").exists()


@pytest.mark.parametrize(
    "text", [f"model: !!python/object/apply:os.system ['touch {MARK}']", "model: !!python/name:os"]
)
def test_yaml_that_asks_for_python_objects_is_refused(text, here, run):
    (here / "bad.yaml").write_text(text)
    code, _, err = run("fit", "-c", "bad.yaml")
    assert code == 2
    assert "Traceback" not in err
    assert not (here / MARK).exists()
