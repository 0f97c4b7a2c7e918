"""`lightning-gen sample`: images from a checkpoint, in batches, stopped and continued at will."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_gen import __version__
from lightning_gen.cli.failures import UsageError
from lightning_gen.cli.folder import folder_of
from lightning_gen.cli.sample_files import NPZ, PNGFolder, SampleFiles
from lightning_gen.cli.source import Source, checkpoint_sha256, classes_of, cond_of, stop_on_sigterm
from lightning_gen.images import enlarge, image_grid, write_png

ENDINGS = {"npz": ".npz", "grid": ".png", "png": ""}
# what a file is called, and no folder
NO_FOLDERS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".zip", ".npy", ".pt", ".json")


def sample(options: Namespace, own: dict[str, Any]) -> int:
    """Run the command with its options and the model's own."""
    stop_on_sigterm()
    kind = _format(options)
    source = Source(options, own)
    classes = classes_of(options.cond, source.module)
    out = Path(options.out) if options.out else _default_out(source, options, own, kind)
    if kind == "grid":
        _write_grid(source, classes, out, options)
    else:
        files = (PNGFolder if kind == "png" else NPZ)(out, options.n, _record(source, options, own, classes))
        _write_files(source, classes, files, options)
    print(out)
    return 0


def _format(options: Namespace) -> str:
    ending = Path(options.out).suffix.lower() if options.out else ""
    kind = options.format or {".npz": "npz", ".png": "grid"}.get(ending, "png")
    wrong = {"npz": ending != ".npz", "grid": ending != ".png", "png": ending in (".png", ".npz")}[kind]
    if options.out and wrong:
        raise UsageError(
            f"--format {kind} writes {'a folder' if kind == 'png' else f'a file *{ENDINGS[kind]}'};"
            f" --out {options.out} names something else."
        )
    if options.out and not options.format and ending in NO_FOLDERS:
        raise UsageError(
            f"--out {options.out}: samples are written as a folder of PNG files (a name without an ending), as .npz or"
            " as a grid (.png). For a folder of this name add --format png."
        )
    return str(kind)


def _default_out(source: Source, options: Namespace, own: dict[str, Any], kind: str) -> Path:
    parts = [f"{source.step:07d}", source.weights, f"seed{options.seed}"]
    parts += [f"cond-{options.cond.replace(',', '-')}"] if options.cond else []
    parts += [f"{key}{value}" for key, value in own.items()]
    parts += [f"n{options.n}"] if kind != "png" else []
    folder = folder_of(source.path) or Path()
    return folder / "samples" / ("_".join(parts) + ENDINGS[kind])


def _record(source: Source, options: Namespace, own: dict[str, Any], classes: list[int] | None) -> dict[str, Any]:
    return {
        "checkpoint": str(source.path),
        "checkpoint_sha256": checkpoint_sha256(source.path),
        "iterations": source.step,
        "weights": source.weights,
        "seed": options.seed,
        "cond": classes,
        "options": own,
        "shape": list(source.module.sample_shape),
        "labeled": source.tells_classes(classes),
        "lightning_gen": __version__,
    }


def _write_files(source: Source, classes: list[int] | None, files: SampleFiles, options: Namespace) -> None:
    missing = files.missing()
    if not missing:
        print(f"all {files.n} samples are there already", file=sys.stderr)
    bar = tqdm(total=files.n, initial=files.n - len(missing), unit="image", desc=f"{source.weights} weights")
    try:
        with bar:
            for first in range(0, len(missing), options.batch_size):
                indices = missing[first : first + options.batch_size]
                files.add(indices, *source.draw(indices, cond_of(indices, classes)))
                bar.update(len(indices))
    except BaseException:
        files.stop()
        raise
    files.finish()


def _write_grid(source: Source, classes: list[int] | None, out: Path, options: Namespace) -> None:
    batches = []
    with tqdm(total=options.n, unit="image", desc=f"{source.weights} weights") as bar:
        for first in range(0, options.n, options.batch_size):
            indices = list(range(first, min(first + options.batch_size, options.n)))
            batches.append(source.draw(indices, cond_of(indices, classes))[0])
            bar.update(len(indices))
    # a class a column, where that is a picture and not a strip
    columns = len(classes) if classes and 1 < len(classes) <= 2 * options.n**0.5 else None
    write_png(out, enlarge(image_grid(torch.cat(batches), columns)))
