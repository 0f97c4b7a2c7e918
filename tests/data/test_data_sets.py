"""The known data sets: their bytes, splits, files and errors; a small made copy stands for each download."""

import os
import pickle
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits

from lightning_gen.data import (
    DATA,
    CIFAR10DataModule,
    CIFAR100DataModule,
    DigitsDataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
    load_data,
)
from lightning_gen.errors import MissingData

MNISTS = [MNISTDataModule, FashionMNISTDataModule]
CIFARS = [CIFAR10DataModule, CIFAR100DataModule]


def write_mnist(root, name, n_train=50, n_test=20):
    """Write files in MNIST's format; returns images and labels of both parts."""
    folder, made = root / name / "raw", {}
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", n_train), ("t10k", n_test))):
        random = np.random.default_rng(seed)
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = random.integers(0, 10, count, np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels.tobytes())
        made[part] = images, labels
    return made


def write_cifar(root, monkeypatch, official):
    """Write files in CIFAR's format, and let torchvision take their sums for the right ones."""
    folder, made = root / official.base_folder, {}
    folder.mkdir(parents=True)
    key = "fine_labels" if official is torchvision.datasets.CIFAR100 else "labels"
    for part in ("train_list", "test_list"):
        for number, (name, _) in enumerate(getattr(official, part)):
            random = np.random.default_rng([number, len(part)])
            images = random.integers(0, 256, (10, 3, 32, 32), np.uint8)
            labels = random.integers(0, 10, 10).tolist()
            content = {"data": images.reshape(10, -1), key: labels}
            (folder / name).write_bytes(pickle.dumps(content))
            made.setdefault(part, []).append((images, labels))
    (folder / official.meta["filename"]).write_bytes(pickle.dumps({official.meta["key"]: ["a", "b"]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    return {
        part: (np.concatenate([a for a, _ in pairs]), [label for _, labels in pairs for label in labels])
        for part, pairs in made.items()
    }


def joined(module, *splits):
    """Every (bytes, label) of some splits, sorted."""
    return sorted(
        (element["image"].numpy().tobytes(), int(element["label"]))
        for split in splits
        for element in module.split(split)
    )


# ---- digits


def test_digits_are_rounded_not_cut():
    module = DigitsDataModule()
    table = {value: round(value * 255 / 16) for value in range(17)}
    digits = load_digits()
    expected = sorted(
        (bytes(table[int(value)] for value in image.flatten()), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    assert joined(module, "train", "val", "test") == expected
    assert module.split("train").images.max() == 255


def test_digits_are_split_within_each_class():
    module = DigitsDataModule()
    assert [len(module.split(split)) for split in ("train", "val", "test")] == [1439, 179, 179]
    everyone = torch.bincount(torch.from_numpy(load_digits().target))
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        counts = torch.bincount(module.split(split).labels, minlength=10)
        assert ((counts - share * everyone).abs() <= 1).all()
    assert module.class_counts.tolist() == torch.bincount(module.split("train").labels).tolist()
    again, other = DigitsDataModule(), DigitsDataModule(seed=1)
    assert again.fingerprint("val") == module.fingerprint("val") != other.fingerprint("val")


def test_digits_of_another_size():
    module = DigitsDataModule(size=16)
    assert module.shape == (1, 16, 16)
    assert module.split("val")[0]["image"].shape == (1, 16, 16)
    assert module.split("val").labels.tolist() == DigitsDataModule().split("val").labels.tolist()


# ---- torchvision's sets


@pytest.mark.parametrize("kind", MNISTS)
def test_mnists_bytes_and_splits(kind, tmp_path):
    made = write_mnist(tmp_path, kind()._torchvision_class().__name__)
    module = kind(str(tmp_path), val_size=15, batch_size=8)
    module.setup()
    assert [len(module.split(split)) for split in ("train", "val", "test")] == [35, 15, 20]
    for splits, part in ((("train", "val"), "train"), (("test",), "t10k")):
        pairs = zip(*made[part], strict=True)
        assert joined(module, *splits) == sorted((image.tobytes(), int(label)) for image, label in pairs)
    assert module.shape == module.split("train")[0]["image"].shape == (1, 28, 28)
    assert len(module.class_names) == module.num_classes == 10
    assert not module.flip
    other = kind(str(tmp_path), val_size=15, seed=1)
    assert other.fingerprint("val") != module.fingerprint("val")
    assert other.fingerprint("test") == module.fingerprint("test")


@pytest.mark.parametrize("kind", CIFARS)
def test_cifars_bytes_and_splits(kind, tmp_path, monkeypatch):
    made = write_cifar(tmp_path, monkeypatch, kind()._torchvision_class())
    module = kind(str(tmp_path), val_size=3)
    module.setup("fit")
    for splits, part in ((("train", "val"), "train_list"), (("test",), "test_list")):
        pairs = zip(*made[part], strict=True)
        assert joined(module, *splits) == sorted((image.tobytes(), label) for image, label in pairs)
    assert module.shape == module.split("train")[0]["image"].shape == (3, 32, 32)
    assert len(module.class_names) == module.num_classes == len(module.class_counts)
    assert module.flip
    assert next(iter(module.train_dataloader()))["image"].is_contiguous()


def test_names_of_classes_are_the_official_ones():
    official = torchvision.datasets
    assert list(FashionMNISTDataModule.classes) == official.FashionMNIST.classes
    assert [name.split(" - ")[0] for name in official.MNIST.classes] == list(MNISTDataModule.classes)
    assert len(set(CIFAR100DataModule.classes)) == 100
    assert list(CIFAR100DataModule.classes) == sorted(CIFAR100DataModule.classes)


def test_without_a_validation_split_everything_is_trained_on(tmp_path):
    write_mnist(tmp_path, "MNIST")
    module = MNISTDataModule(str(tmp_path), val_size=0)
    assert len(module.split("train")) == 50
    assert module.fingerprint("val") == module.fingerprint("test")
    with pytest.raises(ValueError, match=r"val_size lies in 0 \.\.\. 59999"):
        MNISTDataModule(str(tmp_path), val_size=60_000)


def test_other_sizes(tmp_path):
    write_mnist(tmp_path, "MNIST")
    module = MNISTDataModule(str(tmp_path), val_size=5, size=32)
    assert module.shape == module.split("val")[0]["image"].shape == (1, 32, 32)


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path, "MNIST")
    monkeypatch.setenv("LIGHTNING_GEN_DATA", str(tmp_path))
    assert len(MNISTDataModule(val_size=5).split("test")) == 20
    monkeypatch.delenv("LIGHTNING_GEN_DATA")
    assert MNISTDataModule().root == Path("data")


def test_a_complete_root_is_only_read(tmp_path, monkeypatch):
    write_mnist(tmp_path, "MNIST")

    def listing():
        return {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    before = listing()
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", None)  # not even tried
    module = MNISTDataModule(str(tmp_path), val_size=5)
    module.prepare_data()
    module.setup()
    for path in before:
        path.chmod(0o755)
    assert listing() == before


@pytest.mark.parametrize("kind", MNISTS + CIFARS)
def test_missing_data_say_what_from_where_and_whereto(kind, tmp_path):
    module = kind(str(tmp_path / "here"), download=False)
    with pytest.raises(MissingData) as raised:
        module.setup()
    message = str(raised.value)
    official = module._torchvision_class()
    for name in module._files()[0]:
        assert name in message
    for word in (str(tmp_path / "here"), "download=False", "LIGHTNING_GEN_DATA", "http", "root="):
        assert word in message
    assert not (tmp_path / "here").exists()
    assert official.__name__.lower() == kind.name.replace("-", "")


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("bad sum"), PermissionError(13, "denied")])
def test_a_failed_download_says_so(tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", fail)
    with pytest.raises(MissingData, match=r"The download failed: .*(no route|bad sum|denied)"):
        MNISTDataModule(str(tmp_path)).setup()


def test_missing_files_are_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", lambda self: write_mnist(Path(self.root), "MNIST"))
    module = MNISTDataModule(str(tmp_path), val_size=5)
    module.setup("fit")
    assert len(module.split("train")) == 45


def test_a_damaged_file_says_so(tmp_path):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(MissingData, match=r"It cannot be read(.|\n)*damaged"):
        MNISTDataModule(str(tmp_path), download=False).setup()


# ---- by name


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion-mnist", "Fashion_MNIST", "CIFAR10", "cifar-100"])
def test_load_data_by_name(name):
    module = load_data(name, batch_size=7)
    assert module.name.replace("-", "") == name.lower().replace("-", "").replace("_", "")
    assert module.batch_size == 7


def test_load_data_names_the_nearest():
    with pytest.raises(ValueError, match=r"There is no data set.*'mnits'.*Did you mean 'mnist'"):
        load_data("mnits")
    with pytest.raises(ValueError, match=r"MNISTDataModule has no argument 'batchsize'.*Did you mean 'batch_size'"):
        load_data("mnist", batchsize=3)
    with pytest.raises(ValueError, match="There is no split 'validation'; allowed are: train, val, test"):
        load_data("digits").split("validation")


@pytest.mark.parametrize("kind", DATA.values())
def test_what_a_network_needs_is_known_before_setup(kind):
    module = kind()
    assert len(module.shape) == 3
    assert module.num_classes == len(module.class_names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse renames its methods
def test_the_command_line_can_give_every_argument():
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    given = parser.parse_args(["--data=lightning_gen.data.CIFAR10DataModule", "--data.val_size=0", "--data.flip=false"])
    module = parser.instantiate_classes(given).data
    assert (module.val_size, module.flip, module.seed) == (0, False, 0)
    given = parser.parse_args(
        ["--data=lightning_gen.data.ImageFolderDataModule", "--data.path=x", "--data.resize=pad", "--data.channels=1"]
    )
    module = parser.instantiate_classes(given).data
    assert (module.resize, module.channels, module.size) == ("pad", 1, None)


# ---- real data


@pytest.mark.data
def test_real_mnist():
    root = os.environ.get("LIGHTNING_GEN_DATA")
    if root is None or not (Path(root) / "MNIST").exists():
        pytest.skip("LIGHTNING_GEN_DATA does not name a folder with MNIST")
    module = MNISTDataModule(download=False)
    assert [len(module.split(split)) for split in ("train", "val", "test")] == [55_000, 5_000, 10_000]
    # counts of the official test set, and its first labels
    test = module.split("test").labels
    assert torch.bincount(test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    images = torch.cat([module.split(split).images for split in ("train", "val")])
    # the mean that everybody normalizes by
    assert abs(images.double().mean().item() / 255 - 0.1307) < 1e-4
