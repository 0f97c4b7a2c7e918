"""The narrow type of distances between images that follow what a person sees more closely than pixels do."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class PerceptualLoss(nn.Module, ABC):
    """A distance of two images, image by image; a loss, since gradients reach both.

    It has no parameters and no state: nothing of it is trained or in a checkpoint. A subclass that needs weights keeps
    them where the state dict does not look.

    Attributes:
        name: what it is logged as; changes with the weights unless the weights are standard.
    """

    name: str

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `(B,)`, 0 or more, of images in [-1, 1], `(B, C, H, W)`."""

    def check(self, x: Tensor, y: Tensor) -> None:
        """Raise a ValueError where two batches are not of images of the same shape."""
        if x.ndim != 4 or x.shape != y.shape:
            raise ValueError(
                f"{type(self).__name__} compares images of one shape (B, C, H, W), not {tuple(x.shape)} with"
                f" {tuple(y.shape)}."
            )
