"""Every foreseeable mistake is answered by one paragraph."""

import errno
import os
from importlib.util import find_spec

import pytest
import torch
import yaml
from conftest import BASE

from lightning_gen.cli.failures import explain

CONFIG = {
    "trainer": {"max_epochs": 1},
    "model": {"class_path": "Toy", "init_args": {"net": {"class_path": "ToyNet", "init_args": {"width": 3}}}},
    "data": {"class_path": "ToyData", "init_args": {"batch_size": 4}},
}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model.lrr=3"], ["Toy (model) has no argument 'lrr'", "Did you mean 'lr'?"]),
        (["--model.net.widht=3"], ["ToyNet (model.net) has no argument 'widht'", "'width'"]),
        (["--trainer.max_epoch=3"], ["There is no option --trainer.max_epoch.", "--trainer.max_epochs"]),
        (["--trainr.max_epochs=3"], ["There is no option --trainr.max_epochs.", "--trainer.max_epochs"]),
        (["--model.lr=abc"], ["'model.lr' takes a number", "given was 'abc'"]),
        (["--trainer.max_epochs=abc"], ["'trainer.max_epochs' takes an integer", "given was 'abc'"]),
        (["--seed_everything=x"], ["'seed_everything' takes", "an integer", "given was 'x'"]),
        (["--model=Toyy"], ["There is no class 'Toyy' for 'model'", "Did you mean 'Toy'"]),
        (["--model=GANN"], ["There is no class 'GANN' for 'model'", "Did you mean 'GAN'?"]),
        (["--model.net=ToyNett"], ["There is no class 'ToyNett' for 'model.net'", "'ToyNet'"]),
        (["--data=MNISTDataModul"], ["There is no class 'MNISTDataModul' for 'data'", "'MNISTDataModule'"]),
        (["--model=no.such.Model"], ["no.such.Model", "cannot be imported"]),
        (["--model=toy.Nothing"], ["toy.Nothing"]),
        (["-c", "gan/digits", "--model.generatr.channels=3"], ["Did you mean --model.generator.channels?"]),
        (
            ["-c", "gan/digits", "--model.optimizer_g.lr=abc"],
            ["'model.optimizer_g.lr' takes a number; given was 'abc'."],
        ),
        (["-c", "gan/digits", "--model.optimizer_g.lrr=1"], ["GANAdam (model.optimizer_g) has no", "mean 'lr'?"]),
        (["-c", "gan/digits", "--model.penalties=R1"], ["'model.penalties' takes a list", "Did you mean '[R1]'?"]),
        (["-c", "gan/digits", "--model.augmentation.polcy=x"], ["--model.augmentation ADA | DiffAugment."]),
        (["-c", "gan/digits", "--model.label_prior=unifrm"], ["takes one of data, uniform; given was", "'uniform'?"]),
        (["-c", "gan/digits", "--model.weight_clip=a"], ["'model.weight_clip' takes a number or null; given was 'a'."]),
        (["-c", "gan/digits", "--model.generator.image_shape=[1,8]"], ["takes a list of 3; given was '[1, 8]'"]),
        (["-c", "gan/digits", "--n_dis=2"], ["There is no option --n_dis. Did you mean --model.n_dis?"]),
        (["--modl.lr=2"], ["There is no option --modl.lr. Did you mean --model.lr?"]),
        (["--n=3"], ["There is no option --n. `--help_all`"]),
        (["--data=MNST"], ["Did you mean 'MNISTDataModule'"]),
        (["--trainer.accelerator=gpuu"], ["The trainer cannot be built", "invalid accelerator name"]),
        (["--trainer.strategy=ddpp"], ["The trainer cannot be built", "invalid strategy name"]),
        (
            ["--trainer.gradient_clip_val=1"],
            ["instead of --trainer.gradient_clip_val give --model.gradient_clip_val 1"],
        ),
        (["--trainer.accumulate_grad_batches=2"], ["give --model.accumulate 2."]),
        (["-c", "gan/digits", "--model.loss=hing"], ["Did you mean 'hinge'", "non_saturating", "wasserstein"]),
        (["-c", "nofile"], ["There is no configuration 'nofile'", "lightning-gen list"]),
        (["-c", "gan/mnist_dcgn"], ["Did you mean 'gan/mnist_dcgan'"]),
        (["stray"], ["stray"]),
        (["--trainer.callbacks+=ModelCheckpont"], ["ModelCheckpont", "'ModelCheckpoint'"]),
        (["--trainer.logger=WandbLoger"], ["WandbLoger", "'WandbLogger'"]),
    ],
)
def test_wrong_arguments(here, fit, args, said):
    code, _, err = fit(*args)
    assert code == 2, err
    for text in said:
        assert text in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.strip() and "Seed set" not in line]) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainr": {"max_epochs": 3}}, ["'trainr", "trainer"]),
        ({"trainer": {"max_epoch": 3}}, ["There is no key 'trainer.max_epoch'", "max_epochs"]),
        ({"trainer": {"callbacks": [{"class_path": "ModelCheckpoin"}]}}, ["'ModelCheckpoin'", "'ModelCheckpoint'"]),
        (
            {"trainer": {"callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"monitr": "x"}}]}},
            ["ModelCheckpoint (trainer.callbacks) has no argument 'monitr'", "'monitor'"],
        ),
        (
            {"model": {"class_path": "Toy", "init_args": {"net": {"class_path": "ToyNet", "init_args": {"widt": 1}}}}},
            ["ToyNet (model.net) has no argument 'widt'", "'width'"],
        ),
        (
            {"model": {"class_path": "Toy", "init_args": {"net": {"class_path": "ToyNet", "init_arg": {"width": 1}}}}},
            ["init_args"],
        ),
        (
            {
                "model": {
                    "class_path": "Toy",
                    "init_args": {"net": {"class_path": "ToyNet", "init_args": {"width": "a"}}},
                }
            },
            ["'model.net.width' takes an integer", "'a'"],
        ),
        ({"model": {"class_path": "Toy", "init_args": {}}}, ["Toy (model) needs a value for: net"]),
        ({"model": None}, ["which model"]),
    ],
)
def test_wrong_configurations(here, run, change, said):
    (here / "wrong.yaml").write_text(yaml.safe_dump({**CONFIG, **change}))
    code, _, err = run("fit", "-c", "wrong.yaml")
    assert code == 2, err
    for text in said:
        assert text in err
    assert "Traceback" not in err


def test_unparsable_yaml(here, run):
    (here / "wrong.yaml").write_text("model: [1, 2\ndata: {")
    code, _, err = run("fit", "-c", "wrong.yaml")
    assert code == 2, err
    assert "Traceback" not in err


def test_values_that_a_class_refuses_are_wrong_usage(here, run):
    """The GAN's own checks, raised while it is built."""
    code, _, err = run("fit", "-c", "gan/digits", "--model.n_dis=0", "--trainer.fast_dev_run=true")
    assert code == 2, err
    assert "n_dis is the number of steps of D" in err
    assert "Traceback" not in err


def test_missing_data(here, run):
    args = ["--data.root=nowhere", "--data.download=false", "--trainer.accelerator=cpu"]
    code, _, err = run("fit", "-c", "gan/mnist_dcgan", *args)
    assert code == 1, err
    assert "The data set mnist is not complete" in err
    assert "Traceback" not in err


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_wandb(here, fit):
    code, _, err = fit("--trainer.logger=WandbLogger")
    assert code == 1, err
    assert 'pip install "lightning_gen[wandb]"' in err
    assert "Traceback" not in err


def test_only_the_chosen_class_is_asked_for_an_argument_without_its_section(here, run):
    """Other data sets that happen to be imported may have an argument of that name."""
    there, advice = "There is no option --pool.", " Did you mean --data.pool?"
    (here / "pooled.yaml").write_text(yaml.safe_dump(CONFIG | {"data": {"class_path": "PooledToyData"}}))
    (here / "toy.yaml").write_text(yaml.safe_dump(CONFIG))
    (here / "none.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 1}}))
    for args, meant in (
        (["-c", "toy.yaml"], ""),
        (["-c", "pooled.yaml"], advice),
        (["-c", "toy.yaml", "--data", "PooledToyData"], advice),
        (["-c", "pooled.yaml", "--data=toy.ToyData"], ""),
        (["-c", "none.yaml"], advice),
    ):
        code, _, err = run("fit", *args, "--pool=3")
        assert code == 2, err
        assert f"{there}{meant} `--help_all`" in err, (args, err)


def test_a_file_where_the_folder_should_be(here, fit):
    (here / "runs").write_text("")
    code, _, err = fit()
    assert code == 1
    assert "runs' is in the way" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_checkpoint_that_cannot_be_written(here, fit, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch, "save", refuse)
    code, _, err = fit()
    assert code == 1
    assert "runs/Toy/checkpoints" in err
    assert "Errno" not in err
    assert ("the disk is full" in err) == (number == errno.ENOSPC)
    assert "Traceback" not in err


def test_folder_that_cannot_be_written(here, fit, monkeypatch):
    from lightning_gen import loggers

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(loggers, "written_whole", refuse)
    code, _, err = fit()
    assert code == 1
    assert "No permission to write" in err
    assert "metrics.csv" in err
    assert "--trainer.default_root_dir" in err


def test_debug_by_the_environment(here, run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_DEBUG", "1")
    code, _, err = run("fit", *BASE, "--model.lrr=3")
    assert code == 2
    assert "Traceback" in err


def test_a_process_that_lost_another_one():
    error = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:40072.")
    assert explain(error) == (
        "another process of this run has ended, and this one cannot go on without it; that one says why.",
        1,
    )


def test_what_is_not_foreseen_is_not_explained():
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert explain(KeyError("x")) is None
    assert explain(ValueError("raised elsewhere")) is None
