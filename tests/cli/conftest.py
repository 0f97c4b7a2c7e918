import pytest
import toy  # its classes are known by their bare names once it is imported

from lightning_gen.cli import main

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
BASE = ["--model=Toy", "--model.net=ToyNet", "--data=ToyData", "--trainer.accelerator=cpu", *QUIET]
BASE += ["--trainer.log_every_n_steps=1", "--trainer.max_epochs=2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command; returns its exit code, standard output and standard error."""

    def command(*args):
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def fit(run):
    """Train the toy; further arguments go after the usual ones."""

    def command(*args):
        return run("fit", *BASE, *args)

    return command


@pytest.fixture
def trained(here, fit):
    """A finished run of the toy with classes, in runs/Toy."""
    code, _, err = fit("--model.num_classes=3")
    assert code == 0, err
    return here / "runs" / "Toy"


assert toy.Toy
