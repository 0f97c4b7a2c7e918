"""`lightning-gen shards`: a folder or archive of images as shards."""

import sys
from argparse import Namespace

from lightning_gen.cli.failures import usage
from lightning_gen.data.folder import ImageFolderDataModule
from lightning_gen.data.shards.index import INDEX, Index
from lightning_gen.data.shards.writing import ShardWriter


def shards(options: Namespace) -> int:
    """Run the command."""
    names = ("size", "resize", "filter", "channels", "val_fraction", "test_fraction", "on_error", "name", "seed")
    given = {name: getattr(options, name) for name in names}
    with usage():
        source = ImageFolderDataModule(options.source, labels=not options.no_labels, cache="none", **given)
        writer = ShardWriter(source, options.out, options.shard_mb, options.jpeg_quality)
    print(summary(writer.write(_progress), options.out))
    return 0


def summary(index: Index, out: str) -> str:
    """Say what there is."""
    lines = []
    for split, found in index.splits.items():
        size = sum(shard.bytes for shard in found) / 1e6
        lost = index.left_out.get(split, 0)
        lines.append(
            f"{split}: {sum(shard.images for shard in found)} images in {len(found)} shards, {size:.1f} MB"
            + (f", {lost} left out" if lost else "")
        )
    lines += [f"{split}: as {other}" for split, other in index.stand_ins.items()]
    classes = "no classes" if index.class_names is None else f"{len(index.class_names)} classes"
    shape = " x ".join(map(str, index.shape))
    return "\n".join([*lines, f"{shape}, {classes}", f"{out.rstrip('/')}/{INDEX}"])


def _progress(file: str, done: int, total: int) -> None:
    """Write a line over the last one, where a person looks on."""
    if sys.stderr.isatty():
        print(f"\r{file}: {done} of {total} shards", end="\n" if done == total else "", file=sys.stderr, flush=True)
