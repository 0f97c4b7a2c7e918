"""LeNet-5 for digits: features for a Frechet distance and a classifier, with weights shipped in the package.

28 x 28 -> conv 5x5, 6 -> pool -> conv 5x5, 16 -> pool -> 120 -> 84 (the features) -> 10 logits; 61,706 weights.
The layers are those of the paper (figure 2), with ReLU and max pooling in place of the scaled tanh and the
trainable average, and full connections between the two convolutions.

Distances on its features are named `fd-lenet5-<hash8>`, never FID: their size moves with the weights, so one
file is shipped and its hash is part of the name. It knows ten digits in one channel and nothing else.

References:
    - Gradient-based learning applied to document recognition. https://doi.org/10.1109/5.726791
    - Kernel inception scores on digits by a LeNet: Demystifying MMD GANs. https://arxiv.org/abs/1801.01401
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.errors import MissingData
from lightning_gen.metrics.extractors import Extraction, FeatureExtractor, file_sha256

WEIGHTS = Path(__file__).parent / "weights" / "lenet5_mnist.safetensors"


class LeNet5Network(nn.Module):
    """The network alone, without weights: (B, 1, 28, 28) in [0, 1], white on black -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def features(self, x: Tensor) -> Tensor:
        """Activations (B, 84) of the last hidden layer."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return F.relu(self.fc2(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        logits: Tensor = self.fc3(self.features(x))
        return logits


class LeNet5(FeatureExtractor):
    """LeNet-5 trained on MNIST as a feature extractor and classifier of one-channel digits, white on black.

    Args:
        weights_path: a safetensors file of `scripts/train_lenet5.py`; None takes the file shipped in the package.

    Raises:
        MissingData: no such file.
        ValueError: the file holds another network.
    """

    dim = 84
    resize = "28x28 antialiased bilinear"
    image_channels = 1

    def __init__(self, weights_path: str | Path | None = None) -> None:
        super().__init__()
        self.network = LeNet5Network()
        path = WEIGHTS if weights_path is None else Path(weights_path)
        self.weights_sha256 = _load(self.network, path)
        self.name = f"lenet5-{self.weights_sha256[:8]}"
        self.freeze()

    def forward(self, images: Tensor) -> Extraction:
        """Extract features and logits.

        Args:
            images: (B, 1, H, W) uint8, white on black; other sizes are resized to 28 x 28.

        Returns:
            Features (B, 84) and logits (B, 10).

        Raises:
            ValueError: not uint8, not four dimensions, or not one channel.
        """
        self.check(images)
        x = images.to(self.network.conv1.weight.dtype) / 255
        if x.shape[-2:] != (28, 28):
            x = F.interpolate(x, size=(28, 28), mode="bilinear", antialias=True, align_corners=False)
        features = self.network.features(x)
        return Extraction(features, self.network.fc3(features))

    def check(self, images: Tensor) -> None:
        """Refuse what is not a batch of one-channel uint8 images."""
        super().check(images)
        if images.shape[1] != 1:
            raise ValueError(
                f"{self.name} scores one-channel images of digits, got {images.shape[1]} channels "
                f"(shape {tuple(images.shape)}). Use the Inception metrics 'fid', 'kid', 'is' for other images."
            )

    @torch.no_grad()
    def class_accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Share of images that the network gives the intended class.

        Args:
            images: (B, 1, H, W) uint8.
            labels: (B,) int64 intended classes, 0 to 9.

        Returns:
            Share in [0, 1].

        Raises:
            ValueError: the number of labels is not the number of images, or a label is not a digit.
        """
        if labels.shape != (len(images),) or len(images) == 0:
            raise ValueError(f"Expected one label an image, got {tuple(labels.shape)} for {len(images)} images.")
        logits = self(images).logits
        return correct(logits, labels) / len(images)


def correct(logits: Tensor, labels: Tensor) -> int:
    """Count the rows of logits (B, K) whose largest entry is that of the label (B,).

    Raises:
        ValueError: a label outside 0 .. K - 1.
    """
    classes = logits.shape[1]
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ValueError(
            f"Labels must lie in 0 .. {classes - 1}, got {int(labels.min())} .. {int(labels.max())}: "
            "class accuracy is defined for digits only."
        )
    return int((logits.argmax(1) == labels.to(logits.device)).sum())


def _load(network: nn.Module, path: Path) -> str:
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingData(
            f"LeNet-5 weights not found at {path}. Make them with 'python scripts/train_lenet5.py --out {path}' "
            "or leave out `weights_path` to use the ones shipped in the package."
        )
    try:
        network.load_state_dict(load_file(path))
    except Exception as error:
        raise ValueError(
            f"{path} is not a LeNet-5 of this package ({error}). Give a file that scripts/train_lenet5.py wrote."
        ) from error
    return file_sha256(path)
