"""`fit`: the run folder, and what happens when it is there already."""

import csv
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import BASE

from lightning_gen.checkpoints import load_checkpoint


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def steps(folder):
    return [int(row["step"]) for row in rows(folder) if row["train/loss"]]


def test_run_folder(trained):
    assert {path.name for path in trained.iterdir()} >= {"config.yaml", "checkpoints", "metrics.csv", "tensorboard"}
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert any(path.name.startswith("events") for path in (trained / "tensorboard").iterdir())
    assert steps(trained) == list(range(10))
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["ckpt_path"] is None
    assert config["trainer"]["inference_mode"] is False
    assert config["seed_everything"] == 0
    assert config["model"]["class_path"] == "toy.Toy"


def test_its_config_starts_the_same_run(trained, run):
    shutil.move(trained / "config.yaml", "mine.yaml")
    code, _, err = run("fit", "-c", "mine.yaml", "--trainer.default_root_dir=second")
    assert code == 0, err
    first, second = (load_checkpoint(folder / "checkpoints/last.ckpt") for folder in (trained, Path("second")))
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, rtol=0, atol=0)
    # the given folder was used, not the one of the configuration
    assert yaml.safe_load(Path("second/config.yaml").read_text())["trainer"]["default_root_dir"] == "second"


def test_folder_is_called_after_the_configuration(here, run):
    config = {"model": {"class_path": "toy.Toy", "init_args": {"net": {"class_path": "toy.ToyNet"}}}}
    config |= {"data": {"class_path": "toy.ToyData"}, "trainer": {"max_epochs": 1, "enable_progress_bar": False}}
    (here / "small.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("fit", "--config=small.yaml")
    assert code == 0, err
    assert (here / "runs/small/checkpoints/last.ckpt").is_file()
    assert "run folder: runs/small" in err


def test_fast_dev_run_leaves_nothing(here, fit):
    code, _, err = fit("--trainer.fast_dev_run=2")
    assert code == 0, err
    assert not (here / "runs").exists()


def test_csv_even_without_loggers(here, fit):
    assert fit("--trainer.logger=false")[0] == 0
    assert steps(here / "runs/Toy") == list(range(10))
    assert not (here / "runs/Toy/tensorboard").exists()
    assert (here / "runs/Toy/checkpoints/last.ckpt").is_file()


def test_csv_beside_a_logger_of_ones_own(here, fit):
    code, _, err = fit("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=elsewhere")
    assert code == 0, err
    assert steps(here / "runs/Toy") == list(range(10))
    assert list((here / "elsewhere").rglob("metrics.csv"))
    assert not (here / "runs/Toy/tensorboard").exists()


# ------------------------------------------------------------------ continuing


def test_continues_and_says_so(trained, fit):
    code, _, err = fit("--model.num_classes=3", "--trainer.max_epochs=4")
    assert code == 0, err
    assert "continuing runs/Toy from iteration 10 (checkpoints/last.ckpt)" in err
    assert steps(trained) == list(range(20))
    assert load_checkpoint(trained / "checkpoints/last.ckpt")["global_step"] == 20


def test_continued_equals_uninterrupted(trained, fit):
    fit("--model.num_classes=3", "--trainer.max_epochs=4")
    fit("--model.num_classes=3", "--trainer.max_epochs=4", "--trainer.default_root_dir=straight")
    resumed, straight = (load_checkpoint(f / "checkpoints/last.ckpt") for f in (trained, Path("straight")))
    for name, value in straight["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0)
    assert [row["train/loss"] for row in rows(trained)] == [row["train/loss"] for row in rows(Path("straight"))]


def test_finished(trained, fit):
    before = (trained / "checkpoints/last.ckpt").stat().st_mtime_ns
    code, _, err = fit("--model.num_classes=3")
    assert code == 0
    assert "runs/Toy is finished: 10 iterations (max_epochs=2)" in err
    assert (trained / "checkpoints/last.ckpt").stat().st_mtime_ns == before


def test_finished_by_steps(here, fit):
    assert fit("--trainer.max_steps=3")[0] == 0
    code, _, err = fit("--trainer.max_steps=3")
    assert code == 0
    assert "finished: 3 iterations (max_steps=3)" in err


def test_finished_by_early_stopping(here, fit):
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    stopping += ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100.0", "--trainer.max_epochs=50"]
    code, _, err = fit(*stopping)
    assert code == 0, err
    assert steps(here / "runs/Toy") == list(range(10))
    code, _, err = fit(*stopping)
    assert code == 0
    assert "is finished: 10 iterations (stopped early, val/loss" in err


def test_rows_of_a_lost_part_do_not_repeat(here, fit):
    """The run dies at iteration 7, its checkpoint is of iteration 5."""
    often = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_steps=5"]
    assert fit("--model.stop_at=7", *often)[0] == 1
    folder = here / "runs/Toy"
    assert steps(folder) == list(range(7))
    # `stop_at` belongs to the model, which has to be the same
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"]["stop_at"] = -1
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = fit()
    assert code == 0, err
    assert "from iteration 5" in err
    assert steps(folder) == list(range(10))


def test_another_configuration_is_refused(trained, fit):
    code, _, err = fit("--model.num_classes=3", "--model.lr=3", "--data.batch_size=8", "--model.net=OtherToyNet")
    assert code == 2
    assert "model.lr: 0.01 in the run, 3.0 now" in err
    assert "data.batch_size: 4 in the run, 8 now" in err
    assert "model.net.class_path: toy.ToyNet in the run, toy.OtherToyNet now" in err
    assert "--trainer.default_root_dir" in err
    assert "Traceback" not in err
    assert yaml.safe_load((trained / "config.yaml").read_text())["model"]["init_args"]["lr"] == 0.01


def test_another_seed_is_refused(trained, fit):
    code, _, err = fit("--model.num_classes=3", "--seed_everything=5")
    assert code == 2
    assert "seed_everything: 0 in the run, 5 now" in err


def test_a_run_without_checkpoint_begins_anew(trained, fit):
    shutil.rmtree(trained / "checkpoints")
    code, _, err = fit("--model.lr=0.5")
    assert code == 0, err
    assert "continuing" not in err
    assert steps(trained) == list(range(10))
    assert yaml.safe_load((trained / "config.yaml").read_text())["model"]["init_args"]["lr"] == 0.5


# ------------------------------------------------------------------ --ckpt_path


def test_last(trained, fit):
    code, _, err = fit("--model.num_classes=3", "--trainer.max_epochs=3", "--ckpt_path=last")
    assert code == 0, err
    assert "from iteration 10" in err


def test_last_without_checkpoint(here, fit):
    code, _, err = fit("--ckpt_path=last")
    assert code == 2
    assert "there is no checkpoint in runs/Toy" in err


def test_best(here, fit):
    keep = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss", "--trainer.max_epochs=3"]
    keep += ["--trainer.callbacks.mode=max", "--trainer.callbacks.save_last=true"]
    assert fit(*keep)[0] == 0
    values = [(float(row["val/loss"]), int(row["step"])) for row in rows(here / "runs/Toy") if row["val/loss"]]
    best = max(values)[1] + 1
    assert best < 15  # else this test would say nothing
    code, _, err = fit(*keep, "--ckpt_path=best")
    assert code == 0, err
    assert f"from iteration {best} (" in err


def test_best_of_nothing_monitored(trained, fit):
    code, _, err = fit("--model.num_classes=3", "--ckpt_path=best")
    assert code == 2
    assert "ModelCheckpoint with `monitor`" in err


def test_missing_checkpoint(trained, fit):
    code, _, err = fit("--ckpt_path=runs/Toy/checkpoints/lst.ckpt")
    assert code == 1
    assert "There is no checkpoint" in err
    assert "last.ckpt" in err


def test_a_checkpoint_from_elsewhere(trained, fit):
    """Its model is built, and a flag that this overrides is named."""
    code, _, err = fit(
        "--ckpt_path=runs/Toy/checkpoints/last.ckpt",
        "--trainer.default_root_dir=other",
        "--model.net.width=7",
        "--trainer.max_epochs=3",
    )
    assert code == 0, err
    assert "warning: model.net.width is 4" in err
    assert "given 7 is not used" in err
    assert load_checkpoint("other/checkpoints/last.ckpt")["hyper_parameters"]["num_classes"] == 3


def test_damaged_newest_checkpoint(trained, fit):
    folder = trained / "checkpoints"
    for path in folder.iterdir():
        path.rename(folder / ("old.ckpt" if path.name == "last.ckpt" else "gone"))
    fit("--model.num_classes=3", "--trainer.max_epochs=3")
    newest = folder / "last.ckpt"
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    for path in folder.glob("epoch=2*"):
        path.unlink()
    code, _, err = fit("--model.num_classes=3", "--trainer.max_epochs=3", "--ckpt_path", newest)
    assert code == 1
    assert "is cut short" in err
    code, _, err = fit("--model.num_classes=3", "--trainer.max_epochs=3")
    assert code == 0, err
    assert "is cut short" in err
    assert "from iteration 10 (checkpoints/old.ckpt)" in err
    assert steps(trained) == list(range(15))


def test_flipped_bytes_are_noticed(trained, fit):
    folder = trained / "checkpoints"
    fit("--model.num_classes=3", "--trainer.max_epochs=3")
    newest = folder / "last.ckpt"
    content = bytearray(newest.read_bytes())
    weights = load_checkpoint(newest)["state_dict"]["net.layers.2.weight"].numpy().tobytes()
    place = bytes(content).index(weights)
    content[place : place + 4] = bytes(byte ^ 0xFF for byte in content[place : place + 4])
    newest.write_bytes(bytes(content))
    code, _, err = fit("--model.num_classes=3", "--trainer.max_epochs=3")
    assert code == 0, err
    assert "does not match its checksum" in err
    assert "from iteration 10 (checkpoints/previous.ckpt)" in err


def test_only_damaged_checkpoints(trained, fit):
    for path in (trained / "checkpoints").iterdir():
        path.write_bytes(b"PK")
    code, _, err = fit("--model.num_classes=3")
    assert code == 1
    assert "No checkpoint of runs/Toy can be read" in err
    assert "To begin anew" in err


# ------------------------------------------------------------------ stopping


def test_interrupted_at_once(here, fit):
    """As by a second Ctrl-C: nothing is saved in the middle of an iteration."""
    code, _, err = fit("--model.stop_at=3", "--model.stop_by=interrupt")
    assert code == 130
    assert "the same command continues" in err
    assert steps(here / "runs/Toy") == [0, 1, 2]
    assert not (here / "runs/Toy/checkpoints").exists()


@pytest.mark.parametrize(("how", "code"), [("sigint", 130), ("sigterm", 143)])
def test_stopped_by_a_signal_loses_nothing(here, fit, how, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped, _, err = fit("--model.stop_at=7", f"--model.stop_by={how}")
    assert stopped == code
    assert "saved runs/Toy/checkpoints/last.ckpt at iteration 8" in err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert steps(here / "runs/Toy") == list(range(8))
    # batch 7 is done, so that the same command does not stop there again
    code, _, err = fit("--model.stop_at=7", f"--model.stop_by={how}")
    assert code == 0, err
    assert "from iteration 8 (checkpoints/last.ckpt)" in err
    assert fit("--trainer.default_root_dir=straight")[0] == 0
    assert steps(here / "runs/Toy") == list(range(10))
    for resumed, straight in zip(rows(here / "runs/Toy"), rows(here / "straight"), strict=True):
        assert resumed["train/loss"] == straight["train/loss"]
    resumed, straight = (load_checkpoint(f"{f}/checkpoints/last.ckpt") for f in ("runs/Toy", "straight"))
    for name, value in straight["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0)


def test_unexpected_errors_keep_their_traceback(here, fit):
    code, _, err = fit("--model.stop_at=3")
    assert code == 1
    assert "ZeroDivisionError: a bug" in err
    assert "Traceback" in err


def test_out_of_memory(here, fit):
    code, _, err = fit("--model.stop_at=3", "--model.stop_by=memory")
    assert code == 1
    assert "smaller batch" in err
    assert "Traceback" not in err
    code, _, err = fit("--model.stop_at=3", "--model.stop_by=memory", "--trainer.default_root_dir=two", "--debug")
    assert code == 1
    assert "Traceback" in err


# ------------------------------------------------------------------ validate, test, predict


@pytest.mark.parametrize(("command", "metric"), [("validate", "val/loss"), ("test", "test/loss")])
def test_checkpoint_alone(trained, run, command, metric):
    before = (trained / "config.yaml").read_bytes(), (trained / "metrics.csv").read_bytes()
    for given in (trained, trained / "checkpoints/last.ckpt", shutil.copy(trained / "checkpoints/last.ckpt", "x.ckpt")):
        code, out, err = run(command, "--ckpt_path", given, "--trainer.enable_progress_bar=false")
        assert code == 0, err
        assert metric in out
    assert before == ((trained / "config.yaml").read_bytes(), (trained / "metrics.csv").read_bytes())
    assert "(not there)" not in err


def test_predict(trained, run):
    code, _, err = run("predict", "--ckpt_path", trained, "--trainer.enable_progress_bar=false")
    assert code == 0, err


def test_overridden_flag_is_named(trained, run):
    code, _, err = run("validate", "--ckpt_path", trained, "--model.lr=3", "--data.batch_size=2")
    assert code == 0, err
    assert "warning: model.lr is 0.01, as in the checkpoint" in err
    assert "given 3.0 is not used" in err
    assert err.count("warning: ") == 1


def test_overridden_configuration_is_named(trained, run):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["model"]["init_args"]["lr"] = 0.7
    Path("changed.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("validate", "-c", "changed.yaml", "--ckpt_path", trained / "checkpoints/last.ckpt")
    assert code == 0, err
    assert "given 0.7 is not used" in err


def test_validate_without_anything(here, run):
    code, _, err = run("validate")
    assert code == 2
    assert "Nothing says which model" in err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_model_is_not_measured(trained, run, command):
    code, _, err = run(command, "-c", "runs/Toy/config.yaml", "--trainer.default_root_dir=runs/Toy")
    assert code == 2
    assert "--ckpt_path says whose weights to use" in err
    assert "There is --ckpt_path runs/Toy." in err


def test_a_finished_run_of_another_folder_is_named(trained, fit):
    code, _, err = fit("--model.num_classes=3", "--ckpt_path=runs/Toy", "--trainer.default_root_dir=runs/new")
    assert code == 0
    assert "The run of runs/Toy/checkpoints/last.ckpt is finished" in err


def test_classes_of_the_working_folder(here, fit, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("my_parts.py").write_text("from toy import ToyNet\n\nclass MyNet(ToyNet):\n    pass\n")
    code, _, err = fit("--model.net=my_parts.MyNet", "--trainer.max_steps=1")
    assert code == 0, err
    assert sys.path[-1] == str(here)


@pytest.mark.parametrize("null", [["null"], ["~"]])
@pytest.mark.parametrize("joined", [True, False])
def test_null_for_an_argument_of_a_part(here, run, null, joined):
    """jsonargparse alone takes it for the text 'None'."""
    flags = []
    for name in ("generator", "discriminator"):
        for key, value in (("num_classes", null[0]), ("init_args.conditioning", "none")):
            flags += [f"--model.{name}.{key}={value}"] if joined else [f"--model.{name}.{key}", value]
    code, out, err = run("fit", "-c", "gan/digits", *flags, "--print_config")
    assert code == 0, err
    arguments = yaml.safe_load(out)["model"]["init_args"]
    for name in ("generator", "discriminator"):
        assert arguments[name]["init_args"]["num_classes"] is None
        assert arguments[name]["init_args"]["conditioning"] == "none"
        assert arguments[name]["init_args"]["image_shape"] == [1, 8, 8]


def test_print_config(here, run):
    code, out, _ = run("fit", *BASE, "--print_config")
    assert code == 0
    assert yaml.safe_load(out)["model"]["class_path"] == "toy.Toy"
    assert not (here / "runs").exists()


def test_class_help(here, run):
    code, out, _ = run("fit", "--model.help", "GAN")
    assert code == 0
    assert "--model.generator" in out
    assert "DCGANGenerator" in out
    code, _, err = run("fit", "--model.help", "GANN")
    assert code == 2
    assert "There is no class 'GANN' for 'model'. Did you mean 'GAN'?" in err


def test_checkpoints_in_the_background(here, fit):
    code, _, err = fit("--trainer.plugins+=BackgroundCheckpointIO")
    assert code == 0, err
    assert "BackgroundCheckpointIO" in (here / "runs" / "Toy" / "config.yaml").read_text()
    assert load_checkpoint(here / "runs" / "Toy" / "checkpoints" / "last.ckpt")["global_step"] == 10
