"""Folders and archives: what is found, how it is split, what is refused."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data import ImageFolderDataModule, UnexpectedImage, UnreadableImage, load_data
from lightning_gen.data.arrangement import arrange, split_by_hash
from lightning_gen.errors import MissingData

FEW = "ignore:.*leave nothing for.*"
SPLITS = ("train", "val", "test")

# workers are forked, on machines of any number of cores
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


def put(root, name, shape=(6, 6, 3)):
    """Write an image of noise, different for each name."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def animals(tmp_path):
    """Sixty images of two classes."""
    root = tmp_path / "animals"
    for kind in ("dog", "cat"):
        for index in range(30):
            put(root, f"{kind}/{index:02}.png")
    return root


def zipped(root, target=None):
    target = target or root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):  # an archive's order is not that of names
            archive.write(path, path.relative_to(root).as_posix())
    return target


def everything(module):
    """All images of all splits, with their labels."""
    return {split: list(module.split(split)) for split in SPLITS}


def same(one, two):
    for split in SPLITS:
        assert len(one[split]) == len(two[split])
        for a, b in zip(one[split], two[split], strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)


# ---- splits and classes


def test_splits_are_disjoint_complete_and_in_order(animals):
    module = ImageFolderDataModule(str(animals))
    parts = module.arrangement.splits
    assert sorted(name for names in parts.values() for name in names) == module.files.names
    assert sum(map(len, parts.values())) == 60
    assert all(names == sorted(names) for names in parts.values())
    assert len(parts["train"]) > 40


def test_the_split_of_a_file_never_changes(animals):
    before = ImageFolderDataModule(str(animals)).arrangement.splits
    for index in range(30):
        put(animals, f"ant/{index}.png")
    after = ImageFolderDataModule(str(animals)).arrangement.splits
    for split in SPLITS:
        assert set(before[split]) <= set(after[split])


def test_hashed_shares_are_as_asked():
    found = [split_by_hash(f"{index}.png", 0.1, 0.2) for index in range(20_000)]
    # 4 standard deviations are 0.0085 and 0.0113
    assert abs(found.count("val") / 20_000 - 0.1) < 0.0085
    assert abs(found.count("test") / 20_000 - 0.2) < 0.0113
    assert split_by_hash("caf\u00e9.png", 0.1, 0.1) == split_by_hash("cafe\u0301.png", 0.1, 0.1)
    assert {split_by_hash(f"{index}", 0, 0) for index in range(100)} == {"train"}


def test_class_folders_become_labels(animals):
    module = ImageFolderDataModule(str(animals), flip=False)
    assert (module.shape, module.num_classes, module.class_names) == ((3, 6, 6), 2, ["cat", "dog"])
    names = module.arrangement.splits["train"]
    assert module.split("train").labels.tolist() == [int(name.startswith("dog")) for name in names]
    assert module.class_counts.tolist() == [sum(name.startswith(kind) for name in names) for kind in ("cat", "dog")]
    for index, name in enumerate(names):
        pixels = np.array(Image.open(animals / name)).transpose(2, 0, 1)
        assert np.array_equal(module.split("train")[index]["image"], pixels)


def test_labels_can_be_turned_off(animals):
    module = ImageFolderDataModule(str(animals), labels=False)
    assert (module.num_classes, module.class_names, module.class_counts) == (None, None, None)
    assert set(next(iter(module.train_dataloader()))) == {"image"}


def test_nested_folders_belong_to_their_class(tmp_path):
    arranged = arrange(["cat/a/1.png", "cat/b/c/2.png", "dog/3.png"])
    assert arranged.class_names == ["cat", "dog"]
    assert arranged.label_of == {"cat/a/1.png": 0, "cat/b/c/2.png": 0, "dog/3.png": 1}


def test_no_class_folders_no_labels():
    assert arrange(["1.png", "2.png"]).class_names is None
    assert arrange(["all/1.png", "all/2.png"]).class_names is None


def test_split_folders_are_the_splits(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for kind in ("cat", "dog"):
            for index in range(count):
                put(tmp_path, f"{split}/{kind}/{index}.png")
    module = ImageFolderDataModule(str(tmp_path))
    assert [len(module.split(split)) for split in SPLITS] == [8, 4, 6]
    assert module.class_names == ["cat", "dog"]
    assert module.split("val").labels.tolist() == [0, 0, 1, 1]


def test_a_missing_split_is_taken_from_training():
    names = [f"train/{index}.png" for index in range(300)] + ["test/1.png", "test/2.png"]
    splits = arrange(names).splits
    assert splits["test"] == ["test/1.png", "test/2.png"]
    assert 15 < len(splits["val"]) < 50
    assert len(splits["train"]) + len(splits["val"]) == 300


def test_a_wrapping_folder_is_looked_through():
    arranged = arrange(["set/train/cat/1.png", "set/train/dog/1.png", "set/valid/cat/2.png", "set/Test/dog/2.png"])
    assert arranged.splits["val"] == ["set/valid/cat/2.png"]
    assert arranged.splits["test"] == ["set/Test/dog/2.png"]
    assert arranged.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.png", "dog/1.png", "2.png"], "1 images lie beside the class folders cat/, dog/.*labels=False"),
        (["train/1.png", "test/1.png", "cat/1.png"], "cat/ lie beside"),
        (["train/1.png", "val/1.png", "1.png"], "image files lie beside"),
        (["test/1.png", "val/1.png"], "no folder train/"),
        (["train/1.png", "val/1.png", "valid/1.png"], "same split"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        arrange(sorted(names))


def test_a_class_called_train_is_a_class():
    assert arrange(["bus/1.png", "train/1.png"]).class_names == ["bus", "train"]


def test_other_and_hidden_files_are_left_alone(animals):
    before = everything(ImageFolderDataModule(str(animals)))
    (animals / "labels.csv").write_text("a,b")
    (animals / "cat" / ".hidden.png").write_bytes(b"")
    (animals / "__MACOSX").mkdir()
    (animals / "__MACOSX" / "1.png").write_bytes(b"")
    (animals / "loop").symlink_to(animals)
    same(before, everything(ImageFolderDataModule(str(animals))))


# ---- archives


def test_an_archive_gives_the_tensors_of_its_folder(animals):
    folder, archive = ImageFolderDataModule(str(animals)), ImageFolderDataModule(str(zipped(animals)))
    same(everything(folder), everything(archive))
    assert folder.fingerprint("train") == archive.fingerprint("train")
    assert archive.name == "animals"


@pytest.mark.parametrize("packed", [False, True])
def test_workers_read_what_one_process_reads(animals, packed):
    path = str(zipped(animals) if packed else animals)

    def loaders(workers):
        module = ImageFolderDataModule(path, cache="none", batch_size=7, num_workers=workers)
        return module.train_dataloader(), module.val_dataloader()

    for alone, shared in zip(loaders(0), loaders(2), strict=True):
        for one, two in zip(alone, shared, strict=True):
            assert torch.equal(one["image"], two["image"])
            assert torch.equal(one["label"], two["label"])


def test_nothing_is_unpacked(animals, monkeypatch):
    path = zipped(animals)
    shutil.rmtree(animals)
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    module = ImageFolderDataModule(str(path))
    module.setup()
    assert sorted(path.parent.iterdir()) == [path]


def test_an_open_archive_can_be_sent_to_a_process(animals):
    files = ImageFolderDataModule(str(zipped(animals))).files
    first = files.read(files.names[0])
    assert pickle.loads(pickle.dumps(files)).read(files.names[0]) == first


def test_backslashes_between_folders(tmp_path, animals):
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat\\1.png", "dog\\1.png"):
            member = zipfile.ZipInfo()
            member.filename = name
            archive.writestr(member, (animals / "cat" / "01.png").read_bytes())
    assert arrange(ImageFolderDataModule(str(path)).files.names).class_names == ["cat", "dog"]


def test_a_file_that_is_no_archive(tmp_path):
    put(tmp_path, "1.png")
    with pytest.raises(ValueError, match="not a zip archive"):
        ImageFolderDataModule(str(tmp_path / "1.png")).setup()


# ---- sizes and colors


@pytest.mark.filterwarnings(FEW)
def test_gray_folders_are_gray_and_mixed_ones_rgb(tmp_path):
    put(tmp_path, "1.png", (6, 6))
    assert ImageFolderDataModule(str(tmp_path)).shape == (1, 6, 6)
    put(tmp_path, "2.png", (6, 6, 3))
    assert ImageFolderDataModule(str(tmp_path)).shape == (3, 6, 6)
    assert ImageFolderDataModule(str(tmp_path), channels=1).shape == (1, 6, 6)


@pytest.mark.filterwarnings(FEW)
def test_color_that_was_not_sampled_is_an_error(tmp_path):
    for index in range(600):
        Image.new("L", (2, 2)).save(tmp_path / f"{index:03}.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "001.png")  # every third file is sampled
    with pytest.raises(UnexpectedImage, match=r"001\.png is in color.*channels=3"):
        ImageFolderDataModule(str(tmp_path), on_error="skip").setup()
    ImageFolderDataModule(str(tmp_path), channels=1).setup()


@pytest.mark.filterwarnings(FEW)
def test_unequal_images_need_a_size(tmp_path):
    put(tmp_path, "1.png", (6, 8))
    put(tmp_path, "2.png", (6, 9))
    with pytest.raises(UnexpectedImage, match=r"2\.png has 6 x 9 pixels.*6 x 8.*size="):
        ImageFolderDataModule(str(tmp_path), on_error="skip").setup()
    assert ImageFolderDataModule(str(tmp_path), size=4).split("train")[0]["image"].shape == (1, 4, 4)
    (tmp_path / "2.png").unlink()
    assert ImageFolderDataModule(str(tmp_path)).shape == (1, 6, 8)


def test_caching_does_not_change_images(animals):
    same(
        everything(ImageFolderDataModule(str(animals), size=5, cache="memory")),
        everything(ImageFolderDataModule(str(animals), size=5, cache="none")),
    )


# ---- what can go wrong


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("damage", [b"", b"text", "half"])
def test_unreadable_files_are_raised_or_skipped(animals, damage, cache, caplog):
    names = ImageFolderDataModule(str(animals)).arrangement.splits["train"]
    bad = animals / names[3]
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    with pytest.raises(UnreadableImage, match=f"{names[3]} cannot be read"):
        list(ImageFolderDataModule(str(animals), cache=cache).split("train"))
    module = ImageFolderDataModule(str(animals), cache=cache, on_error="skip")
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match=f"Skipped 1 of {len(names)}(.|\n)*{names[3]}"):
        dataset = module.split("train")
    assert len(dataset) == len(names) - 1
    assert list(module.skipped) == [names[3]]
    assert names[3] in caplog.text
    kept = [name for name in names if name != names[3]]
    assert dataset.labels.tolist() == [int(name.startswith("dog")) for name in kept]
    pixels = np.array(Image.open(animals / kept[3])).transpose(2, 0, 1)
    assert np.array_equal(dataset[3]["image"], pixels)
    bad.unlink()
    assert module.fingerprint("train") == ImageFolderDataModule(str(animals)).fingerprint("train")


def test_a_damaged_member_of_an_archive_is_named(animals):
    path = zipped(animals)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("cat/07.png")
    content[member.header_offset + 60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"cat/07\.png cannot be read"):
        ImageFolderDataModule(str(path)).setup()


@pytest.mark.filterwarnings(FEW)
def test_nothing_readable(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"1\.png"):
        ImageFolderDataModule(str(tmp_path), size=4).setup()
    for size in (None, 4):
        with pytest.raises(UnreadableImage, match="None of the 1"):
            ImageFolderDataModule(str(tmp_path), size=size, on_error="skip").setup()


def test_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"no image in .*\.png, \.jpg"):
        ImageFolderDataModule(str(tmp_path)).setup()


def test_a_path_that_does_not_exist(animals):
    with pytest.raises(MissingData, match=r"animls does not exist\. Did you mean 'animals'"):
        ImageFolderDataModule(str(animals.parent / "animls")).setup()
    with pytest.raises(MissingData, match="nor does the folder"):
        ImageFolderDataModule(str(animals.parent / "no" / "where")).setup()


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_one_image_is_a_run(tmp_path, cache):
    pixels = put(tmp_path, "only.png")
    module = ImageFolderDataModule(str(tmp_path), cache=cache, batch_size=8, flip=False)
    with pytest.warns(UserWarning, match=r"1 image\(s\).*leave nothing"):
        module.setup()
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        (batch,) = loader
        assert np.array_equal(batch["image"][0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "crp"}, "resize is one of.*Did you mean 'crop'"),
        ({"filter": "bilinear"}, "filter is one of"),
        ({"channels": 4}, "channels is one of 1, 3, None"),
        ({"on_error": "ignore"}, "on_error"),
        ({"cache": "disk"}, "cache"),
        ({"size": 0}, "size"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "less than 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule("anywhere", **options)


def test_fingerprints_tell_contents_and_settings_apart(animals):
    def fingerprint(**how):
        return ImageFolderDataModule(str(animals), **how).fingerprint("train")

    first = fingerprint()
    assert first == fingerprint(cache="none", batch_size=3, flip=False)
    assert len({first, fingerprint(size=5), fingerprint(size=5, resize="pad"), fingerprint(channels=1)}) == 4
    names = ImageFolderDataModule(str(animals)).arrangement.splits["train"]
    Image.new("RGB", (6, 6)).save(animals / names[0])
    assert fingerprint() != first


def test_nothing_is_written_below_the_folder(animals):
    def listing():
        return {path: path.stat().st_mtime_ns for path in [animals, *animals.rglob("*")]}

    before = listing()
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    module = ImageFolderDataModule(str(animals), size=4, batch_size=4)
    module.setup()
    list(module.train_dataloader())
    for path in before:
        path.chmod(0o755)
    assert listing() == before


# ---- by name


def test_load_data_by_path(animals, monkeypatch):
    assert load_data(str(animals), size=4).shape == (3, 4, 4)
    monkeypatch.chdir(animals.parent)
    assert load_data("animals").name == "animals"
    with pytest.raises(MissingData, match="animals"):
        load_data("./animal").setup()
    with pytest.raises(ValueError, match=r"no argument 'sise'.*Did you mean 'size'"):
        load_data("animals", sise=4)


@pytest.mark.data
def test_cifar10_as_jpeg():
    if "LIGHTNING_GEN_DATA" not in os.environ:
        pytest.skip("LIGHTNING_GEN_DATA is not set")
    path = Path(os.environ["LIGHTNING_GEN_DATA"]) / "cifar10_jpg.zip"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    module = ImageFolderDataModule(str(path), name="cifar10-jpg", cache="none")
    assert (module.shape, module.num_classes, module.name) == ((3, 32, 32), 10, "cifar10-jpg")
    assert module.class_names[0] == "airplane"
    assert len(module.split("test")) == 5000
    assert len(module.split("train")) + len(module.split("val")) == 20_000
    with zipfile.ZipFile(path) as archive, archive.open("cifar10_jpg/test/truck/0499.jpg") as file:
        pixels = np.array(Image.open(file)).transpose(2, 0, 1)
    last = module.split("test")[4999]
    assert np.array_equal(last["image"], pixels)
    assert last["label"] == 9
