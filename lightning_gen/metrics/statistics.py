r"""Mean and covariance of features, summed batch by batch and rank by rank in float64.

.. math:: \mu = \frac1n \sum f, \qquad S = \frac{1}{n - 1} \Big( \sum f f^T - n \mu \mu^T \Big)

Three sums (n, the features, their products) are all that is kept, whatever the number of images, and they add up
over ranks with one reduction. In float64 the cancellation in S costs digits that do not matter.

The file format is the `.npz` with `mu` and `sigma` (float64) that every public FID tool reads, with the
provenance beside them, and a refusal where it does not match.
"""

import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_gen.files import written_whole
from lightning_gen.metrics.protocol import Provenance


@dataclass(frozen=True)
class Moments:
    """A Gaussian fitted to features.

    Attributes:
        mu: (d,) mean, float64.
        sigma: (d, d) unbiased covariance, float64.
        n: number of samples it was fitted to, None where a foreign file does not say.
        provenance: what they were computed from, None where a foreign file does not say.
    """

    mu: Tensor
    sigma: Tensor
    n: int | None = None
    provenance: Provenance | None = None


class FeatureStatistics:
    """Accumulates the sums over batches of features.

    Args:
        dim: number of features d.
        device: where the sums are kept; the CPU takes the place of devices without float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.dim = dim
        self.n = 0
        self.total = torch.zeros(dim, dtype=torch.float64, device=self.device)
        self.products = torch.zeros(dim, dim, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, d).

        Raises:
            ValueError: another shape, or no floating point.
        """
        if features.ndim != 2 or features.shape[1] != self.dim or not features.is_floating_point():
            raise ValueError(
                f"Expected floating-point features (B, {self.dim}), got {tuple(features.shape)} {features.dtype}."
            )
        features = features.to(self.device).double()
        self.n += len(features)
        self.total += features.sum(0)
        self.products.addmm_(features.T, features)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add the sums of another accumulator of the same features.

        Raises:
            ValueError: another number of features.
        """
        if other.dim != self.dim:
            raise ValueError(f"Cannot merge statistics of {other.dim} features into those of {self.dim}.")
        self.n += other.n
        self.total += other.total.to(self.device)
        self.products += other.products.to(self.device)

    def all_reduce(self) -> None:
        """Sum over all processes where torch.distributed is initialized; all of them must call it."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        count = self.total.new_tensor([float(self.n)])
        flat = torch.cat([count, self.total, self.products.flatten()])
        torch.distributed.all_reduce(flat)
        self.n = int(flat[0])
        self.total = flat[1 : self.dim + 1].clone()
        self.products = flat[self.dim + 1 :].view(self.dim, self.dim).clone()

    @property
    def mean(self) -> Tensor:
        """Mean (d,), float64.

        Raises:
            ValueError: no sample yet.
        """
        if self.n < 1:
            raise ValueError("No features have been added yet.")
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (d, d), float64.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"A covariance needs at least 2 samples, got {self.n}.")
        mean = self.mean
        sigma = (self.products - self.n * torch.outer(mean, mean)) / (self.n - 1)
        return (sigma + sigma.T) / 2

    def moments(self, provenance: Provenance | None = None) -> Moments:
        """The Gaussian fitted to what was added."""
        return Moments(self.mean, self.covariance, self.n, provenance)


def save_moments(path: str | Path, moments: Moments) -> None:
    """Write statistics as `.npz`, beside the target and then renamed.

    Args:
        path: target file.
        moments: with their provenance.

    Raises:
        ValueError: the provenance is missing.
        OSError: the folder cannot be written.
    """
    if moments.provenance is None or moments.n is None:
        raise ValueError("Statistics without their provenance are not saved: nothing could check them later.")
    arrays = {"mu": moments.mu.cpu().numpy(), "sigma": moments.sigma.cpu().numpy(), "n": np.int64(moments.n)}
    texts = {key: np.str_(value) for key, value in asdict(moments.provenance).items()}
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays, **texts)


def load_moments(path: str | Path, expected: Provenance | None = None, *, unchecked: bool = False) -> Moments:
    """Read statistics, and refuse those that were made another way.

    Args:
        path: an `.npz` with `mu` and `sigma`, of this package or of another tool.
        expected: what the statistics are to be compared with; None accepts any.
        unchecked: accept a file that does not say where it comes from. One that says otherwise is still refused.

    Returns:
        The statistics on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a statistics file, or not of the expected provenance.
    """
    path = Path(path)
    try:
        # opened here, since numpy leaves a damaged file open
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        mu, sigma = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a statistics file: an .npz with 'mu' and 'sigma' ({error}).") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path}: mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)} do not fit together.")
    names = [field.name for field in fields(Provenance)]
    known = all(name in arrays for name in names)
    provenance = Provenance(**{name: str(arrays[name]) for name in names}) if known else None
    _check(path, provenance, expected, unchecked)
    return Moments(mu, sigma, int(arrays["n"]) if "n" in arrays else None, provenance)


def _check(path: Path, found: Provenance | None, expected: Provenance | None, unchecked: bool) -> None:
    if expected is None:
        return
    if found is None:
        if unchecked:
            return
        raise ValueError(
            f"{path} does not say which extractor, weights and resize its statistics come from, so a score against "
            "it could mean anything. Compute the reference from the images, or accept the file with unchecked=True."
        )
    differences = expected.differences(found)
    if differences:
        raise ValueError(
            f"{path} was made another way than this evaluation asks for ({'; '.join(differences)}). "
            "Compute the reference anew from the images, or evaluate by the file's own protocol."
        )
