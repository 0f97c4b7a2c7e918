"""Samples as files: a folder of PNG files or one npz, each continued where it was stopped."""

import json
import time
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from lightning_gen.cli.failures import UsageError
from lightning_gen.files import written_whole
from lightning_gen.images import write_png

Record = dict[str, Any]


class SampleFiles(ABC):
    """A place that samples are written to.

    What they are samples of stands in a JSON file beside them, and is compared before more are added.

    Args:
        out: where the samples go.
        n: how many there shall be.
        record: what they are samples of.
    """

    def __init__(self, out: Path, n: int, record: Record) -> None:
        self.out, self.n, self.record = out, n, record
        self.labels: dict[int, int] = {}
        self._saved = time.monotonic()

    @property
    @abstractmethod
    def json(self) -> Path:
        """The file that says what the samples are."""

    @abstractmethod
    def missing(self) -> list[int]:
        """Return the indices of the samples that are not there yet."""

    @abstractmethod
    def write(self, indices: list[int], images: Tensor) -> None:
        """Add samples: bytes `(B, C, H, W)`."""

    def add(self, indices: list[int], images: Tensor, labels: Tensor | None) -> None:
        """Add samples and their classes."""
        self.write(indices, images)
        if labels is not None:
            self.labels.update(zip(indices, labels.tolist(), strict=True))
        if time.monotonic() - self._saved > 5.0:
            self.save()

    def save(self) -> None:
        """Write down how far it is."""
        content = {**self.record, "n": self.n, **self._progress()}
        if self.labels:
            content["labels"] = [self.labels.get(index) for index in range(max(self.labels) + 1)]
        with written_whole(self.json) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
        self._saved = time.monotonic()

    def _progress(self) -> Record:
        return {}

    @abstractmethod
    def finish(self) -> None:
        """Close what is complete."""

    def stop(self) -> None:
        """Leave what is there to be continued."""
        self.save()

    def take_up(self, path: Path) -> Record:
        """Read what stands there already, and refuse to mix it with samples of something else.

        Raises:
            UsageError: where it differs.
        """
        try:
            found: Record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} cannot be read, so what lies beside it is unknown. {_elsewhere()}") from error
        for key, value in self.record.items():
            if key != "checkpoint" and found.get(key) != value:
                raise UsageError(
                    f"{self.out} holds samples of something else: {key} is {found.get(key)} there and {value} now."
                    f" {_elsewhere()}"
                )
        labels = found.get("labels") or []
        self.labels = {index: label for index, label in enumerate(labels) if label is not None}
        return found


class PNGFolder(SampleFiles):
    """A folder of files `000000.png`, ... and `samples.json`."""

    def __init__(self, out: Path, n: int, record: Record) -> None:
        super().__init__(out, n, record)
        present = {path.name for path in out.iterdir()} if out.is_dir() else set()
        self._present = {int(name[:-4]) for name in present if name.endswith(".png") and name[:-4].isdigit()}
        if "samples.json" in present:
            self.take_up(self.json)
        elif self._present:
            raise UsageError(f"{out} holds images of unknown origin: there is no samples.json. {_elsewhere()}")
        beyond = [index for index in self._present if index >= n]
        if beyond:
            raise UsageError(f"{out} holds {max(beyond) + 1} samples, and {n} are asked for. {_elsewhere()}")
        self.save()

    @property
    def json(self) -> Path:
        """Return the file that says what the samples are."""
        return self.out / "samples.json"

    def missing(self) -> list[int]:
        """Return the indices of the samples that are not there yet."""
        known = self._present if not self.record["labeled"] else self._present & set(self.labels)
        return [index for index in range(self.n) if index not in known]

    def write(self, indices: list[int], images: Tensor) -> None:
        """Add samples: bytes `(B, C, H, W)`."""
        for index, image in zip(indices, images, strict=True):
            if index not in self._present:
                write_png(self.out / f"{index:06d}.png", image)
        self._present.update(indices)

    def finish(self) -> None:
        """Close what is complete."""
        self.save()


class NPZ(SampleFiles):
    """One npz: `arr_0` uint8 `(N, H, W, C)`, and `label` int64 `(N,)` for a model with classes.

    Until all are there, the images lie in a hidden file beside it, which only ever grows.
    """

    def __init__(self, out: Path, n: int, record: Record) -> None:
        super().__init__(out, n, {**record, "n": n})
        self._partial = out.with_name(f".{out.name}.images.npy")
        self._file: BinaryIO | None = None
        self._done, self._complete = 0, False
        if out.exists():
            if not self._final_json.exists():
                raise UsageError(f"{out} is there already, and what it holds is unknown. {_elsewhere()}")
            self.take_up(self._final_json)
            self._complete = True
        elif self.json.exists() and self._partial.exists():
            self._done = int(self.take_up(self.json)["done"])

    @property
    def json(self) -> Path:
        """Return the file that says what the samples are."""
        return self.out.with_name(f".{self.out.name}.json")

    @property
    def _final_json(self) -> Path:
        return self.out.with_name(f"{self.out.name}.json")

    def missing(self) -> list[int]:
        """Return the indices of the samples that are not there yet."""
        return [] if self._complete else list(range(self._done, self.n))

    def write(self, indices: list[int], images: Tensor) -> None:
        """Add samples: bytes `(B, C, H, W)`."""
        array = images.permute(0, 2, 3, 1).contiguous().numpy()
        if self._file is None:
            self._open(array.shape[1:])
        if self._file is not None:
            self._file.write(array.tobytes())
        self._done += len(array)

    def _open(self, shape: tuple[int, ...]) -> None:
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("r+b" if self._done else "wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.n, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        # images written after the last note of how many there are come again
        self._file.seek(self._file.tell() + self._done * int(np.prod(shape)))
        self._file.truncate()

    def save(self) -> None:
        """Write down how far it is."""
        if self._file is not None:
            self._file.flush()
        if not self._complete:
            super().save()

    def stop(self) -> None:
        """Leave what is there to be continued."""
        self.save()
        if self._file is not None:
            self._file.close()

    def _progress(self) -> Record:
        return {"done": self._done}

    def finish(self) -> None:
        """Close what is complete."""
        if self._complete:
            return
        self.save()
        if self._file is not None:
            self._file.close()
        with written_whole(self.out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            archive.write(self._partial, "arr_0.npy")
            if self.labels:
                label = np.array([self.labels[index] for index in range(self.n)], dtype=np.int64)
                with archive.open("label.npy", "w") as file:
                    np.lib.format.write_array(file, label)
        with written_whole(self._final_json) as partial:
            partial.write_text(self.json.read_text(encoding="utf-8"), encoding="utf-8")
        self.json.unlink()
        self._partial.unlink()
        self._complete = True


def _elsewhere() -> str:
    return "Choose another --out, or move what is there away."
