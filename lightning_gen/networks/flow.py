r"""The narrow type of normalizing flows of images: an invertible map to noise, and what it does to volumes.

With :math:`z = f(x)` and a standard normal prior,

.. math:: \log p(x) = \log \mathcal N(f(x); 0, I) + \log\left|\det \frac{\partial f}{\partial x}\right|.

A network of your own derives from `FlowNetwork`, calls the base constructor and `check` at the head of `forward` and
`inverse`; everything else in the library then fits it.

References:
    Variational Inference with Normalizing Flows
    https://arxiv.org/abs/1505.05770
    Density estimation using Real NVP
    https://arxiv.org/abs/1605.08803
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gen.networks.base import ImageShape, check_label, image_shape_of, num_classes_of


class FlowNetwork(nn.Module, ABC):
    """Images to noise of the same shape, and back.

    Args:
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes K, None for a network without classes.
        null_class: whether there is a class K, "none": what guidance by classes needs.

    Raises:
        ValueError: where a number is not positive or the shape is not three numbers.
    """

    # called besides `forward`, which strategies that shard have to know
    forward_methods = ("inverse",)

    def __init__(self, image_shape: Sequence[int], num_classes: int | None = None, null_class: bool = True) -> None:
        super().__init__()
        self.image_shape: ImageShape = image_shape_of(self, image_shape)
        self.num_classes = num_classes_of(self, num_classes)
        self.null_class = null_class and num_classes is not None

    @property
    def label_rows(self) -> int:
        """Rows of a table of classes: K, and one for "none" where there is that class."""
        return (self.num_classes or 0) + self.null_class

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images to noise.

        Args:
            x: images, of a density in the range of [-1, 1], `(B, C, H, W)`.
            label: classes in [0, K), or K for "none", int64 `(B,)`; None for a network without classes.

        Returns:
            z `(B, C, H, W)` and the logarithm of the Jacobian's determinant in nats, `(B,)`, float32 or wider.
        """

    @abstractmethod
    def inverse(
        self, z: Tensor, label: Tensor | None = None, guidance: float = 1.0, weak_temperature: float = 1.0
    ) -> Tensor:
        """Map noise to images; neither the noise nor the network is changed by it.

        Args:
            z: noise, `(B, C, H, W)`.
            label: as `forward` takes it.
            guidance: how far to go from a weaker prediction to the network's own, and beyond; 1 is the network's own.
            weak_temperature: what the weaker prediction's attention is smoothed by, for networks of attention; 1 leaves
                it.

        Returns:
            x `(B, C, H, W)`, the inverse of `forward` where the guidance is 1.

        Raises:
            ValueError: for guidance where there is no weaker prediction.
        """

    def check(self, x: Tensor, label: Tensor | None) -> None:
        """Raise a ValueError for images, noise or labels this network does not take."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(
                f"{type(self).__name__} takes images and noise of shape (B, {channels}, {height}, {width}), not"
                f" {tuple(x.shape)}; set image_shape to the shape of the data."
            )
        check_label(self, label, self.label_rows or None, len(x), required=True)

    def check_guidance(self, guidance: float, weak_temperature: float) -> None:
        """Raise a ValueError for guidance where nothing makes a prediction weaker, or a temperature out of range."""
        if not weak_temperature > 0:
            raise ValueError(f"weak_temperature is above 0, 1 for none; given was {weak_temperature}.")
        if guidance != 1 and not self.null_class and weak_temperature == 1:
            raise ValueError(
                f"This {type(self).__name__} has no class 'none' to guide away from: give a weak_temperature above 1,"
                " which smooths the attention of the weaker prediction, or build the network with num_classes and"
                " null_class."
            )
