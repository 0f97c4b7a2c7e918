"""What a score was measured on and with: a number without its protocol is not printed.

Two scores may be compared where their protocols agree in everything but the model. The number of samples, the
reference split, the extractor and its weights, the resize and the precision each move a Frechet distance by more
than the differences papers report.
"""

from dataclasses import asdict, dataclass
from typing import Any

METRICS: dict[str, str] = {
    "fid": "inception",
    "kid": "inception",
    "is": "inception",
    "fd-lenet5": "lenet5",
    "class-accuracy": "lenet5",
}
"""Metric -> the extractor it is computed on."""

STANDARD_INCEPTION = "inception-v3-compat"
REFERENCE_METRICS = ("fid", "kid", "fd-lenet5")
"""Metrics that compare with a reference set; the others judge the samples alone."""

RECONSTRUCTED = ("rfid", "rkid", "rfd-lenet5")
"""What the metrics that compare with images are called where an autoencoder's reconstructions are measured."""

_OTHER_EXTRACTOR = {
    "fid": "fd",
    "kid": "kid",
    "is": "is",
    "fd-lenet5": "fd",
    "class-accuracy": "class-accuracy",
}


@dataclass(frozen=True)
class Provenance:
    """Where the statistics of a reference set come from.

    Attributes:
        extractor: name of the feature extractor.
        weights_sha256: hash of its weights.
        resize: resize it applies.
        dtype: precision of its forward pass.
        dataset: name of the data set.
        fingerprint: hash of the images.
        split: "train", "val", "test", or what the folder was called.
    """

    extractor: str
    weights_sha256: str
    resize: str
    dtype: str
    dataset: str
    fingerprint: str
    split: str

    def differences(self, other: "Provenance") -> list[str]:
        """Each field in which two provenances differ, as "field: ours, not theirs"."""
        ours, theirs = asdict(self), asdict(other)
        return [f"{key}: {theirs[key]!r}, not {ours[key]!r}" for key in ours if ours[key] != theirs[key]]


@dataclass(frozen=True)
class Protocol:
    """The protocol of one score.

    Attributes:
        num_samples: generated images.
        extractor: name of the feature extractor.
        weights_sha256: hash of its weights.
        resize: resize it applies.
        dtype: precision of its forward pass.
        seed: seed of the samples; None for images that were not sampled here.
        weights: which weights of the model made the samples: "raw", "ema-10000", or "files".
        dataset: name of the reference data set; None where the metric has no reference.
        split: its split.
        num_reference: its number of images.
        fingerprint: hash of its images.
    """

    num_samples: int
    extractor: str
    weights_sha256: str
    resize: str
    dtype: str
    seed: int | None
    weights: str
    dataset: str | None = None
    split: str | None = None
    num_reference: int | None = None
    fingerprint: str | None = None

    def name(self, metric: str) -> str:
        """Key under which a metric is logged, such as `fid_10k_train` or `fd-lenet5-1a2b3c4d_2k_test`.

        Only the standard Inception weights give names `fid`, `kid`, `is`: any other extractor is in the name.

        Args:
            metric: "fid", "kid", "is", "fd-lenet5" or "class-accuracy"; an "r" before it is kept.
        """
        if metric in RECONSTRUCTED:
            return f"r{self.name(metric[1:])}"
        label = metric
        if not (self.extractor == STANDARD_INCEPTION and metric in ("fid", "kid", "is")):
            label = f"{_OTHER_EXTRACTOR.get(metric, metric)}-{self.extractor}"
        parts = [label, short_count(self.num_samples)]
        if metric in REFERENCE_METRICS and self.split is not None:
            parts.append(self.split)
        return "_".join(parts)

    def describe(self) -> str:
        """One line for a person: everything the score depends on."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        text = f"{self.num_samples} samples ({self.weights} weights{seed})"
        if self.weights == "files":
            text = f"{self.num_samples} images from files"
        if self.dataset is not None:
            text += f" against {self.num_reference} of {self.dataset} {self.split} ({str(self.fingerprint)[:8]})"
        return f"{text}; {self.extractor} ({self.weights_sha256[:8]}), resize {self.resize}, {self.dtype}"

    def as_dict(self) -> dict[str, Any]:
        """All fields, for a JSON report."""
        return asdict(self)


def short_count(n: int) -> str:
    """Write whole thousands short: 10000 is `10k`, 2048 stays `2048`."""
    return f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else str(n)
