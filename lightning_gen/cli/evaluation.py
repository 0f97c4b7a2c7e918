"""`lightning-gen evaluate`: scores of a checkpoint or of files, each with its protocol."""

import json
import shlex
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lightning_gen.checkpoints import CheckpointError, rebuild_data
from lightning_gen.cli.failures import UsageError, usage
from lightning_gen.cli.folder import folder_of
from lightning_gen.cli.source import Source, checkpoint_sha256, cond_of, pick_device, stop_on_sigterm
from lightning_gen.data import DATA, ImageFolderDataModule, TensorImages, load_data
from lightning_gen.errors import choose
from lightning_gen.metrics import METRICS, Evaluator, Score, dataset_source
from lightning_gen.results import run_context, write_results

DIGITS = ("mnist", "digits")


def evaluate(options: Namespace, own: dict[str, Any], args: list[str]) -> int:
    """Run the command with its options and the model's own; `args` is how it was typed."""
    stop_on_sigterm()
    begin = time.monotonic()
    samples = Samples(options, own)
    data, origin = _data(options, samples)
    print(f"reference: {origin}, split {options.split}, images {_shown(data.shape)}")
    if tuple(data.shape) != samples.shape:
        raise UsageError(
            f"{samples.name} are {_shown(samples.shape)}, the reference images {_shown(data.shape)} (channels x height"
            " x width): scores compare images of one shape. Give --data_size for another size, or other --data."
        )
    metrics = _metrics(options.metrics, data)
    scores = _measure(samples, data, metrics, options)
    context = {**samples.context(), "reference": origin, "seconds": round(time.monotonic() - begin, 1)}
    context["command"] = shlex.join(["lightning-gen", "evaluate", *args])
    out = Path(options.out) if options.out else samples.folder / "results.json"
    print(table(scores))  # first, for they may have taken hours and the disk may be full
    write_results(out, scores, context)
    print(out)
    return 0


class Samples:
    """The images that are scored: drawn from a checkpoint, or read from files.

    Args:
        options: of the command.
        own: options of the model's own.
    """

    def __init__(self, options: Namespace, own: dict[str, Any]) -> None:
        self.options = options
        self.source: Source | None = None
        self.labels: Tensor | None = None
        if options.ckpt_path is not None:
            self.source = Source(options, own)
            self.shape = tuple(self.source.module.sample_shape)
            self.n: int = options.n or 10_000
            self.seed, self.weights = options.seed, self.source.weights
            self.name, self.device = "The model's samples", self.source.module.device
            self.folder = folder_of(self.source.path) or Path()
            return
        path = Path(options.samples)
        self.images, self.labels = read_samples(path)
        self.shape = tuple(self.images[0]["image"].shape)
        self.n = options.n or len(self.images)
        if self.n > len(self.images):
            raise UsageError(f"--n {self.n}: {path} holds {len(self.images)} images.")
        self.seed, self.weights = None, "files"
        self.name, self.device, self.folder = f"The images of {path}", pick_device(options.device), Path()

    def draw(self, first: int, n: int, classes: int | None = None) -> Tensor:
        """Return images first ... first + n - 1 as bytes; of class i modulo `classes` where that is given."""
        if self.source is None:
            return dataset_source(self.images)(first, n)
        indices = list(range(first, first + n))
        if classes is None:
            return self.source.draw(indices, None)[0]
        return self.source.draw(indices, cond_of(indices, list(range(classes))))[0]

    def context(self) -> dict[str, Any]:
        """Say what was scored, for the results."""
        if self.source is None:
            return {"samples": str(self.options.samples)}
        source = self.source
        return {
            **run_context(source.module),
            "iterations": source.step,
            "checkpoint": str(source.path),
            "checkpoint_sha256": checkpoint_sha256(source.path),
            "options": source.how,
        }


def read_samples(path: Path) -> tuple[Any, Tensor | None]:
    """Read images of an npz, a folder or a zip archive, and their classes where these are told.

    Raises:
        UsageError: where they cannot be read as images.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path)
    # all of the files are samples: none is set apart
    module = ImageFolderDataModule(str(path), labels=False, val_fraction=0.0, test_fraction=0.0, flip=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*leave nothing for.*")
        images = module.split("train")
    record = path / "samples.json"
    labels = json.loads(record.read_text(encoding="utf-8")).get("labels") if record.is_file() else None
    complete = labels and len(labels) == len(images) and None not in labels
    return images, torch.tensor(labels) if complete else None


def _read_npz(path: Path) -> tuple[TensorImages, Tensor | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive["arr_0"] if "arr_0" in archive else archive[archive.files[0]]
            labels = torch.from_numpy(archive["label"]) if "label" in archive else None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise UsageError(f"--samples {path} cannot be read as an npz of images: {error}.") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise UsageError(
            f"--samples {path}: images are uint8 (N, H, W, C) with 1 or 3 channels; the array is {array.dtype}"
            f" {array.shape}."
        )
    return TensorImages(torch.from_numpy(array).permute(0, 3, 1, 2)), labels


def _data(options: Namespace, samples: Samples) -> tuple[Any, str]:
    """Return the data module of the reference, and where it was named."""
    if options.data is not None:
        given = {"root": options.data_root, "size": options.data_size}
        arguments = {key: value for key, value in given.items() if value is not None}
        with usage():
            data: Any = load_data(options.data, **arguments)
        origin = f"{data.name} (--data {options.data})"
    else:
        data, origin = _data_of_checkpoint(samples, options)
    if not (hasattr(data, "split") and hasattr(data, "shape") and hasattr(data, "name")):
        raise UsageError(
            f"A {type(data).__name__} has no `name`, `shape` and `split(name)`, by which evaluate reads real images:"
            " name others with --data."
        )
    data.prepare_data()
    return data, origin


def _data_of_checkpoint(samples: Samples, options: Namespace) -> tuple[Any, str]:
    source = samples.source
    checkpoint = dict(source.checkpoint) if source is not None else {}
    if options.data_root is not None or options.data_size is not None:
        named = {"root": options.data_root, "size": options.data_size}
        changed = {key: value for key, value in named.items() if value is not None}
        key = "datamodule_hyper_parameters"
        checkpoint[key] = {**(checkpoint.get(key) or {}), **changed}
    path = source.path if source is not None else ""
    data = rebuild_data(checkpoint, path)
    if data is None:
        raise CheckpointError(
            f"The checkpoint {path} does not name its data. Say what to compare with: --data {' | '.join(DATA)}, or a"
            " folder of images."
        )
    return data, f"{getattr(data, 'name', type(data).__name__)} (named by the checkpoint)"


def _metrics(given: str | None, data: Any) -> list[str]:
    if given is None:
        return ["fd-lenet5"] if data.name in DIGITS else ["fid", "kid", "is"]
    names = [name.strip() for name in given.split(",") if name.strip()]
    with usage():
        for name in names:
            choose("metric", name, METRICS)
    return names


def _measure(samples: Samples, data: Any, metrics: list[str], options: Namespace) -> list[Score]:
    classes, labels = None, samples.labels
    if "class-accuracy" in metrics:
        if samples.source is not None:
            classes = samples.source.module.num_classes
            labels = torch.arange(samples.n) % classes if classes else None
        if labels is None:
            raise UsageError(
                "class-accuracy asks whether samples are of the class they were asked for, and"
                f" {samples.name[0].lower()}{samples.name[1:]} have none."
            )
    evaluator = Evaluator(
        metrics, weights_path=options.weights_path, device=samples.device, batch_size=options.batch_size
    )
    progress = _Progress()
    if evaluator.needs_reference:
        evaluator.set_reference(data.split(options.split), name=data.name, split=options.split, progress=progress)
    scores = evaluator(
        lambda first, n: samples.draw(first, n, classes),
        samples.n,
        seed=samples.seed,
        weights=samples.weights,
        labels=None if labels is None else labels[: samples.n],
        progress=progress,
    )
    progress.close()
    return list(scores.values())


class _Progress:
    """One bar for each pass over images."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.close()
            self.what = what
            self.bar = tqdm(total=total, desc=what, unit="image")
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def table(scores: list[Score]) -> str:
    """Lay scores out with their protocols."""
    rows = [("SCORE", "VALUE", "PROTOCOL")]
    for score in scores:
        spread = "" if score.std is None else f" +- {score.std:.3g}"
        settings = "".join(f", {key} {value}" for key, value in score.settings.items())
        rows.append((score.name, f"{score.value:.6g}{spread}", score.protocol.describe() + settings))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


def _shown(shape: Any) -> str:
    return "x".join(map(str, shape))
