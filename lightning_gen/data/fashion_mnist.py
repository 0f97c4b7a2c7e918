"""Fashion-MNIST: 60,000 and 10,000 gray images of clothes, 28x28.

References:
    Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms
    https://arxiv.org/abs/1708.07747
"""

from typing import Any

from lightning_gen.data.torchvision_sets import TorchvisionDataModule, mnist_files


class FashionMNISTDataModule(TorchvisionDataModule):
    """Fashion-MNIST in memory; the arguments are those of `TorchvisionDataModule`."""

    name = "fashion-mnist"
    native_shape = (1, 28, 28)
    classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    n_train = 60_000

    def _torchvision_class(self) -> Any:
        from torchvision.datasets import FashionMNIST

        return FashionMNIST

    def _files(self) -> tuple[list[str], list[str]]:
        return mnist_files(self._torchvision_class())
