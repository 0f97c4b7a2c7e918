"""Storage that fsspec reaches, and copies of it on a disk."""

import http.server
import multiprocessing
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from shard_sets import number_of, put_folder, write

from lightning_gen.data import DamagedShard, ShardsDataModule, load_data
from lightning_gen.data.shards.copies import Copies
from lightning_gen.data.shards.storage import OpenFiles, Range, Storage
from lightning_gen.errors import MissingData, MissingExtra

pytest.importorskip("webdataset")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]
ADDRESS = "memory://bucket/parity"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return put_folder(tmp_path_factory.mktemp("images") / "parity")


@pytest.fixture
def remote(folder):
    """Shards in storage that is no disk, written there."""
    import fsspec

    memory = fsspec.filesystem("memory")
    write(folder, ADDRESS)
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def module(path=ADDRESS, **options):
    return ShardsDataModule(path, **{"batch_size": 8, "num_workers": 0, "window": 2, "lanes": 2, **options})


def batches(made, epoch=0):
    loader = made.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [number_of(batch["image"]).tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_object_storage_is_read_as_a_disk_is(remote, folder, tmp_path, workers):
    write(folder, tmp_path / "local")
    ours, theirs = module(num_workers=workers), module(str(tmp_path / "local"))
    assert ours.shape == (3, 4, 4)
    assert ours.class_counts.tolist() == [30, 30]
    assert ours.fingerprint("train") == theirs.fingerprint("train")
    for one, two in zip(ours.train_dataloader(), theirs.train_dataloader(), strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["label"], two["label"])
    assert isinstance(load_data(ADDRESS), ShardsDataModule)


def test_the_same_files_lie_there_and_no_others(remote, folder, tmp_path):
    write(folder, tmp_path / "local")
    here = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    there = {path.rsplit("/", 1)[-1]: remote.cat(path) for path in remote.find("/bucket/parity")}
    assert here == there


def test_a_shard_that_is_missing_there(remote):
    remote.rm("/bucket/parity/train-00001.tar")
    with pytest.raises(DamagedShard, match=r"train-00001.tar: missing"):
        module().setup("fit")
    with pytest.warns(UserWarning, match="Left out: 1 of 6"):
        assert len(module(on_error="skip").split("train")) == 50
    loader = module(on_error="skip")
    with pytest.warns(UserWarning, match="Left out"):
        dataset = loader.split("train")
    remote.rm("/bucket/parity/train-00002.tar")
    with pytest.raises(MissingData, match="no longer there"):
        dataset.batch(torch.arange(50))


def test_nothing_there():
    with pytest.raises(MissingData, match="no shards in memory://nowhere"):
        _ = module("memory://nowhere").shape


def test_a_file_address_is_a_folder(folder, tmp_path):
    write(folder, tmp_path / "local")
    made = module(f"file://{tmp_path}/local")
    assert made.storage.folder == tmp_path / "local"
    assert batches(made) == batches(module(str(tmp_path / "local")))


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that knows byte ranges, as object storage does."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            return super().do_GET()
        if not path.is_file():
            return self.send_error(404)
        content, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_storage_with_connections_is_read_by_workers_too(folder, tmp_path, workers):
    """Connections of the process that is forked are of no use to its workers."""
    pytest.importorskip("aiohttp")
    write(folder, tmp_path / "local")
    plain = batches(module(str(tmp_path / "local"), flip=False))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = module(f"http://127.0.0.1:{server.server_port}/local", num_workers=workers, flip=False)
        assert made.split("train")[0]["image"].shape == (3, 4, 4)  # a connection is open
        assert batches(made) == plain
        server.shutdown()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match="s3:// needs a package that is not installed: pip install s3fs"):
        module("s3://bucket/shards")
    monkeypatch.setitem(sys.modules, "smbprotocol", None)
    with pytest.raises(MissingExtra, match="pip install smbprotocol"):
        module("smb://host/shards")
    with pytest.raises(ValueError, match="there is no protocol 's4'"):
        module("s4://bucket/shards")


# ---- copies on a disk


def copies_of(made, cache, limit=10**9):
    return Copies(made.storage, made.index.splits["train"], cache, limit)


def test_copies_hold_the_same_and_are_fetched_once(remote, tmp_path, monkeypatch):
    plain = [batches(module(flip=False), epoch) for epoch in (0, 1)]
    fetched = []
    copy = Storage.copy
    monkeypatch.setattr(Storage, "copy", lambda self, name, to: (fetched.append(name), copy(self, name, to)))
    cached = module(flip=False, cache=str(tmp_path / "cache"))
    assert [batches(cached, epoch) for epoch in (0, 1)] == plain
    assert sorted(fetched) == [f"train-0000{number}.tar" for number in range(6)]
    # another run finds them there
    assert batches(module(flip=False, cache=str(tmp_path / "cache"))) == plain[0]
    assert len(fetched) == 6


def test_workers_read_copies_that_come_meanwhile(remote, tmp_path):
    plain = [batches(module(flip=False), epoch) for epoch in (0, 1)]
    size = module().index.splits["train"][0].bytes
    shared = module(flip=False, num_workers=2, cache=str(tmp_path), cache_gb=4.5 * size / 1e9)
    loader = shared.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        assert [number_of(batch["image"]).tolist() for batch in loader] == plain[epoch]
    del loader


def test_copies_are_limited_and_come_again(remote, tmp_path, monkeypatch):
    plain = [batches(module(flip=False), epoch) for epoch in (0, 1)]
    size = module().index.splits["train"][0].bytes
    monkeypatch.setattr(Copies, "prefetch", lambda *_: None)
    limited = module(flip=False, cache=str(tmp_path), cache_gb=3.5 * size / 1e9)
    for epoch in (0, 1):
        assert batches(limited, epoch) == plain[epoch]
        assert len(list(tmp_path.glob("*.tar"))) == 3
    monkeypatch.undo()
    # less than one fits: slow, and right all the same
    assert batches(module(flip=False, cache=str(tmp_path), cache_gb=1e-9)) == plain[0]


def _fetch_slowly(cache, counter):
    copy = Storage.copy

    def slow(self, name, to):
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.2)
        copy(self, name, to)

    Storage.copy = slow
    made = module()
    assert copies_of(made, cache).path("train-00000.tar").stat().st_size == made.index.splits["train"][0].bytes


def test_several_processes_fetch_a_shard_once(remote, tmp_path):
    context = multiprocessing.get_context("fork")
    counter = context.Value("i", 0)
    processes = [context.Process(target=_fetch_slowly, args=(tmp_path, counter)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counter.value == 1


def test_a_copy_that_was_cut_off_is_none(remote, tmp_path):
    """A process killed while it fetches leaves a partial file, which the next one removes."""
    made = module()
    name = copies_of(made, tmp_path).path("train-00000.tar").name
    (tmp_path / name).rename(tmp_path / f".{name}.12345.partial")
    remote.pipe("/bucket/parity/train-00000.tar", remote.cat("/bucket/parity/train-00000.tar")[:-1])
    with pytest.raises(DamagedShard, match=r"bytes.*were written"):
        copies_of(made, tmp_path).path("train-00000.tar")
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob(".*.partial"))


def test_the_next_shards_come_in_the_background(remote, tmp_path):
    copies = copies_of(module(), tmp_path)
    copies.prefetch(["train-00003.tar", "no such shard", "train-00004.tar"])
    until = time.monotonic() + 20
    while len(list(tmp_path.glob("*.tar"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(path.name[17:] for path in tmp_path.glob("*.tar")) == ["train-00003.tar", "train-00004.tar"]


# ---- parts of files


def test_parts_of_files_are_read_where_they_lie(tmp_path):
    content = bytes(range(256)) * 4
    (tmp_path / "file").write_bytes(content)
    storage = Storage(str(tmp_path))
    assert storage.ranges([Range("file", 3, 5), Range("file", 0, 1024), Range("file", 1020, 100)]) == [
        content[3:8], content, content[1020:],
    ]  # fmt: skip
    assert storage.sizes() == {"file": 1024}
    with pytest.raises(FileNotFoundError):
        storage.ranges([Range("nothing", 0, 1)])


def test_few_files_are_kept_open(tmp_path):
    files = OpenFiles()
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        assert files.read(tmp_path / str(number), 0, 5) == b"%d" % number
    assert len(files._open) == 64
    opened = list(files._open.values())
    del files
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
