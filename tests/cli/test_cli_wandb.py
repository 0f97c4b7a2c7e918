"""Weights & Biases as the logger: the scalars, the iterations as x axis and the grids of samples reach it."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import QUIET
from PIL import Image

wandb = pytest.importorskip("wandb")

LISTED = [
    {"class_path": "WandbLogger", "init_args": {"name": "first"}},
    {"class_path": "CSVLogger", "init_args": {"save_dir": "other"}},
]


@pytest.fixture
def offline(here, monkeypatch):
    """No account, no network, and neither a run nor its server left over."""
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "PROJECT": "digits"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield here
    wandb.finish()
    wandb.teardown()


@pytest.mark.parametrize("listed", [False, True], ids=["flag", "list in YAML"])
def test_scalars_and_grids_reach_wandb(offline, run, listed):
    args = [*QUIET, "--trainer.max_steps=4", "--trainer.log_every_n_steps=2"]
    if listed:
        Path("logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": LISTED}}))
        args += ["--config=logger.yaml"]
    else:
        args += ["--trainer.logger=WandbLogger", "--trainer.logger.name=first"]
    code, _, err = run("fit", "-c", "gan/digits", *args)
    assert code == 0, err
    there = wandb.run
    assert there.name == "first"
    assert there.config["loss"] == "non_saturating"
    assert np.isfinite([there.summary["loss_d"], there.summary["loss_g"]]).all()
    # the grid came last, after the fourth iteration
    assert there.summary["trainer/global_step"] == 4
    (shown,) = Path(there.dir, "media", "images").glob("samples_*.png")
    grid = Path("runs/gan/digits/samples/0000004.png")
    assert np.array_equal(*(np.asarray(Image.open(path).convert("L")) for path in (shown, grid)))
    assert (Path("other") / "lightning_logs").exists() == listed
    assert Path("runs/gan/digits/metrics.csv").is_file()
