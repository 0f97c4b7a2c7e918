"""`shards`, and the other commands on what it has written."""

import sys

import numpy as np
import pytest
from conftest import BASE, QUIET
from PIL import Image
from test_cli_start import cold

from lightning_gen.data import ShardsDataModule

pytest.importorskip("webdataset")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*:UserWarning"),
]


@pytest.fixture
def pictures(here):
    """Sixty images of three classes, 6 x 6, in the working folder."""
    generator = np.random.default_rng(0)
    for number in range(60):
        path = here / "pictures" / "abc"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 6, 1), np.uint8)[..., 0]).save(path)
    return here / "pictures"


def test_writing_repeating_and_refusing(pictures, run):
    args = ("shards", "pictures", "out", "--size", 4, "--shard_mb", 0.02)
    code, out, err = run(*args)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[-2:] == ["1 x 4 x 4, 3 classes", "out/index.json"]
    made = ShardsDataModule("out", num_workers=0)
    assert [line.split()[0] for line in lines[:3]] == ["train:", "val:", "test:"]
    assert int(lines[0].split()[1]) == len(made.split("train")) > 40
    assert made.shape == (1, 4, 4)
    assert made.class_names == ["a", "b", "c"]
    assert run(*args)[:2] == (0, out)
    code, _, err = run("shards", "pictures", "out", "--size", 2)
    assert code == 1
    assert "other images, or with other options" in err
    assert "Traceback" not in err


def test_options_reach_the_images(pictures, run):
    (pictures / "a" / "bad.png").write_bytes(b"")
    code, _, err = run("shards", "pictures", "out")
    assert code == 1
    assert "bad.png" in err
    assert "--on_error skip" in err
    args = ("--on_error", "skip", "--no_labels", "--channels", 3, "--val_fraction", 0, "--name", "noise")
    with pytest.warns(UserWarning, match="Left out 1"), pytest.warns(UserWarning, match="leave nothing for val"):
        code, out, err = run("shards", "pictures", "again", *args)
    assert code == 0, err
    made = ShardsDataModule("again", num_workers=0)
    assert (made.name, made.shape, made.num_classes) == ("noise", (3, 6, 6), None)
    assert "1 left out" in out
    assert "val: as train" in out


@pytest.fixture
def written(pictures, run):
    code, _, err = run("shards", "pictures", "out", "--size", 4, "--shard_mb", 0.02)
    assert code == 0, err
    return "out"


def test_training_from_shards(written, run):
    data = ["--data=ShardsDataModule", "--data.path=out", "--data.batch_size=16", "--data.num_workers=0"]
    args = [arg for arg in BASE if not arg.startswith("--data")]
    code, _, err = run("fit", *args, *data, "--model.num_classes=3", "--trainer.limit_val_batches=1")
    assert code == 0, err
    code, _, err = run("test", "--ckpt_path", "runs/Toy", *QUIET)
    assert code == 0, err


def test_scores_are_held_against_shards(pictures, run):
    assert run("shards", "pictures", "out")[0] == 0
    args = ("--split", "train", "--metrics", "fd-lenet5", "--n", 32, "--out", "scores.json")
    code, out, err = run("evaluate", "--samples", "pictures", "--data", "out", *args)
    assert code == 0, err
    assert "fd-lenet5" in out
    assert "pictures (--data out)" in (pictures.parent / "scores.json").read_text() + out


def test_training_by_class_path_in_yaml(written, here, run):
    (here / "mine.yaml").write_text(
        "data:\n  class_path: lightning_gen.data.ShardsDataModule\n  init_args: {path: out, batch_size: 16}\n"
    )
    args = [arg for arg in BASE if not arg.startswith("--data")]
    code, _, err = run("fit", *args, "-c", "mine.yaml", "--data.num_workers=0", "--trainer.fast_dev_run=true")
    assert code == 0, err


def test_a_damaged_shard_is_told_in_a_sentence(written, here, run):
    (here / "out" / "train-00000.tar").unlink()
    data = ["--data=ShardsDataModule", "--data.path=out", "--data.batch_size=16", "--data.num_workers=0"]
    args = [arg for arg in BASE if not arg.startswith("--data")]
    code, _, err = run("fit", *args, *data)
    assert code == 1
    assert "train-00000.tar: missing" in err
    assert "--data.on_error skip" in err
    assert "Traceback" not in err
    code, _, err = run("shards", "pictures", "out", "--size", 4, "--shard_mb", 0.02)
    assert code == 0, err
    code, _, err = run("fit", *args, *data, "--trainer.fast_dev_run=true")
    assert code == 0, err


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_damage_met_while_training_is_told_in_a_sentence(written, here, run, workers):
    for path in (here / "out").glob("train-*.tar"):
        content = bytearray(path.read_bytes())
        content[int(np.load(path.with_suffix(".npy"))[0, 0]) + 20] ^= 1
        path.write_bytes(content)
    data = ["--data=ShardsDataModule", "--data.path=out", "--data.batch_size=16", f"--data.num_workers={workers}"]
    args = [arg for arg in BASE if not arg.startswith("--data")]
    code, _, err = run("fit", *args, *data, "--trainer.num_sanity_val_steps=0")
    assert code == 1
    told = err[err.index("lightning-gen fit: error:") :]
    assert "is not what was written: the file is damaged" in told
    assert "Traceback" not in told
    assert "Caught" not in told


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "FOLDER_OR_ZIP OUT"),
        (["pictures"], "FOLDER_OR_ZIP OUT"),
        (["pictures", "out", "more"], "'more' is not understood"),
        (["pictures", "out", "--sizee", "3"], "Did you mean --size?"),
        (["pictures", "out", "--size", "0"], "1 or more"),
        (["pictures", "out", "--resize", "zoom"], "invalid choice: 'zoom'"),
        (["pictures", "out", "--shard_mb", "0"], "above 0"),
        (["pictures", "out", "--val_fraction", "1"], "below 1"),
        (["pictures", "out", "--val_fraction", "0.5", "--test_fraction", "0.5"], "together less than 1"),
        (["pictures", "out", "--jpeg_quality", "101"], "jpeg_quality is 1 to 100"),
        (["pictures", "s4://out"], "no protocol 's4'"),
    ],
)
def test_wrong_usage(pictures, run, args, said):
    code, _, err = run("shards", *args)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err


def test_what_is_not_there(pictures, run, monkeypatch):
    code, _, err = run("shards", "picture", "out")
    assert code == 1
    assert "Did you mean 'pictures'?" in err
    monkeypatch.setitem(sys.modules, "webdataset", None)
    code, _, err = run("shards", "pictures", "out")
    assert code == 1
    assert "pip install 'lightning_gen[shards]'" in err


def test_wrong_options_load_no_torch():
    out, err = cold("shards", "shards a b --sizee 3", "shards a b --shard_mb x")
    assert "CODES [2, 2, 2]" in out
    assert "Did you mean --size?" in err
    assert "HEAVY []" in out
