"""Shards as a data module: the same images as in the folder, in an order that depends on seed and epoch alone."""

import errno
import gc
import json
import os
import pickle
import tarfile
import zlib

import numpy as np
import pytest
import torch
from shard_sets import number_of, put_folder, write

from lightning_gen.data import DamagedShard, ImageFolderDataModule, ShardsDataModule, UnreadableImage, load_data
from lightning_gen.errors import MissingData

pytest.importorskip("webdataset")
# workers are forked, on machines of any number of cores
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty images to train on, 12 and 10 others."""
    return put_folder(tmp_path_factory.mktemp("images") / "parity")


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The same in 6, 2 and 1 shards."""
    out = tmp_path_factory.mktemp("shards") / "parity"
    write(folder, out)
    return out


@pytest.fixture
def shards(written, tmp_path):
    """A copy to be damaged."""
    copy = tmp_path / "shards"
    copy.mkdir()
    for file in written.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def module(path, **options):
    return ShardsDataModule(str(path), **{"batch_size": 8, "num_workers": 0, "window": 2, "lanes": 2, **options})


def numbers(loader, epoch=None):
    """The images of each batch, by their numbers; labels must fit."""
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    found = []
    for batch in loader:
        unflipped = torch.where((batch["image"].sum((1, 2, 3), keepdim=True) == 0), 0, batch["image"])
        left = torch.where(unflipped[..., :1].sum((1, 2, 3), keepdim=True) > 0, unflipped, unflipped.flip(-1))
        found.append(number_of(left).tolist())
        assert batch["image"].dtype == torch.uint8
        assert batch["label"].tolist() == [number % 2 == 1 for number in found[-1]]
    return found


def flat(batches):
    return [number for batch in batches for number in batch]


# ---- what is in them


def test_the_index_tells_all_that_networks_need(folder, written):
    ours, theirs = module(written), ImageFolderDataModule(str(folder))
    assert (ours.shape, ours.num_classes, ours.class_names) == (theirs.shape, theirs.num_classes, theirs.class_names)
    assert ours.name == theirs.name == "parity"
    assert ours.class_counts.tolist() == theirs.class_counts.tolist() == [30, 30]
    assert ours.class_counts.dtype == torch.int64
    assert not ours._loaded  # nothing but the index was read
    assert module(written, name="mine").name == "mine"


def test_the_images_are_those_of_the_folder(folder, written):
    ours, theirs = module(written), ImageFolderDataModule(str(folder))
    for split in ("val", "test"):
        for one, two in zip(ours.split(split), theirs.split(split), strict=True):
            assert torch.equal(one["image"], two["image"])
            assert one["label"] == two["label"]
    ours, theirs = ours.split("train"), theirs.split("train")
    everything = ours.batch(torch.arange(60))
    assert torch.equal(everything["label"], ours.labels)
    found = number_of(everything["image"])
    assert found.tolist() != list(range(60))  # dealt at random, so that no shard is one class
    for number, image in zip(found.tolist(), everything["image"], strict=True):
        assert any(torch.equal(image, other["image"]) for other in theirs)
        assert number_of(image) == number
    assert sorted(found.tolist()) == list(range(60))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # its reader leaves files open
def test_the_tars_are_webdatasets(written):
    import webdataset

    reader = webdataset.WebDataset(
        [str(path) for path in sorted(written.glob("train-*.tar"))], shardshuffle=False, empty_check=False
    )
    found = list(reader.decode("rgb8"))
    del reader
    gc.collect()
    assert len(found) == 60
    dataset = module(written).split("train")
    for index, sample in enumerate(found):
        ours = dataset[index]
        assert np.array_equal(sample["png"].transpose(2, 0, 1), ours["image"].numpy())
        assert sample["cls"] == ours["label"]


def test_tables_are_where_the_images_lie(written):
    for path in sorted(written.glob("*.tar")):
        table = np.load(path.with_suffix(".npy"))
        with tarfile.open(path) as tar:
            images = [member for member in tar if not member.name.endswith(".cls")]
            assert [member.offset_data for member in images] == table[0].tolist()
            contents = [tar.extractfile(member).read() for member in images]
        assert [zlib.crc32(content) for content in contents] == table[2].tolist()


# ---- order, workers, ranks


def test_workers_do_not_change_batches(written):
    alone = module(written, flip=True, seed=3).train_dataloader()
    shared = module(written, flip=True, seed=3, num_workers=2).train_dataloader()
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        shared.sampler.set_epoch(epoch)
        batches = 0
        for one, two in zip(alone, shared, strict=True):
            assert torch.equal(one["image"], two["image"])
            assert torch.equal(one["label"], two["label"])
            batches += 1
        assert batches == 7
    del shared


def test_an_epoch_has_no_image_twice_and_leaves_out_a_rest(written):
    loader = module(written, flip=True).train_dataloader()
    epochs = [flat(numbers(loader, epoch)) for epoch in range(3)]
    for found in epochs:
        assert len(found) == len(set(found)) == 56
        assert set(found) <= set(range(60))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == flat(numbers(module(written, flip=True).train_dataloader(), 0))
    # the rest is another in each epoch
    assert set(epochs[0]) != set(epochs[1]) or set(epochs[1]) != set(epochs[2])


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_joined_batches_of_ranks_are_those_of_one_process(written, ranks, monkeypatch):
    alone = numbers(module(written, batch_size=12).train_dataloader(), 2)
    shares = []
    for rank in range(ranks):
        share = module(written, batch_size=12)
        monkeypatch.setattr(share, "_ranks", lambda rank=rank: {"num_replicas": ranks, "rank": rank})
        shares.append((numbers(share.train_dataloader(), 2), numbers(share.val_dataloader())))
    assert {len(train) for train, _ in shares} == {len(alone)} == {5}
    for whole, *parts in zip(alone, *(train for train, _ in shares), strict=True):
        assert sorted(whole) == sorted(flat(parts))
    # every image of validation once, in as many batches on every rank
    assert sorted(number for _, val in shares for number in flat(val)) == list(range(60, 72))
    assert len({len(val) for _, val in shares}) == 1


def test_unequal_shards_end_together(folder, tmp_path, monkeypatch):
    """Shards of 1, 9, 10 ... images, as unreadable files leave them."""
    images = put_folder(tmp_path / "some", train=40, val=3, test=3)
    for name in sorted((images / "train").rglob("*.png"))[:13]:
        name.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="Left out"):
        index = write(images, tmp_path / "shards", per_shard=8, on_error="skip")
    sizes = [shard.images for shard in index.splits["train"]]
    assert len(set(sizes)) > 1
    assert sum(sizes) == 27
    assert index.left_out["train"] == 13
    seen = []
    for rank in range(2):
        share = module(tmp_path / "shards", batch_size=4)
        monkeypatch.setattr(share, "_ranks", lambda rank=rank: {"num_replicas": 2, "rank": rank})
        seen.append(numbers(share.train_dataloader(), 1))
    assert len(seen[0]) == len(seen[1]) == 6
    assert len(set(flat(seen[0] + seen[1]))) == 24


def test_validation_shows_every_image_once_in_order(written):
    in_order = [*range(60, 72, 2), *range(61, 72, 2)]  # by the names of their folders
    assert numbers(module(written).val_dataloader()) == [in_order[:8], in_order[8:]]
    assert sorted(flat(numbers(module(written).test_dataloader()))) == list(range(72, 82))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_place_in_an_epoch_is_kept(written, workers):
    straight = numbers(module(written, flip=True).train_dataloader(), 1)
    begun = module(written, flip=True, num_workers=workers)
    loader = begun.train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = begun.state_dict()
    assert state == {"epoch": 1, "batches": 3}
    resumed = module(written, flip=True, num_workers=workers)
    resumed.load_state_dict(state)
    assert numbers(resumed.train_dataloader(), 1) == straight[3:]
    del batches, loader


def test_flips_are_those_of_the_images_place_in_the_shards(written):
    plain = module(written, flip=False).train_dataloader()
    flipped = module(written, flip=True).train_dataloader()
    mirrored = 0
    for one, two in zip(plain, flipped, strict=True):
        for a, b in zip(one["image"], two["image"], strict=True):
            assert torch.equal(a, b) or torch.equal(a.flip(-1), b)
            mirrored += not torch.equal(a, b)
    assert 10 < mirrored < 46  # of 56, by a fair coin: 4.8 standard deviations


def test_modules_go_to_other_processes(written):
    dataset = module(written).split("train")
    first = dataset[3]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[3]["image"], first["image"])


# ---- by name


def test_load_data_knows_shards_by_their_index(written):
    assert isinstance(load_data(str(written), batch_size=4), ShardsDataModule)
    with pytest.raises(ValueError, match="ShardsDataModule has no argument 'size'"):
        load_data(str(written), size=4)


def test_fingerprints_name_the_content(written, folder, tmp_path):
    again = write(folder, tmp_path / "again")
    assert again.name == "parity"
    one, two = module(written), module(tmp_path / "again")
    assert one.fingerprint("train") == two.fingerprint("train") != one.fingerprint("val")
    write(folder, tmp_path / "other", per_shard=20)
    assert module(tmp_path / "other").fingerprint("train") != one.fingerprint("train")


# ---- damage


def test_a_missing_or_short_shard_stops_or_is_left_out(shards):
    (shards / "train-00002.tar").unlink()
    (shards / "train-00004.npy").unlink()
    content = (shards / "train-00005.tar").read_bytes()
    (shards / "train-00005.tar").write_bytes(content[:-512])
    with pytest.raises(DamagedShard, match=r"3 of 6 train shards .* 30 images") as told:
        module(shards).setup("fit")
    for part in ("train-00002.tar: missing", "train-00004.npy is missing", f"{len(content) - 512} bytes", "on_error"):
        assert part in str(told.value)
    skipping = module(shards, on_error="skip")
    with pytest.warns(UserWarning, match="Left out: 3 of 6 train shards"):
        found = flat(numbers(skipping.train_dataloader(), 0))
    assert len(set(found)) == len(found) == 24
    assert set(skipping.skipped) == {"train-00002.tar", "train-00004.tar", "train-00005.tar"}
    assert skipping.class_counts.sum() == len(skipping.split("train")) == 30
    assert skipping.fingerprint("train") != module(shards).fingerprint("train")


def test_no_shard_left_is_an_error(shards):
    for path in shards.glob("val-*.tar"):
        path.unlink()
    with pytest.raises(MissingData, match="none is left"):
        module(shards, on_error="skip").val_dataloader()


def damage(path):
    """Change one byte of the third image, as a disk may."""
    content = bytearray(path.read_bytes())
    place = int(np.load(path.with_suffix(".npy"))[0, 2]) + 40
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(shards, workers):
    damage(shards / "train-00003.tar")
    with pytest.raises(UnreadableImage, match=r"image 2 of the shard train-00003.tar .* not what was written"):
        list(module(shards, num_workers=workers).train_dataloader())


def test_all_content_can_be_checked_before_training(shards):
    damage(shards / "train-00003.tar")
    with pytest.raises(DamagedShard, match=r"train-00003.tar: 1 of its 10 images"):
        module(shards, check="content").setup("fit")
    module(shards).setup("fit")  # the size alone says nothing
    with pytest.warns(UserWarning, match="Left out: 1 of 6"):
        loader = module(shards, check="content", on_error="skip").train_dataloader()
    assert len(flat(numbers(loader, 0))) == 48


def test_a_shard_that_cannot_be_read_at_all_counts_as_damaged(shards, monkeypatch):
    pread, file = os.pread, (shards / "train-00002.tar").stat()

    def broken(descriptor, length, start):
        if os.path.samestat(os.fstat(descriptor), file):
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, length, start)

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(DamagedShard, match=r"train-00002.tar: 10 of its 10 images"):
        module(shards, check="content").setup("fit")


def test_a_table_of_another_shard_is_found(shards):
    (shards / "train-00001.npy").write_bytes((shards / "train-00002.npy").read_bytes())
    with pytest.raises(DamagedShard, match=r"train-00001.tar: the table"):
        module(shards).setup("fit")


def test_a_shard_that_goes_while_it_is_read(shards):
    loader = module(shards).train_dataloader()
    for path in shards.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(MissingData, match=r"no longer there.*train-"):
        list(loader)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index | {"version": 2}, "version 2.*reads up to 1"),
        (lambda index: index | {"format": "other"}, "no index of shards"),
        (lambda index: [1], "no index of shards"),
        (lambda index: {"format": index["format"], "version": 1}, "incomplete"),
        (lambda index: index | {"shape": [3]}, "incomplete"),
    ],
)
def test_a_strange_index_is_refused(shards, change, said):
    path = shards / "index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=said):
        _ = module(shards).shape


def test_no_index_says_what_to_do(shards, folder, tmp_path):
    (shards / "index.json").unlink()
    with pytest.raises(MissingData, match="not all written yet"):
        _ = module(shards).shape
    with pytest.raises(MissingData, match=r"lightning-gen shards.*ImageFolderDataModule"):
        _ = module(next((folder / "train").iterdir())).shape
    with pytest.raises(MissingData, match="Did you mean 'shards'"):
        _ = module(tmp_path / "shard").shape
    (shards / "index.json").write_text("half of")
    with pytest.raises(ValueError, match="no index of shards"):
        _ = module(shards).shape


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"window": 0}, "window"),
        ({"lanes": 0}, "lanes"),
        ({"cache_gb": 0}, "cache_gb"),
        ({"on_error": "skipp"}, "Did you mean 'skip'"),
        ({"check": "bytes"}, "size or content"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments(written, option, said):
    with pytest.raises(ValueError, match=said):
        module(written, **option)
