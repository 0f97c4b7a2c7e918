"""Writing shards: what is stored, how it is dealt, and that a kill leaves nothing half."""

import io
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from shard_sets import put_folder, write

from lightning_gen.data import ImageFolderDataModule, ShardsDataModule, UnreadableImage
from lightning_gen.data.shards.index import PLAN
from lightning_gen.data.shards.writing import ShardWriter
from lightning_gen.errors import MissingExtra, RunError

pytest.importorskip("webdataset")
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return put_folder(tmp_path_factory.mktemp("images") / "parity", train=40)


def files(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def photos(root, n=24, size=(20, 14)):
    """Smooth pictures in color, of no one size."""
    generator = np.random.default_rng(0)
    for number in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
        path = root / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((size[0] + number % 3, size[1]), Image.Resampling.BICUBIC).save(path)
    return root


def read_back(out):
    return ShardsDataModule(str(out), num_workers=0)


def same_images(out, source):
    """Compare all splits; the training images of shards are in another order."""
    for split in ("train", "val", "test"):
        ours = [image["image"] for image in read_back(out).split(split)]
        theirs = [image["image"] for image in source.split(split)]
        assert len(ours) == len(theirs)
        key = [tensor.flatten().tolist() for tensor in ours], [tensor.flatten().tolist() for tensor in theirs]
        assert (sorted(key[0]) if split == "train" else key[0]) == (sorted(key[1]) if split == "train" else key[1])


@pytest.mark.parametrize("options", [{"size": 8}, {"size": 8, "resize": "pad", "channels": 1}])
def test_resized_images_are_those_of_the_folder_module_exactly(tmp_path, options):
    source = photos(tmp_path / "photos")
    write(source, tmp_path / "out", **options)
    same_images(tmp_path / "out", ImageFolderDataModule(str(source), **options))


def test_files_that_have_their_size_are_stored_as_they_are(tmp_path):
    source = photos(tmp_path / "photos", size=(16, 16), n=1)
    originals = {path.read_bytes() for path in source.iterdir()}
    with pytest.warns(UserWarning, match="leave nothing"):
        write(source, tmp_path / "out", size=16)
    with pytest.warns(UserWarning, match="have nothing for"):
        dataset = read_back(tmp_path / "out").split("val")
    assert set(dataset.stored(torch.arange(1))) == originals


def test_jpeg_where_it_is_asked_for(tmp_path):
    source = ImageFolderDataModule(str(photos(tmp_path / "photos")), size=8)
    ShardWriter(source, str(tmp_path / "out"), jpeg_quality=90).write()
    dataset = read_back(tmp_path / "out").split("train")
    assert {Image.open(io.BytesIO(content)).format for content in dataset.stored(torch.arange(len(dataset)))} == {
        "JPEG"
    }
    assert dataset[0]["image"].shape == (3, 8, 8)


@pytest.mark.filterwarnings("ignore:.*nothing for.*:UserWarning")
def test_a_split_that_would_be_empty_is_named_and_not_stored_twice(tmp_path):
    source = photos(tmp_path / "photos", n=3)
    index = write(source, tmp_path / "out", size=8, val_fraction=0.0, test_fraction=0.0)
    assert index.stand_ins == {"val": "train", "test": "train"}
    assert list(index.splits) == ["train"]
    made = read_back(tmp_path / "out")
    with pytest.warns(UserWarning, match="have nothing for val"):
        assert len(made.split("val")) == 3
    assert made.num_classes is None
    assert made.class_counts is None
    assert set(made.split("train")[0]) == {"image"}
    assert made.fingerprint("val") == made.fingerprint("train")


def test_shards_are_of_the_wanted_size_and_equal(tmp_path):
    source = ImageFolderDataModule(str(photos(tmp_path / "photos", n=400)), size=8)
    index = ShardWriter(source, str(tmp_path / "out"), shard_mb=0.05).write()
    shards = index.splits["train"]
    assert len(shards) > 5
    counts = [shard.images for shard in shards]
    assert max(counts) - min(counts) <= 1
    for shard in shards:
        assert 30_000 < shard.bytes < 60_000
        assert shard.bytes == (tmp_path / "out" / shard.file).stat().st_size


def test_the_same_images_are_the_same_bytes(folder, tmp_path):
    write(folder, tmp_path / "one")
    write(folder, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    write(folder, tmp_path / "three", seed=1)
    assert files(tmp_path / "three")["train-00000.tar"] != files(tmp_path / "one")["train-00000.tar"]
    assert files(tmp_path / "three")["val-00000.tar"] == files(tmp_path / "one")["val-00000.tar"]


# ---- killed, repeated, repaired


def _killed_at(folder, out, number, halfway):
    """Write, and die with shard `number` (from 0) on the disk: half of it, or whole and without its table."""
    write_tar = ShardWriter._write_tar
    put = ShardWriter._put
    written = []

    def cut_off(self, path, file, names, first):
        written.append(file)
        if len(written) == number + 1 and halfway:
            kept = write_tar(self, path, file, names, first)
            with path.open("r+b") as stream:
                stream.truncate(path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
            return kept
        return write_tar(self, path, file, names, first)

    def before_the_table(self, name, content):
        if len(written) == number + 1 and not halfway:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, name, content)

    ShardWriter._write_tar, ShardWriter._put = cut_off, before_the_table
    write(folder, out)


@pytest.mark.parametrize("halfway", [True, False])
@pytest.mark.parametrize("number", [0, 2, 5])
def test_a_kill_leaves_no_half_shard(folder, tmp_path, number, halfway, monkeypatch):
    write(folder, tmp_path / "whole")
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(folder, out, number, halfway))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    whole = files(tmp_path / "whole")
    left = files(out)
    assert "index.json" not in left
    for name, content in left.items():
        assert name.startswith(".") or content == whole[name]
    assert len([name for name in left if name.endswith(".npy")]) == number
    with pytest.raises(FileNotFoundError, match="not all written yet"):
        _ = read_back(out).shape
    again = []
    write_tar = ShardWriter._write_tar
    monkeypatch.setattr(
        ShardWriter,
        "_write_tar",
        lambda self, path, file, *rest: (again.append(file), write_tar(self, path, file, *rest))[1],
    )
    write(folder, out)
    assert files(out) == whole
    assert len(again) == len([name for name in whole if name.endswith(".tar")]) - number


def test_a_shard_that_was_removed_is_written_again(folder, tmp_path):
    out = tmp_path / "out"
    write(folder, out)
    whole = files(out)
    (out / "train-00001.tar").unlink()
    (out / "val-00000.npy").unlink()
    (out / "train-00002.npy").write_bytes(whole["train-00002.npy"][:100])
    (out / "test-00000.tar").write_bytes(whole["test-00000.tar"][:-4096])
    write(folder, out)
    assert files(out) == whole


def test_other_images_or_options_are_refused(folder, tmp_path):
    out = tmp_path / "out"
    write(folder, out)
    before = files(out)
    for options in ({"size": 2}, {"per_shard": 5}, {"seed": 3}, {"labels": False}):
        with pytest.raises(RunError, match="other images, or with other options"):
            write(folder, out, **options)
    with pytest.raises(RunError, match="not empty"):
        write(folder, folder / "train" / "odd")
    assert files(out) == before


def test_unreadable_files_stop_or_are_left_out(tmp_path):
    source = put_folder(tmp_path / "images", train=20, val=4, test=4)
    first = sorted((source / "train").rglob("*.png"))[3]
    first.write_bytes(b"")
    with pytest.raises(UnreadableImage, match=rf"{first.name}.*--on_error skip"):
        write(source, tmp_path / "out")
    assert "index.json" not in files(tmp_path / "out")
    with pytest.warns(UserWarning, match=rf"Left out 1 of the 10 images of train-.*\n.*{first.name}"):
        index = write(source, tmp_path / "skipped", on_error="skip")
    assert index.left_out == {"train": 1, "val": 0, "test": 0}
    assert sum(index.class_counts["train"]) == 19
    assert len(read_back(tmp_path / "skipped").split("train")) == 19
    for path in (source / "val").rglob("*.png"):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="Left out"),
        pytest.raises(UnreadableImage, match="None of the 4 val images"),
    ):
        write(source, tmp_path / "none", on_error="skip")


def test_a_missing_package_is_named_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lightning_gen\[shards\]'"):
        write(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_out_of_range(folder, tmp_path):
    source = ImageFolderDataModule(str(folder))
    with pytest.raises(ValueError, match="shard_mb"):
        ShardWriter(source, str(tmp_path), shard_mb=0)
    with pytest.raises(ValueError, match="jpeg_quality"):
        ShardWriter(source, str(tmp_path), jpeg_quality=0)
    assert PLAN not in files(tmp_path)
