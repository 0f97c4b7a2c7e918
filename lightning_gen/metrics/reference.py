"""Statistics of a reference set: computed once by all ranks, kept on disk under the protocol they were made by.

The key of a cached file is the fingerprint of the images with the extractor, its weights' hash, its resize and its
precision; the name of the data set alone would give the old statistics for new images.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gen.files import written_whole
from lightning_gen.metrics.distributed import broadcast, gather_rows, own_batches, raise_together, world
from lightning_gen.metrics.extractors import FeatureExtractor
from lightning_gen.metrics.protocol import Provenance
from lightning_gen.metrics.statistics import FeatureStatistics, Moments, load_moments, save_moments

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is done ("reference" or "samples"), images done on this rank, and images it has to do."""


class ImageDataset(Protocol):
    """What a reference set is read through: sized, each item a dict with `image`, (C, H, W) uint8."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One item."""
        ...


@dataclass(frozen=True)
class Reference:
    """Statistics of a reference set for one extractor.

    Attributes:
        provenance: what they were made from.
        n: number of images.
        moments: mean and covariance; on rank 0 only.
        features: (n, d) float32 for the kernel distance, where asked for; on rank 0 only.
    """

    provenance: Provenance
    n: int
    moments: Moments | None
    features: Tensor | None = None


def fingerprint(dataset: ImageDataset) -> str:
    """Hash of all images in order: shapes and bytes, 16 hexadecimal digits.

    A data set may carry its own in an attribute `fingerprint` (then no image is read), as long as other images or
    another preparation (size, crop) change it.
    """
    known = getattr(dataset, "fingerprint", None)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        image = _image(dataset, index)
        digest.update(str(tuple(image.shape)).encode())
        digest.update(image.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_images(dataset: ImageDataset, first: int, n: int) -> Tensor:
    """Images first ... first + n - 1 of a data set as one batch (n, C, H, W) uint8.

    Raises:
        ValueError: images that are not uint8 (C, H, W) of one size.
    """
    images = [_image(dataset, index) for index in range(first, first + n)]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"Images {first} to {first + n - 1} differ in shape: {sorted(shapes)}. Resize them alike.")
    return torch.stack(images)


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where statistics are kept: the argument, $LIGHTNING_GEN_CACHE, or ~/.cache/lightning_gen."""
    return Path(folder or os.environ.get("LIGHTNING_GEN_CACHE") or "~/.cache/lightning_gen").expanduser()


def build_reference(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    *,
    name: str,
    split: str,
    device: torch.device,
    batch_size: int = 64,
    keep_features: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Reference:
    """Load or compute the statistics of a reference set; all ranks call it.

    Args:
        dataset: images without augmentation, none padded, none dropped.
        extractor: on `device`.
        name: of the data set.
        split: of the data set.
        device: where features are computed.
        batch_size: images a batch.
        keep_features: keep the features too, as the kernel distance needs them.
        cache: folder of the cached statistics; see `cache_folder`.
        progress: called after every batch.

    Returns:
        The statistics, in full on rank 0.

    Raises:
        ValueError: fewer than two images.
    """
    size = len(dataset)
    if size < 2:
        raise ValueError(f"The reference {name} {split} has {size} image(s); its statistics need at least 2.")
    mark, error = None, None
    if world()[0] == 0:
        try:
            mark = fingerprint(dataset)
        except Exception as caught:
            error = caught
    raise_together(error)
    provenance = Provenance(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        resize=extractor.resize,
        dtype=extractor.dtype,
        dataset=name,
        fingerprint=broadcast(mark),
        split=split,
    )
    path = _cache_path(cache_folder(cache), provenance)
    cached = _load(path, provenance, size, keep_features) if world()[0] == 0 else None
    if broadcast(cached is not None):
        return cached if cached is not None else Reference(provenance, size, None)
    made = _compute(dataset, extractor, provenance, device, batch_size, keep_features, progress)
    if world()[0] == 0:
        _store(path, made)
    return made


def load_reference(path: str | Path, extractor: FeatureExtractor) -> Reference:
    """Statistics from a file, for the extractor that made them.

    Args:
        path: an `.npz` that `save_moments` wrote.
        extractor: the one the samples will go through.

    Raises:
        ValueError: no provenance, or that of another extractor.
    """
    found = load_moments(path).provenance
    expected = Provenance(
        extractor=extractor.name,
        weights_sha256=extractor.weights_sha256,
        resize=extractor.resize,
        dtype=extractor.dtype,
        dataset=found.dataset if found else "",
        fingerprint=found.fingerprint if found else "",
        split=found.split if found else "",
    )
    moments = load_moments(path, expected)
    return Reference(expected, moments.n or 0, moments)


def _compute(
    dataset: ImageDataset,
    extractor: FeatureExtractor,
    provenance: Provenance,
    device: torch.device,
    batch_size: int,
    keep_features: bool,
    progress: Progress | None,
) -> Reference:
    size = len(dataset)
    statistics = FeatureStatistics(extractor.dim, device)
    kept: list[Tensor] = []
    batches = own_batches(size, batch_size)
    mine, done, error = sum(n for _, n in batches), 0, None
    try:
        with torch.no_grad(), full_precision(device):
            for first, n in batches:
                features = extractor(read_images(dataset, first, n).to(device)).features
                statistics.update(features)
                if keep_features:
                    kept.append(features.float().cpu())
                done += n
                if progress is not None:
                    progress("reference", done, mine)
    except Exception as caught:
        error = caught
    raise_together(error)
    statistics.all_reduce()
    check_count(statistics.n, size)
    features = gather_rows(kept, size, batch_size) if keep_features else None
    moments = statistics.moments(provenance) if world()[0] == 0 else None
    return Reference(provenance, size, moments, features)


def check_count(found: int, expected: int) -> None:
    """Refuse sums over more or fewer images than there are: a padded or dropped image moves every score.

    Raises:
        RuntimeError: the numbers differ.
    """
    if found != expected:
        raise RuntimeError(f"Summed {found} images over all processes where there are {expected}.")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Features in float32 whatever precision the training runs in: no autocast, no TF32."""
    before = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=cudnn.deterministic, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _image(dataset: ImageDataset, index: int) -> Tensor:
    item = dataset[index]
    image = item["image"] if isinstance(item, dict) else item
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"Reference images are uint8 tensors (C, H, W) under 'image'; image {index} is {found}.")
    return image


def _cache_path(folder: Path, provenance: Provenance) -> Path:
    key = hashlib.sha256(repr(sorted(asdict(provenance).items())).encode()).hexdigest()[:16]
    safe = "".join(c if c.isalnum() or c in "-." else "_" for c in f"{provenance.dataset}-{provenance.split}")
    return folder / "statistics" / f"{safe[:60]}-{provenance.extractor}-{key}.npz"


def _load(path: Path, provenance: Provenance, size: int, keep_features: bool) -> Reference | None:
    """What the cache holds, or None: a damaged file is made anew, not an error."""
    try:
        moments = load_moments(path, provenance)
        if moments.n != size:
            return None
        features = None
        if keep_features:
            features = torch.from_numpy(np.load(path.with_suffix(".npy"), allow_pickle=False))
            if features.shape != (size, len(moments.mu)):
                return None
        return Reference(provenance, size, moments, features)
    except (OSError, ValueError, EOFError):
        return None


def _store(path: Path, reference: Reference) -> None:
    """Write to the cache; a folder that cannot be written costs the next run time, nothing else."""
    if reference.moments is None:
        return
    try:
        if reference.features is not None:
            with written_whole(path.with_suffix(".npy")) as partial, partial.open("wb") as file:
                np.save(file, reference.features.numpy())
        save_moments(path, reference.moments)
    except OSError as error:
        logger.info("Reference statistics are not cached: %s", error)
