"""Image files in a folder or in a zip archive, read by name and never unpacked."""

import os
import stat
import zipfile
from pathlib import Path
from typing import Protocol

from lightning_gen.errors import MissingData, did_you_mean

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_WANTED = "Give a folder of images or a .zip file of one."


class ImageFiles(Protocol):
    """Named files; the names are relative, with "/" between folders, sorted by code point."""

    names: list[str]

    def size(self, name: str) -> int:
        """Return the length of a file in bytes."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        ...


def _wanted(name: str) -> bool:
    """Say whether a name is that of an image; hidden files and what archivers add are not."""
    if not name.lower().endswith(EXTENSIONS):
        return False
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


class FolderFiles:
    """Image files below a folder, links followed.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names, seen = [], set()
        for folder, folders, files in os.walk(path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above would never end
                folders.clear()
                continue
            seen.add(real)
            below = Path(folder).relative_to(path)
            names += [(below / file).as_posix() for file in files]
        self.names = sorted(name for name in names if _wanted(name))

    def size(self, name: str) -> int:
        """Return the length of a file in bytes."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.path / name).read_bytes()


class ZipFiles:
    """Image files in a zip archive, opened by each process for itself.

    Processes that inherit an open file share its position; each would read where another has left it.

    Args:
        path: the archive.

    Raises:
        ValueError: where the file is not a zip archive, or is encrypted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            members = self._archive().infolist()
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path} is not a zip archive ({error}). Give a folder of images or a .zip file of one."
            ) from error
        # archivers of some systems write "\" between folders
        found = {member.filename.replace("\\", "/"): member for member in members if not member.is_dir()}
        self._members = {name: found[name] for name in sorted(found) if _wanted(name)}
        if any(member.flag_bits & 1 for member in self._members.values()):
            raise ValueError(f"{path} is encrypted; give an archive without a password.")
        self.names = list(self._members)

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.path))
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def size(self, name: str) -> int:
        """Return the length of a file in bytes, unpacked."""
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self._archive().read(self._members[name])


def open_files(path: Path) -> ImageFiles:
    """List the image files of a folder or a zip archive.

    Raises:
        MissingData: where the path does not exist; names what comes near in the folder above.
        ValueError: where it is something else, or holds no image.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MissingData(_not_there(path)) from None
    files: ImageFiles = FolderFiles(path) if stat.S_ISDIR(mode) else ZipFiles(path)
    if not files.names:
        raise ValueError(
            f"There is no image in {path}. Files with these extensions are read, in the folder itself or in"
            f" folders below: {', '.join(EXTENSIONS)}."
        )
    return files


def _not_there(path: Path) -> str:
    above = path.absolute().parent
    if not above.is_dir():
        return f"{path} does not exist, nor does the folder {above}. {_WANTED}"
    close = did_you_mean(path.name, [entry.name for entry in above.iterdir()])
    return f"{path} does not exist.{close} {_WANTED}"
