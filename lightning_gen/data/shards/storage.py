"""Files in one folder, wherever fsspec reaches: a disk, a shared file system, object storage.

Files on a disk are read in place, at any offset, by several processes at once. Of other storage, byte ranges
are asked for, all of a batch together; `copies.py` keeps whole files of it on a disk.
"""

import contextlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_gen.errors import MissingExtra
from lightning_gen.files import written_whole

# what to install for a protocol; of others, fsspec's own word is passed on
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "oss": "ossfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "hdfs": "pyarrow",
    "http": "aiohttp",
    "https": "aiohttp",
}
_KEPT_OPEN = 64


class Range(NamedTuple):
    """Bytes start ... start + length - 1 of a file."""

    name: str
    start: int
    length: int


class Storage:
    """A folder of files.

    Args:
        path: a folder, or its address (`s3://bucket/folder`, `memory://folder`, ...).
        options: what fsspec gives to the file system: keys, an endpoint, ...

    Raises:
        MissingExtra: where the package of the protocol is not installed; names it.
        ValueError: where there is no such protocol.
    """

    def __init__(self, path: str, options: dict[str, Any] | None = None) -> None:
        self.path, self.options = str(path), dict(options or {})
        self._opened: tuple[int, Any, str] | None = None
        self._files = OpenFiles()
        self.folder: Path | None = None
        if "://" not in self.path and "::" not in self.path:
            self.folder = Path(self.path).expanduser()
        elif self.path.startswith(("file://", "local://")):
            self.folder = Path(self._system()[1])
        else:
            self._system()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _system(self) -> tuple[Any, str]:
        """Return the file system of this process and the folder in it; connections do not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), *_connected(self.path, self.options))
        return self._opened[1:]

    def sizes(self) -> dict[str, int | None]:
        """List the files: bytes of each by name, None where the storage does not say; {} where there is no folder."""
        if self.folder is not None:
            with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            return {}
        system, folder = self._system()
        system.invalidate_cache()
        try:
            listed = system.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {file["name"].rsplit("/", 1)[-1]: file["size"] for file in listed if file["type"] == "file"}

    def read(self, *names: str) -> list[bytes]:
        """Return the content of files.

        Raises:
            FileNotFoundError: where one is not there.
        """
        if self.folder is not None:
            return [(self.folder / name).read_bytes() for name in names]
        if not names:
            return []
        system, folder = self._system()
        paths = [f"{folder}/{name}" for name in names]
        whole: list[bytes] = system.cat_ranges(paths, None, None, on_error="raise")
        return whole

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        """Return parts of files; what lies behind the end of a file is missing.

        Raises:
            FileNotFoundError: where a file is not there.
        """
        if self.folder is not None:
            return [self._files.read(self.folder / name, start, length) for name, start, length in wanted]
        system, folder = self._system()
        paths = [f"{folder}/{part.name}" for part in wanted]
        ends = [part.start + part.length for part in wanted]
        found: list[bytes] = system.cat_ranges(paths, [part.start for part in wanted], ends, on_error="raise")
        return found

    def copy(self, name: str, target: Path) -> None:
        """Copy a whole file to a disk."""
        if self.folder is not None:
            shutil.copyfile(self.folder / name, target)
        else:
            system, folder = self._system()
            system.get_file(f"{folder}/{name}", str(target))

    @contextlib.contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """Give a file to write to; once the block ends well it stands in the folder, whole."""
        if self.folder is not None:
            with written_whole(self.folder / name) as partial:
                yield partial
            return
        with tempfile.TemporaryDirectory(prefix="lightning_gen_") as temporary:
            partial = Path(temporary) / name
            yield partial
            system, folder = self._system()
            system.makedirs(folder, exist_ok=True)
            # object storage shows a file once all of it has come
            system.put_file(str(partial), f"{folder}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.folder is not None:
                (self.folder / name).unlink()
            else:
                system, folder = self._system()
                system.rm_file(f"{folder}/{name}")


class OpenFiles:
    """Files of a disk, some kept open, each read at its own offsets: no position is shared between processes."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict()}

    def read(self, path: Path, start: int, length: int) -> bytes:
        """Return a part of a file; less where the file ends."""
        parts, got = [], 0
        while got < length:
            part = os.pread(self._descriptor(str(path)), length - got, start + got)
            if not part:
                break
            parts.append(part)
            got += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def opened(self, path: Path) -> bool:
        """Say whether a file is open here: it can be read even where its name is gone."""
        return str(path) in self._open

    def _descriptor(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        descriptor = self._open[path] = os.open(path, os.O_RDONLY)
        if len(self._open) > _KEPT_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def _connected(path: str, options: dict[str, Any]) -> tuple[Any, str]:
    import fsspec

    protocol = path.split("://")[0].split("::")[0]
    try:
        system, folder = fsspec.core.url_to_fs(path, **options)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        advice = f"pip install {package}" if package else str(error)
        raise MissingExtra(f"{protocol}:// needs a package that is not installed: {advice}") from error
    except ValueError as error:
        if "rotocol" not in str(error):
            raise
        raise ValueError(
            f"{path}: there is no protocol '{protocol}'. Give a folder, or an address that fsspec knows, such as"
            " s3://bucket/folder."
        ) from error
    return system, folder.rstrip("/")
