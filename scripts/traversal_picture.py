"""Draw what each dimension of a VAE's latents stands for, from a finished run.

    lightning-gen fit -c autoencoder/mnist_beta_vae
    python scripts/traversal_picture.py runs/autoencoder/mnist_beta_vae docs/pictures/autoencoder_mnist_beta_vae.png

Rows are the dimensions whose means differ most over the images of the validation split, most of all first.
"""

import argparse
from pathlib import Path

import torch

from lightning_gen.checkpoint_files import find_checkpoint, load_checkpoint
from lightning_gen.checkpoints import rebuild_data, rebuild_module
from lightning_gen.images import enlarge, from_uint8, image_grid, to_uint8, write_png
from lightning_gen.metrics.reference import read_images


def main() -> None:
    """Draw one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder of a VAE")
    parser.add_argument("out", type=Path, help="PNG file")
    parser.add_argument("--image", type=int, default=0, help="number of the image that is changed (default 0)")
    parser.add_argument("--rows", type=int, default=10, help="dimensions shown (default 10)")
    options = parser.parse_args()
    path = find_checkpoint(options.run)
    content = load_checkpoint(path)
    module, data = rebuild_module(content, path), rebuild_data(content, path)
    if data is None:
        raise SystemExit(f"{path} does not name its data.")
    images = data.split("val")
    means = module.encode(from_uint8(read_images(images, 0, min(1000, len(images))))).flatten(1)
    spread = means.var(0)
    dims = spread.argsort(descending=True)[: options.rows].tolist()
    with torch.no_grad():
        rows = module.traverse(from_uint8(read_images(images, options.image, 1)), dims, (-3.0, 3.0), 11)
    write_png(options.out, enlarge(image_grid(to_uint8(rows.flatten(0, 1)), columns=11)))
    shown = ", ".join(f"{dim} ({float(spread[dim]):.2f})" for dim in dims)
    print(f"{options.out}: dimensions (variance of the means) {shown}")


if __name__ == "__main__":
    main()
