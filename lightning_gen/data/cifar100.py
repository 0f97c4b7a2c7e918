"""CIFAR-100: 50,000 and 10,000 color photographs of a hundred classes, 32x32.

References:
    Learning Multiple Layers of Features from Tiny Images
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

from typing import Any

from lightning_gen.data.torchvision_sets import TorchvisionDataModule, cifar_files

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR100DataModule(TorchvisionDataModule):
    """CIFAR-100 (fine labels) in memory, flipped in training; the arguments are those of `TorchvisionDataModule`."""

    name = "cifar100"
    native_shape = (3, 32, 32)
    classes = tuple(_CLASSES.split())
    n_train = 50_000
    flips_by_default = True

    def _torchvision_class(self) -> Any:
        from torchvision.datasets import CIFAR100

        return CIFAR100

    def _files(self) -> tuple[list[str], list[str]]:
        return cifar_files(self._torchvision_class())
