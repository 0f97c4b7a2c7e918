"""`lightning-gen latents`: the latents of a codec for a data set, cached on disk."""

import sys
from argparse import Namespace

from lightning_gen.cli.failures import usage
from lightning_gen.cli.source import pick_device, stop_on_sigterm
from lightning_gen.codec import TrainedCodec
from lightning_gen.data import load_data
from lightning_gen.data.latent_index import LATENTS
from lightning_gen.latent_cache import LatentWriter


def latents(options: Namespace) -> int:
    """Run the command."""
    stop_on_sigterm()
    given = {"root": options.data_root, "size": options.data_size, "on_error": options.on_error}
    with usage():
        codec = TrainedCodec(options.codec, options.weights).to(pick_device(options.device))
        data = load_data(options.data, **{name: value for name, value in given.items() if value is not None})
        writer = LatentWriter(
            codec, data, options.out, options.shard_mb, options.batch_size, options.dtype, options.flip
        )
    index = writer.write(_progress)
    for split, files in [*index.splits.items(), *([("mirrored", index.mirrored)] if options.flip else [])]:
        size = sum(file.bytes for file in files) / 1e6
        print(f"{split}: {sum(file.images for file in files)} latents in {len(files)} files, {size:.1f} MB")
    print(f"{' x '.join(map(str, index.shape))}, codec {index.codec}")
    print(writer.out / LATENTS)
    return 0


def _progress(file: str, done: int, total: int) -> None:
    """Write a line over the last one, where a person looks on."""
    if sys.stderr.isatty():
        print(f"\r{file}: {done} of {total} files", end="\n" if done == total else "", file=sys.stderr, flush=True)
