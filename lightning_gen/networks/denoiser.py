"""The narrow type of denoising networks: noisy images, a noise label and a condition to an image.

What the output means (noise, image, velocity) is the parameterization's affair; the noise label is a number
per sample that it makes of the time. A network of your own derives from `DenoisingNetwork`, calls its
constructor and `check` at the head of `forward`; everything else in the library then fits it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_gen.networks.base import ImageShape, check_label, image_shape_of, num_classes_of


class Condition(NamedTuple):
    """What a sample is asked to be; every entry is optional.

    Attributes:
        label: classes, int64 `(B,)`; the number of classes K stands for "no class".
        vector: one vector a sample, `(B, V)`; zeros stand for "none".
        tokens: a sequence a sample, `(B, L, D)`; zeros stand for "none".
        mask: which tokens are there, bool `(B, L)`; None for all.
        image: a picture put beside the noisy one, `(B, C', H, W)`.
        augment: how the training image was augmented, `(B, A)`; zeros for not at all.
    """

    label: Tensor | None = None
    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    image: Tensor | None = None
    augment: Tensor | None = None

    def dropped(self, where: Tensor, num_classes: int | None) -> "Condition":
        """Leave class, vector and tokens out, of the same samples; pictures and augmentations stay.

        Args:
            where: which samples, bool `(B,)`.
            num_classes: K, the label that stands for "no class".
        """
        label = None if self.label is None else torch.where(where, num_classes or 0, self.label)
        vector = None if self.vector is None else self.vector.masked_fill(where[:, None], 0.0)
        tokens = None if self.tokens is None else self.tokens.masked_fill(where[:, None, None], 0.0)
        return self._replace(label=label, vector=vector, tokens=tokens)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """Apply a function to every tensor."""
        return Condition(*(None if value is None else function(value) for value in self))


class DenoisingNetwork(nn.Module, ABC):
    """Noisy images to images of the same shape, or of twice the channels where a variance is learned.

    Args:
        image_shape: `(C, H, W)` of the data.
        num_classes: number of classes K, None for a network without classes.
        null_class: whether there is a class K, "none": what classifier-free guidance needs.
        learned_variance: whether the output has 2 C channels.
        vector_dim: length of the condition's vector, 0 for none.
        token_dim: width of the condition's tokens, 0 for none.
        image_channels: channels of the condition's picture, 0 for none.
        augment_dim: length of the augmentation's description, 0 for none.
        two_times: whether the network is told a second time, as MeanFlow needs.

    Raises:
        ValueError: where a number is out of range.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int | None = None,
        null_class: bool = True,
        learned_variance: bool = False,
        vector_dim: int = 0,
        token_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        two_times: bool = False,
    ) -> None:
        super().__init__()
        self.image_shape: ImageShape = image_shape_of(self, image_shape)
        self.num_classes = num_classes_of(self, num_classes)
        self.null_class = null_class and num_classes is not None
        self.learned_variance, self.two_times = learned_variance, two_times
        self.vector_dim, self.token_dim = vector_dim, token_dim
        self.image_channels, self.augment_dim = image_channels, augment_dim
        for name in ("vector_dim", "token_dim", "image_channels", "augment_dim"):
            if getattr(self, name) < 0:
                raise ValueError(f"{type(self).__name__}: {name} is 0 (none) or more, not {getattr(self, name)}.")

    @property
    def in_channels(self) -> int:
        """Channels of what the first layer sees."""
        return self.image_shape[0] + self.image_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.image_shape[0] * (2 if self.learned_variance else 1)

    @property
    def label_rows(self) -> int:
        """Rows of a table of classes: K, and one for "none" where there is that class."""
        return (self.num_classes or 0) + self.null_class

    @property
    def conditional(self) -> bool:
        """Whether there is anything that guidance could leave out; classes without a "none" cannot be."""
        return self.null_class or (self.num_classes is None and (self.vector_dim > 0 or self.token_dim > 0))

    def blocks_to_shard(self) -> list[nn.Module]:
        """List the blocks that are called one after the other and of which one at a time is to be in memory.

        Each is a module of its own, called as one; what is in none of them is kept together with the network.
        """
        return []

    @abstractmethod
    def forward(
        self, x: Tensor, noise_label: Tensor, cond: Condition | None = None, second_label: Tensor | None = None
    ) -> Tensor:
        """Estimate what the parameterization asks for.

        Args:
            x: scaled noisy images, `(B, C, H, W)`.
            noise_label: `(B,)`, the time as the parameterization tells it; embedded in float32 or wider.
            cond: the condition, its picture of the same height and width; None for none.
            second_label: the second time `(B,)` of a network with two times.

        Returns:
            `(B, C, H, W)`, or `(B, 2 C, H, W)` where a variance is learned.
        """

    def check(self, x: Tensor, cond: Condition | None, second_label: Tensor | None = None) -> Condition:
        """Hold what `forward` was given against what the network takes; return the condition.

        Raises:
            ValueError: says what was given and what is taken.
        """
        name = type(self).__name__
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(
                f"{name} takes images of shape (B, {channels}, {height}, {width}), not {tuple(x.shape)};"
                " set image_shape to the shape of the data."
            )
        cond = Condition() if cond is None else cond
        check_label(self, cond.label, self.label_rows or None, len(x), required=True)
        height, width = x.shape[2:]
        for what, given, shape in (
            ("vector", cond.vector, (len(x), self.vector_dim)),
            ("tokens", None if cond.tokens is None else cond.tokens[:, :1], (len(x), 1, self.token_dim)),
            ("image", cond.image, (len(x), self.image_channels, height, width)),
        ):
            if (given is not None) != (shape[-1 if what != "image" else 1] > 0):
                raise ValueError(f"{name} {'was given' if given is not None else 'needs'} the condition's {what}.")
            if given is not None and tuple(given.shape) != shape:
                raise ValueError(f"{name} takes {what} of shape {shape}, not {tuple(given.shape)}.")
        if cond.mask is not None and (cond.tokens is None or cond.mask.shape != cond.tokens.shape[:2]):
            told = "no tokens" if cond.tokens is None else f"tokens of shape {tuple(cond.tokens.shape)}"
            raise ValueError(f"{name} was given a mask of shape {tuple(cond.mask.shape)} for {told}.")
        if cond.augment is not None and cond.augment.shape != (len(x), self.augment_dim):
            raise ValueError(
                f"{name} takes {self.augment_dim} numbers of the augmentation, not {tuple(cond.augment.shape)}."
            )
        if (second_label is not None) != self.two_times:
            raise ValueError(
                f"{name} has two_times={self.two_times} and was {'' if second_label is not None else 'not '}given a"
                " second time."
            )
        return cond
