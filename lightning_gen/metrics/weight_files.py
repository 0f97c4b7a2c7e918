"""Files of published weights: found in a folder, held against the hash that their names promise, read as tensors."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.metrics.extractors import file_sha256


class WeightsFile(NamedTuple):
    """A published file.

    Attributes:
        names: names it goes by, the usual one first.
        url: where it is published.
        hash_prefix: what its sha256 begins with.
    """

    names: tuple[str, ...]
    url: str
    hash_prefix: str

    def inside(self, path: Path) -> Path | None:
        """Return the file itself, or the one in a folder under one of its names; None where there is none."""
        candidates = [path / name for name in self.names] if path.is_dir() else [path]
        return next((candidate for candidate in candidates if candidate.is_file()), None)

    @property
    def cached(self) -> Path:
        """Where torch hub keeps it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.names[0]

    def verified(self, path: Path) -> Path:
        """Return the path of a file found, or refuse a broken copy: the standard name promises the content.

        Raises:
            ValueError: for a file with a standard name whose content is not the standard one.
        """
        if path.name in self.names and not file_sha256(path).startswith(self.hash_prefix):
            raise ValueError(
                f"{path} is damaged: its sha256 does not begin with {self.hash_prefix} (a download that broke off?). "
                f"Delete it and get it again from {self.url}. Other weights of the same network need another file name."
            )
        return path

    def read(self, path: Path) -> dict[str, Tensor]:
        """Read tensors, and nothing that would run code.

        Raises:
            ValueError: for a file that holds anything else.
        """
        try:
            state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # an unpickler given arbitrary bytes raises anything
            raise ValueError(
                f"{path} is not a file of weights that torch.save wrote ({type(error).__name__}). Get the file from"
                f" {self.url}."
            ) from error
        return state
