"""Whole shards of slow storage on a fast disk, for all processes of a machine, up to so many bytes.

A shard is fetched once, by whoever needs it first, while others wait; the oldest ones make room. What stands
in the folder is whole at any time, and named by the hash of its content, so a folder outlives a run and may be
shared by several.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_gen.data.shards.index import DamagedShard, Shard
from lightning_gen.data.shards.storage import OpenFiles, Range, Storage
from lightning_gen.files import written_whole

# shards that come at a time, in the background
_FETCHERS = 4


class Copies:
    """A folder of copies.

    Args:
        storage: where the shards are.
        shards: all that may be asked for.
        folder: on a disk of this machine; made where it is missing.
        limit: bytes that the copies take; those that are being fetched may come on top.
    """

    def __init__(self, storage: Storage, shards: Iterable[Shard], folder: Path, limit: int) -> None:
        self.storage, self.folder, self.limit = storage, folder, limit
        self.shards = {shard.file: shard for shard in shards}
        self._files = OpenFiles()
        self._wanted: queue.Queue[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_wanted": None}

    def ranges(self, wanted: Iterable[Range]) -> list[bytes]:
        """Return parts of shards, which are fetched where they are not here yet."""
        return [self._read(part) for part in wanted]

    def _read(self, part: Range) -> bytes:
        for _ in range(3):
            path = self.path(part.name)
            # where another process has just made room, the copy is fetched again
            with contextlib.suppress(FileNotFoundError):
                return self._files.read(path, part.start, part.length)
        raise FileNotFoundError(f"{part.name}: the folder {self.folder} is too small for the shards that are read")

    def path(self, name: str) -> Path:
        """Return the copy of a shard.

        Raises:
            DamagedShard: where another number of bytes came than was written.
        """
        from filelock import FileLock

        shard = self.shards[name]
        target = self.folder / f"{shard.table[:16]}-{name}"
        if self._files.opened(target) or target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if not target.exists():
                for stale in self.folder.glob(f".{target.name}.*.partial"):  # of a process that was killed
                    stale.unlink(missing_ok=True)
                self._make_room(shard.bytes)
                with written_whole(target) as partial:
                    self.storage.copy(name, partial)
                    came = partial.stat().st_size
                    if came != shard.bytes:
                        raise DamagedShard(
                            f"The shard {name} in {self.storage.path} has {came} bytes, {shard.bytes} were written."
                        )
        return target

    def prefetch(self, names: Iterable[str]) -> None:
        """Fetch shards in the background; what fails there is told by whoever needs them."""
        if self._wanted is None:
            self._wanted = queue.Queue()
            for _ in range(_FETCHERS):
                threading.Thread(target=self._fetch, args=(self._wanted,), daemon=True).start()
        for name in names:
            self._wanted.put(name)

    def _fetch(self, wanted: "queue.Queue[str]") -> None:
        while True:
            with contextlib.suppress(Exception):
                os.utime(self.path(wanted.get()))  # no longer among the oldest

    def _make_room(self, needed: int) -> None:
        """Remove the oldest copies; a process that reads one reads on."""
        found = []
        for file in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                found.append((file.stat().st_mtime, file.stat().st_size, file))
        total = sum(size for _, size, _ in found) + needed
        for _, size, file in sorted(found):
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            total -= size
