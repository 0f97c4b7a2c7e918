"""Train the LeNet-5 that the digit scores are computed with, and record how good it is.

    python scripts/train_lenet5.py --data DATA

DATA holds MNIST in torchvision's layout (DATA/MNIST/raw). The test images are looked at once, at the end: the
number of epochs is fixed beforehand. Another run on another machine gives other weights, so another name for the
scores; the shipped file is the reference, this script says where it comes from.
"""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import lightning_gen
from lightning_gen.metrics.extractors import file_sha256
from lightning_gen.metrics.lenet import WEIGHTS, LeNet5, LeNet5Network

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LIGHTNING_GEN_DATA", "./data"))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="safetensors file to write")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/lenet5_mnist.json")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--scale", type=float, nargs=2, default=(0.8, 1.3), help="range of the random zoom")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def mnist(root: str, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) uint8 and labels (N,)."""
    from torchvision.datasets import MNIST

    try:
        data = MNIST(root, train=train, download=False)
    except RuntimeError as error:
        raise SystemExit(
            f"MNIST not found under {root}/MNIST/raw. Give its folder with --data, or get it with "
            f"python -c \"from torchvision.datasets import MNIST; MNIST('{root}', download=True)\""
        ) from error
    return data.data[:, None], data.targets


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits (1797, 1, 8, 8) uint8 and labels, white on black like MNIST."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)
    return images[:, None], torch.from_numpy(data.target).long()


def augment(x: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Shift by up to 2 pixels, rotate by up to 10 degrees, zoom by `scale`, each image by its own draw.

    The zoom above 1 is for digits that fill their frame, as those of 8 x 8 pixels do.
    """
    u = torch.rand(4, len(x), generator=generator)
    angle = (u[0] - 0.5) * math.radians(20)
    zoom = 1 / (scale[0] + (scale[1] - scale[0]) * u[1])
    shift = (u[2:] - 0.5) * (2 * 2 * 2 / 28)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift[0]], -1), torch.stack([sin, cos, shift[1]], -1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def train(images: Tensor, labels: Tensor, args: argparse.Namespace) -> LeNet5Network:
    """Train on all the images for a fixed number of epochs."""
    torch.manual_seed(args.seed)
    network = LeNet5Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.01)
    steps = args.epochs * math.ceil(len(images) / args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(args.seed)
    for epoch in range(args.epochs):
        begin, total = time.monotonic(), 0.0
        for index in torch.randperm(len(images), generator=generator).split(args.batch_size):
            x = augment(images[index].float() / 255, args.scale, generator)
            loss = F.cross_entropy(network(x), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        seconds = time.monotonic() - begin
        print(f"epoch {epoch + 1}/{args.epochs}  loss {total / len(images):.4f}  {seconds:.1f} s", flush=True)
    return network


def accuracy(extractor: LeNet5, images: Tensor, labels: Tensor) -> float:
    """Share of the images given their class."""
    shares = [
        extractor.class_accuracy(x, y) * len(x) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    ]
    return round(sum(shares) / len(images), 6)


def commit() -> str | None:
    """Commit of the working tree, None outside of a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    """Train, write the weights, measure, write the result."""
    args = parse()
    torch.set_num_threads(args.threads)
    images, labels = mnist(args.data, train=True)
    begin = time.monotonic()
    network = train(images, labels, args)
    minutes = (time.monotonic() - begin) / 60

    # no date and no path in the file, so that the same weights have the same hash
    metadata = {"network": "LeNet-5, ReLU, max pooling", "input": "(B, 1, 28, 28) in [0, 1], white on black"}
    metadata |= {"data": "MNIST train, 60000", "seed": str(args.seed), "epochs": str(args.epochs)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, partial, metadata)
    partial.chmod(0o644)  # safetensors writes for the owner alone, and the file is shipped
    partial.replace(args.out)

    extractor = LeNet5(args.out)
    command = [
        f"--{key} {value}" for key, value in vars(args).items() if key not in ("data", "out", "results", "scale")
    ]
    result = {
        "what": "LeNet-5 trained on MNIST, the network of the scores fd-lenet5 and class-accuracy",
        "name": extractor.name,
        "sha256": file_sha256(args.out),
        "accuracy": {
            "mnist test, 10000": accuracy(extractor, *mnist(args.data, train=False)),
            "mnist train, 60000": accuracy(extractor, images, labels),
            "scikit-learn digits, 1797, 8x8 resized to 28x28": accuracy(extractor, *digits()),
        },
        "command": " ".join(
            ["python scripts/train_lenet5.py --data DATA", *command, "--scale", *(f"{x:g}" for x in args.scale)]
        ),
        "minutes": round(minutes, 2),
        "device": f"CPU, {args.threads} thread(s)",
        "versions": {
            "lightning_gen": lightning_gen.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"weights: {args.out}\nresult:  {args.results}", file=sys.stderr)


if __name__ == "__main__":
    main()
