"""What lies beside cached latents: by what and of what they were made, and which files they are in.

latents.json        the codec's fingerprint, of every split the fingerprint of its images and its files
plan.json           what was to be written: the command that was cut off goes on by it
train-00000.npy     float32 or float16 (n, c, h, w): latents in the order of the images, not whitened
mirrored-00000.npy  the same of the training images mirrored left to right, where they were asked for
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_gen.data.datasets import Split
from lightning_gen.errors import MissingData

LATENTS, PLAN = "latents.json", "plan.json"
FORMAT, VERSION = "lightning_gen.latents", 2


@dataclass(frozen=True)
class LatentFile:
    """One file of latents.

    Attributes:
        file: its name.
        images: how many it holds.
        bytes: its size.
        sha256: of its content.
    """

    file: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LatentIndex:
    """What is known of cached latents before they are read.

    Attributes:
        codec: fingerprint of the codec's weights.
        shape: (c, h, w) of every latent.
        splits: the files of each split.
        data: fingerprint of the images of each split.
        mean: of each channel over the training images.
        std: of each channel over the training images.
        made: how they were made, for whoever wants to know.
        mirrored: the files of the mirrored training images; none where they were not asked for.
    """

    codec: str
    shape: tuple[int, int, int]
    splits: dict[Split, list[LatentFile]]
    data: dict[Split, str]
    mean: list[float]
    std: list[float]
    made: dict[str, Any] = field(default_factory=dict)
    mirrored: list[LatentFile] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def read_latent_index(folder: Path) -> LatentIndex:
    """Read the index of cached latents.

    Raises:
        MissingData: where there is none, or not all is written.
        ValueError: where it is another file of that name, or of a newer version.
    """
    path = folder / LATENTS
    command = "`lightning-gen latents CODEC DATA OUT`"
    if not path.is_file():
        if (folder / PLAN).is_file():
            raise MissingData(f"The latents in {folder} are not all written yet: the same {command} goes on there.")
        raise MissingData(f"There are no cached latents in {folder}, no file {LATENTS}: {command} writes them.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != FORMAT or fields.pop("version") > VERSION:
            raise ValueError("another format, or a newer version")
        splits = {split: [LatentFile(**file) for file in files] for split, files in fields.pop("splits").items()}
        mirrored = [LatentFile(**file) for file in fields.pop("mirrored", [])]  # of version 2
        channels, height, width = fields.pop("shape")
        return LatentIndex(shape=(channels, height, width), splits=splits, mirrored=mirrored, **fields)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no index of cached latents ({error}): write them again by {command}.") from error
