"""What every augmentation of the discriminator's input is: a differentiable, random map of images.

The same augmentation is applied to real and generated images, in the discriminator's and in the generator's
step, so that the generator learns the clean distribution.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gen.errors import did_you_mean


class Augmentation(nn.Module, ABC):
    """Base class of the augmentations."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Augment each image by itself, with random numbers from the global generator of the images' device.

        Args:
            x: images, (B, C, H, W), in [-1, 1].

        Returns:
            Images of the same shape, dtype and device, differentiable twice with respect to `x`; they may
            leave [-1, 1].
        """

    def update(self, real_logits: Tensor, batch_size: int) -> None:
        """Adapt to the discriminator, once a batch of real images; does nothing unless overridden.

        Args:
            real_logits: this process's logits of augmented real training images, (B,).
            batch_size: number of this process's images in the batch.
        """


def parse_names(what: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Split a comma list and hold each name to the allowed ones.

    Args:
        what: what a name stands for, as the message shall call it.
        text: the comma list; blanks around a name and an empty list are fine.
        allowed: the names allowed.

    Returns:
        The names, in the order given.

    Raises:
        ValueError: for a name that is not allowed (with the nearest ones) or given twice.
    """
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    for i, name in enumerate(names):
        if name not in allowed:
            raise ValueError(
                f"There is no {what} '{name}' (in '{text}'); allowed is a comma list of: {', '.join(allowed)}."
                f"{did_you_mean(name, allowed)}"
            )
        if name in names[:i]:
            raise ValueError(f"The {what} '{name}' is given twice in '{text}'; name each once.")
    return names
