"""MNIST: 60,000 and 10,000 gray images of handwritten digits, 28x28.

References:
    Gradient-Based Learning Applied to Document Recognition
    https://doi.org/10.1109/5.726791
"""

from typing import Any

from lightning_gen.data.torchvision_sets import TorchvisionDataModule, mnist_files


class MNISTDataModule(TorchvisionDataModule):
    """MNIST in memory; the arguments are those of `TorchvisionDataModule`."""

    name = "mnist"
    native_shape = (1, 28, 28)
    classes = tuple(str(digit) for digit in range(10))
    n_train = 60_000

    def _torchvision_class(self) -> Any:
        from torchvision.datasets import MNIST

        return MNIST

    def _files(self) -> tuple[list[str], list[str]]:
        return mnist_files(self._torchvision_class())
