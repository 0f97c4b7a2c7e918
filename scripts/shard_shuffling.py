"""How far the order of shards is from a full shuffle: the table of docs/data.md.

    python scripts/shard_shuffling.py --shards 200 --images 500

No image is read: the order is a function of the numbers of images in the shards.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from marked_tables import filled, markdown
from torch import Tensor

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Measure, record, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--images", type=int, default=500, help="in a shard")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "shard_shuffling.json")
    parser.add_argument("--page", type=Path, default=DOCS / "data.md")
    asked = parser.parse_args()
    from lightning_gen.data.shards.order import BlockOrder
    from lightning_gen.results import environment

    sizes = [asked.images] * asked.shards
    total = asked.shards * asked.images
    generator = torch.Generator().manual_seed(0)
    orders = {"full shuffle": [torch.randperm(total, generator=generator) for _ in range(asked.epochs)]}
    for window, lanes in ((64, 8), (16, 8), (16, 1), (4, 4), (1, 1)):
        orders[f"window {window}, {lanes} lane{'s' * (lanes > 1)}"] = [
            torch.cat([images for _, _, images in BlockOrder(sizes, window, lanes, 0, epoch).from_place(0)])
            for epoch in range(asked.epochs)
        ]
    rows = {name: measured(found, sizes, asked.batch) for name, found in orders.items()}
    setting = {name: getattr(asked, name) for name in ("shards", "images", "batch", "epochs")}
    asked.out.write_text(json.dumps({**setting, "rows": rows, "environment": environment()}, indent=2) + "\n")
    asked.page.write_text(filled(asked.page.read_text(encoding="utf-8"), lambda name: table(rows)), encoding="utf-8")
    print(f"{asked.out}\n{asked.page}")


def table(rows: dict[str, dict[str, float]]) -> str:
    """Write the table."""
    return markdown(
        ("order", "correlation of two epochs", "spread of a shard", "shards in a batch"),
        [
            (name, f"{row['correlation']:.3f}", f"{row['spread']:.2f}", f"{row['shards in a batch']:.1f}")
            for name, row in rows.items()
        ],
    )


def measured(orders: Sequence[Tensor], sizes: Sequence[int], batch: int) -> dict[str, float]:
    """Return statistics of the orders of several epochs.

    Args:
        orders: the images of each epoch in their order.
        sizes: number of images of each shard.
        batch: images a batch.

    Returns:
        "correlation": of the places of an image in two epochs, its root mean square over pairs of epochs that follow
        each other (1 for the same order). "spread": standard deviation of the places of a shard's images, over that of
        a shard spread evenly (1 for a full shuffle). "shards in a batch": how many different ones.
    """
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    places = [np.argsort(order.numpy()) for order in orders]
    total = len(shard_of)
    correlations = [np.corrcoef(one, two)[0, 1] for one, two in itertools.pairwise(places)]
    spreads = [np.std(place[shard_of == shard]) for place in places for shard in range(len(sizes))]
    different = [
        len(np.unique(shard_of[order.numpy()[start : start + batch]]))
        for order in orders
        for start in range(0, total - batch + 1, batch)
    ]
    return {
        "correlation": float(np.sqrt(np.mean(np.square(correlations)))),
        "spread": float(np.mean(spreads) / (total / np.sqrt(12))),
        "shards in a batch": float(np.mean(different)),
    }


if __name__ == "__main__":
    main()
