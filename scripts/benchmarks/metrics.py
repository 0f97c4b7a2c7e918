"""What a Frechet distance costs: the trace of a square root, and the features."""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Options, Row, Unavailable, alternate, timed
from lightning_gen.metrics import InceptionV3
from lightning_gen.metrics.frechet import frechet_distance_from_features, trace_sqrt_product

TESTS = Path(__file__).resolve().parents[2] / "tests" / "metrics"


def sqrt_trace(options: Options) -> list[Row]:
    """Measure the trace of the root of a product of covariances, of full rank and of less."""
    try:
        from scipy.linalg import sqrtm
    except ImportError as error:
        raise Unavailable("needs scipy: pip install -e '.[bench]'") from error

    def by_scipy(first: Tensor, second: Tensor) -> float:
        return float(sqrtm(first.numpy() @ second.numpy()).real.trace())

    dim = options.size(2048, 32)
    return [
        _trace_row("sqrt_trace/full rank", 3 * dim, dim, by_scipy, options),
        _trace_row("sqrt_trace/rank deficient", dim // 4, dim, by_scipy, options),
    ]


def _trace_row(name: str, n: int, dim: int, by_scipy: Callable[[Tensor, Tensor], float], options: Options) -> Row:
    x, y = _centered(n, dim, seed=0), _centered(n, dim, seed=1)
    first, second = x.T @ x, y.T @ y
    ways: dict[str, Callable[[], float]] = {
        "scipy sqrtm": lambda: by_scipy(first, second),
        "eigenvalues (torchmetrics)": lambda: float(torch.linalg.eigvals(first @ second).sqrt().real.sum()),
        "ours": lambda: trace_sqrt_product(first, second),
    }
    if n < dim:
        ways["ours, from the features"] = lambda: float(torch.linalg.svdvals(x @ y.T).sum())
    values: dict[str, float] = {}

    def keep(lane: str) -> None:
        values[lane] = ways[lane]()

    # a minute a call for the slowest: three rounds say enough
    lanes = {lane: timed(lambda lane=lane: keep(lane), 1, 0) for lane in ways}  # type: ignore[misc]
    row = Row(name, f"trace at d = {dim}, float64", alternate(lanes, min(options.repeats, 3)), options.clock)
    row.compare("ours", "scipy sqrtm", "speedup", goal=10.0)
    row.compare("ours", "eigenvalues (torchmetrics)", "speedup")
    if n < dim:
        row.compare("ours, from the features", "scipy sqrtm", "speedup")
    # exact where the rank is below d; at full rank all ways agree to rounding
    truth = float(torch.linalg.svdvals(x @ y.T).sum()) if n < dim else values["ours"]
    row.facts = {"samples": n} | {
        f"relative {'error' if n < dim else 'difference from ours'}, {lane}": f"{value / truth - 1:+.1e}"
        for lane, value in values.items()
        if n < dim or lane != "ours"
    }
    return row


def _centered(n: int, dim: int, seed: int) -> Tensor:
    """Centered samples (n, dim) float64 over sqrt(n - 1), whose spectrum falls as that of image features does."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64) * scale @ mixing
    return (x - x.mean(0)) / (n - 1) ** 0.5


def features(options: Options) -> list[Row]:
    """Measure images a second through Inception, and compare the distances the features give."""
    theirs, ours, smooth = _extractors()
    n, batch = options.size(64, 2), options.size(32, 2)
    images, others = smooth(n, 10), smooth(n, 11) // 2 + 64
    theirs, ours, shown = theirs.to(options.device), ours.to(options.device), images[:batch].to(options.device)
    lanes = {
        "torch-fidelity": timed(lambda: theirs(shown), 1, 1, options.device),
        "ours": timed(lambda: ours(shown), 1, 1, options.device),
    }
    with torch.no_grad():
        row = Row("features", f"batch of {batch}, 299 x 299", alternate(lanes, options.repeats), options.clock)
        row.compare("ours", "torch-fidelity", "speedup", goal=1.4)
        distances = [
            frechet_distance_from_features(*(_in_batches(extract, side, options.device) for side in (images, others)))
            for extract in (lambda x: theirs(x)[0], lambda x: ours(x).features)
        ]
    error = abs(distances[1] / distances[0] - 1)
    row.facts = {
        f"images a second, {lane}": f"{batch / sorted(getattr(s, options.clock) for s in times)[len(times) // 2]:.2f}"
        for lane, times in row.lanes.items()
    } | {f"relative difference of the FID on {n} images": f"{error:.1e}", "below 1e-5": error < 1e-5}
    return [row]


def _in_batches(extract: Callable[[Tensor], Tensor], images: Tensor, device: str) -> Tensor:
    return torch.cat([extract(part.to(device)).cpu() for part in images.split(32)])


def _extractors() -> tuple[Any, InceptionV3, Callable[[int, int], Tensor]]:
    """Return torch-fidelity's network, ours with the same weights, and a maker of images."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise Unavailable("needs torch-fidelity: pip install torch-fidelity") from error
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from random_inception import random_inception, smooth

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "random.pth"
        torch.save(random_inception(), path)
        theirs = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        return theirs.eval(), InceptionV3(path), smooth
