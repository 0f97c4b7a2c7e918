"""Scores of a model's samples: one pass over the samples feeds every metric, on any number of ranks.

Rank invariance: sample i is a function of (seed, i), batches are fixed by their indices, whole batches go to ranks,
float64 sums are added over ranks. So 1, 2 and 3 processes give the same score to rounding of the last sums (1e-10).
All ranks run; rank 0 solves and broadcasts. The random state of the caller is left as it was.

References:
    - A note on the evaluation of generative models. https://arxiv.org/abs/1511.01844
    - On aliased resizing and surprising subtleties in GAN evaluation. https://arxiv.org/abs/2104.11222
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_gen.errors import choose
from lightning_gen.metrics.distributed import broadcast, raise_together, world
from lightning_gen.metrics.extractors import FeatureExtractor
from lightning_gen.metrics.frechet import frechet_distance
from lightning_gen.metrics.inception import InceptionV3
from lightning_gen.metrics.inception_score import inception_score
from lightning_gen.metrics.kernel import kernel_distance
from lightning_gen.metrics.lenet import LeNet5
from lightning_gen.metrics.protocol import METRICS, REFERENCE_METRICS, Protocol
from lightning_gen.metrics.reference import (
    ImageDataset,
    Progress,
    Reference,
    build_reference,
    load_reference,
    read_images,
)
from lightning_gen.metrics.samples import Labels, SampleSource, SampleSums
from lightning_gen.metrics.score import Score


class Evaluator:
    """Measures samples: extractors and reference are set up once, then it is called as often as needed.

    Args:
        metrics: any of `METRICS`.
        weights_path: Inception weights, a file or a folder; None searches and downloads.
        extractors: extractors to use in place of the standard ones, by "inception" or "lenet5".
        device: where features are computed.
        batch_size: images a batch, generated and extracted; a part of what makes scores identical.
        cache: folder of cached reference statistics; None takes $LIGHTNING_GEN_CACHE or ~/.cache/lightning_gen.
        kid_subsets: subsets of the kernel distance.
        kid_subset_size: their size, clipped to the samples there are.
        splits: splits of the inception score.

    Raises:
        ValueError: an unknown metric, none at all, or settings out of range.
        MissingData: Inception weights that are nowhere and cannot be downloaded.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        weights_path: str | Path | None = None,
        extractors: Mapping[str, FeatureExtractor] | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        cache: str | Path | None = None,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
        splits: int = 10,
    ) -> None:
        if isinstance(metrics, str) or not metrics:
            raise ValueError(f"Give a list of metrics out of {', '.join(METRICS)}; got {metrics!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
        needed = {choose("metric", metric, METRICS) for metric in metrics}
        self.metrics = list(dict.fromkeys(metrics))
        self.device = torch.device(device)
        self.batch_size, self.cache = batch_size, cache
        self.kid_subsets, self.kid_subset_size, self.splits = kid_subsets, kid_subset_size, splits
        given = dict(extractors or {})
        self.extractors = {
            kind: given[kind] if kind in given else _build(kind, weights_path) for kind in sorted(needed)
        }
        for extractor in self.extractors.values():
            extractor.to(self.device)
        self.references: dict[str, Reference] = {}

    @property
    def needs_reference(self) -> bool:
        """Whether any of the metrics compares with a reference set."""
        return any(metric in REFERENCE_METRICS for metric in self.metrics)

    def set_reference(self, dataset: ImageDataset, *, name: str, split: str, progress: Progress | None = None) -> None:
        """Load or compute the statistics of the reference set; all ranks call it.

        Args:
            dataset: sized, items {"image": (C, H, W) uint8}, without augmentation.
            name: of the data set, for the protocol.
            split: "train", "val", "test".
            progress: called after every batch.
        """
        for kind, extractor in self.extractors.items():
            if not any(METRICS[metric] == kind and metric in REFERENCE_METRICS for metric in self.metrics):
                continue
            if len(dataset):
                extractor.check(read_images(dataset, 0, 1))  # before anything is computed
            self.references[kind] = build_reference(
                dataset,
                extractor,
                name=name,
                split=split,
                device=self.device,
                batch_size=self.batch_size,
                keep_features=kind == "inception" and "kid" in self.metrics,
                cache=self.cache,
                progress=progress,
            )

    def load_reference(self, path: str | Path) -> None:
        """Take the statistics of an `.npz` that `save_moments` wrote, for the extractor it names.

        Raises:
            ValueError: made with another extractor, or "kid" is asked for, which needs features.
        """
        if "kid" in self.metrics:
            raise ValueError(f"'kid' needs the reference images: {path} holds a mean and a covariance. Leave it out.")
        kinds = [METRICS[metric] for metric in self.metrics if metric in REFERENCE_METRICS]
        for kind in dict.fromkeys(kinds):
            self.references[kind] = load_reference(path, self.extractors[kind])

    def __call__(
        self,
        source: SampleSource,
        num_samples: int,
        *,
        seed: int | None = 0,
        weights: str = "raw",
        labels: Labels | None = None,
        progress: Progress | None = None,
        together: bool = False,
    ) -> dict[str, Score]:
        """Measure samples; all ranks call it.

        Args:
            source: gives images by index, as `lightning_gen.images.to_uint8` of a module's samples.
            num_samples: number of images N.
            seed: of the samples, for the protocol; None for images that were not sampled here. It also draws the
                subsets and the shuffle of KID and IS.
            weights: which weights made them, for the protocol: "raw", "ema-10000", "files".
            labels: intended classes, needed by "class-accuracy".
            progress: called after every batch.
            together: whether the source has to be asked as often by every rank, as a model in parts has: a rank
                without a last batch draws it too, and drops it.

        Returns:
            Metric as requested -> its score, the same on every rank.

        Raises:
            ValueError: too few samples, no reference, no labels, or samples of the wrong kind.
        """
        self._preflight(num_samples, labels)
        sums = SampleSums(self, num_samples, labels)
        error: Exception | None = None
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            try:
                sums.run(source, progress, together)
            except Exception as caught:
                error = caught
        raise_together(error)
        sums.reduce()
        scores, error = None, None
        if world()[0] == 0:
            try:
                scores = {metric: self._solve(metric, sums, seed, weights) for metric in self.metrics}
            except Exception as caught:
                error = caught
        raise_together(error)
        return broadcast(scores)

    def _preflight(self, num_samples: int, labels: Labels | None) -> None:
        """What can be refused before the first image is."""
        for metric in self.metrics:
            if metric in REFERENCE_METRICS and METRICS[metric] not in self.references:
                raise ValueError(f"'{metric}' compares with a reference set: call set_reference first.")
        least = max([2 if self.needs_reference else 1] + [self.splits] * ("is" in self.metrics))
        if num_samples < least:
            raise ValueError(
                f"{num_samples} samples are too few for {', '.join(self.metrics)}: take at least {least}"
                + (f", or fewer splits than {self.splits}." if least == self.splits > 2 else ".")
            )
        if "class-accuracy" in self.metrics:
            if labels is None:
                raise ValueError("'class-accuracy' needs the labels the samples were asked for: give `labels`.")
            if isinstance(labels, Tensor) and labels.shape != (num_samples,):
                raise ValueError(f"Expected one label a sample, got {tuple(labels.shape)} for {num_samples} samples.")

    def _solve(self, metric: str, sums: "SampleSums", seed: int | None, weights: str) -> Score:
        kind = METRICS[metric]
        protocol = self._protocol(metric, sums.num_samples, seed, weights)
        if metric in ("fid", "fd-lenet5"):
            ours, theirs = sums.statistics[kind].moments(), self.references[kind].moments
            if theirs is None:
                raise RuntimeError("The reference statistics are not on rank 0.")
            value = frechet_distance(ours.mu, ours.sigma, theirs.mu.to(ours.mu.device), theirs.sigma.to(ours.mu.device))
            return Score(metric, value, None, protocol)
        if metric == "kid":
            features, reference = sums.gathered["features"], self.references[kind].features
            if reference is None:
                raise RuntimeError("The reference features are not on rank 0.")
            kid = kernel_distance(
                features.to(self.device), reference, self.kid_subsets, self.kid_subset_size, seed or 0
            )
            return Score(metric, kid.value, kid.std, protocol, {"subsets": kid.subsets, "subset_size": kid.subset_size})
        if metric == "is":
            result = inception_score(sums.gathered["logits"], self.splits, seed or 0)
            return Score(metric, result.value, result.std, protocol, {"splits": result.splits})
        return Score(metric, sums.correct / sums.num_samples, None, protocol)

    def _protocol(self, metric: str, num_samples: int, seed: int | None, weights: str) -> Protocol:
        kind = METRICS[metric]
        extractor = self.extractors[kind]
        reference = self.references[kind] if metric in REFERENCE_METRICS else None
        origin = None if reference is None else reference.provenance
        return Protocol(
            num_samples=num_samples,
            extractor=extractor.name,
            weights_sha256=extractor.weights_sha256,
            resize=extractor.resize,
            dtype=extractor.dtype,
            seed=seed,
            weights=weights,
            dataset=None if origin is None else origin.dataset,
            split=None if origin is None else origin.split,
            num_reference=None if reference is None else reference.n,
            fingerprint=None if origin is None else origin.fingerprint,
        )


def dataset_source(dataset: ImageDataset) -> SampleSource:
    """Read generated images from a data set (a folder of samples) in place of a model."""
    return lambda first, n: read_images(dataset, first, n)


def _build(kind: str, weights_path: str | Path | None) -> FeatureExtractor:
    """Build an extractor, on the first process of each machine first, so that only it downloads."""
    # the initial weights, thrown away at once, would move the random state of a training run
    with torch.random.fork_rng(devices=[]):
        return LeNet5() if kind == "lenet5" else first_on_each_machine(lambda: InceptionV3(weights_path))


def first_on_each_machine(build: Callable[[], FeatureExtractor]) -> FeatureExtractor:
    """Run `build` on local rank 0, then on the others; an error of any is raised on all."""
    built: FeatureExtractor | None = None
    local = int(os.environ.get("LOCAL_RANK", world()[0]))
    for turn in (True, False):
        error: Exception | None = None
        if (local == 0) == turn:
            try:
                built = build()
            except Exception as caught:
                error = caught
        raise_together(error)
    if built is None:
        raise RuntimeError("No extractor was built.")
    return built
