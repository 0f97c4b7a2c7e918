"""CIFAR-10: 50,000 and 10,000 color photographs of ten classes, 32x32.

References:
    Learning Multiple Layers of Features from Tiny Images
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

from typing import Any

from lightning_gen.data.torchvision_sets import TorchvisionDataModule, cifar_files


class CIFAR10DataModule(TorchvisionDataModule):
    """CIFAR-10 in memory, flipped in training; the arguments are those of `TorchvisionDataModule`."""

    name = "cifar10"
    native_shape = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    n_train = 50_000
    flips_by_default = True

    def _torchvision_class(self) -> Any:
        from torchvision.datasets import CIFAR10

        return CIFAR10

    def _files(self) -> tuple[list[str], list[str]]:
        return cifar_files(self._torchvision_class())
