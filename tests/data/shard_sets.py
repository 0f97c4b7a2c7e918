"""Small images that tell who they are, as a folder and as shards."""

import numpy as np
from PIL import Image

from lightning_gen.data import ImageFolderDataModule
from lightning_gen.data.shards.writing import ShardWriter

MB = 1e-6


def number_of(image):
    """The number of an image `(C, H, W)`, or of each `(B, C, H, W)`."""
    return image[..., 0, 0, 0].long() + 256 * image[..., 1, 0, 0].long()


def put_folder(root, train=60, val=12, test=10, size=4):
    """Images of two classes, one even and one odd, numbered through all splits; the right half is blank."""
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        for _ in range(count):
            pixels = np.zeros((size, size, 3), np.uint8)
            pixels[:, : size // 2] = number % 256, number // 256, 7
            path = root / split / ("even", "odd")[number % 2] / f"{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            number += 1
    return root


def write(root, out, per_shard=10, **options):
    """Write shards of so many images."""
    source = ImageFolderDataModule(str(root), **options)
    writer = ShardWriter(source, str(out), shard_mb=1.0)
    from lightning_gen.data.shards.plan import _stored_bytes

    writer.shard_mb = (per_shard + 0.5) * _stored_bytes(writer.encoder, source.arrangement.splits["train"]) * MB
    return writer.write()
