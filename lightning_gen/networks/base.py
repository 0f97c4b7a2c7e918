"""The two narrow types of adversarial training: what turns latents into images, and what judges images.

A generator maps latents `z` (and class labels, where it is conditional) to images in [-1, 1]; a discriminator
maps images (and labels) to one logit per image, which is a probability only after a sigmoid and a critic's
score under the Wasserstein losses. A network of your own derives from `Generator` or `Discriminator`, calls
the base constructor and `check` at the head of `forward`; everything else in the library then fits it.

References:
    Generative adversarial networks: https://arxiv.org/abs/1406.2661
    Conditional generative adversarial nets: https://arxiv.org/abs/1411.1784
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gen.errors import did_you_mean

ImageShape: TypeAlias = tuple[int, int, int]


class DiscriminatorOutput(NamedTuple):
    """What a discriminator with an auxiliary classifier returns.

    Attributes:
        logits: real against generated, `(B,)`.
        class_logits: the classifier's logits, `(B, K)`.
    """

    logits: Tensor
    class_logits: Tensor | None = None


class Generator(nn.Module, ABC):
    """Latents to images.

    Args:
        latent_dim: length of one latent vector.
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes K of a conditional generator, None for an unconditional one.

    Raises:
        ValueError: where one of them is not positive or the shape is not three numbers.
    """

    latent_dim: int
    image_shape: ImageShape
    num_classes: int | None

    def __init__(self, latent_dim: int, image_shape: Sequence[int], num_classes: int | None = None) -> None:
        super().__init__()
        self.latent_dim = positive(self, "latent_dim", latent_dim)
        self.image_shape = image_shape_of(self, image_shape)
        self.num_classes = num_classes_of(self, num_classes)

    @abstractmethod
    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Make images.

        Args:
            z: latents, `(B, latent_dim)`.
            label: classes in [0, K), int64 `(B,)`; None for an unconditional generator.

        Returns:
            Images in [-1, 1], `(B, C, H, W)`.
        """

    def check(self, z: Tensor, label: Tensor | None) -> None:
        """Raise a ValueError for latents or labels this generator does not take; see `check_label`."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(
                f"{type(self).__name__} takes latents of shape (B, {self.latent_dim}), not "
                f"{tuple(z.shape)}; draw them with torch.randn(n, {self.latent_dim})."
            )
        check_label(self, label, self.num_classes, len(z), required=True)


class Discriminator(nn.Module, ABC):
    """Images to logits.

    Args:
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes K of a conditional discriminator, None for an unconditional one.
        auxiliary: whether it classifies the images instead of being told their classes: `forward` then
            returns a `DiscriminatorOutput` and does without labels.

    Raises:
        ValueError: where one of them is not positive or the shape is not three numbers.
    """

    image_shape: ImageShape
    num_classes: int | None
    auxiliary: bool

    def __init__(self, image_shape: Sequence[int], num_classes: int | None = None, auxiliary: bool = False) -> None:
        super().__init__()
        self.image_shape = image_shape_of(self, image_shape)
        self.num_classes = num_classes_of(self, num_classes)
        self.auxiliary = auxiliary

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | DiscriminatorOutput:
        """Judge images.

        Args:
            x: images in [-1, 1], `(B, C, H, W)`.
            label: classes in [0, K), int64 `(B,)`; None for an unconditional discriminator, and optional
                (not read) for one with an auxiliary classifier.

        Returns:
            Logits `(B,)`, or a `DiscriminatorOutput` where the discriminator carries a classifier.
        """

    def check(self, x: Tensor, label: Tensor | None) -> None:
        """Raise a ValueError for images or labels this discriminator does not take; see `check_label`."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(
                f"{type(self).__name__} takes images of shape (B, {channels}, {height}, {width}), not "
                f"{tuple(x.shape)}; set image_shape to the shape of the data."
            )
        if not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} takes floating-point images in [-1, 1], not {x.dtype}; "
                "lightning_gen.images.from_uint8 converts bytes."
            )
        check_label(self, label, self.num_classes, len(x), required=not self.auxiliary)


def check_floats(net: nn.Module, x: Tensor) -> None:
    """Raise a ValueError for images that are no floating-point numbers."""
    if not x.is_floating_point():
        raise ValueError(
            f"{type(net).__name__} takes images in [-1, 1], not {x.dtype}: lightning_gen.images.from_uint8 converts"
            " bytes."
        )


def check_label(net: nn.Module, label: Tensor | None, num_classes: int | None, batch: int, *, required: bool) -> None:
    """Hold a label against what a network takes.

    Values are read only where that is free of a wait: on the CPU and outside a compiled graph.

    Args:
        net: the network, for the message.
        label: the label given, None for none.
        num_classes: number of classes K, None for an unconditional network.
        batch: number of samples B.
        required: whether a conditional network cannot do without.

    Raises:
        ValueError: for a label that is missing, not wanted, of a wrong type or shape, or outside [0, K).
    """
    name = type(net).__name__
    if num_classes is None:
        if label is not None:
            raise ValueError(
                f"{name} is unconditional and was given a label; "
                "leave the label out, or build the network with num_classes."
            )
        return
    if label is None:
        if required:
            raise ValueError(
                f"{name} is conditional on {num_classes} classes and was given no label; "
                f"pass int64 labels of shape ({batch},)."
            )
        return
    if label.dtype != torch.int64 or label.shape != (batch,):
        raise ValueError(
            f"{name} takes int64 labels of shape ({batch},), not {label.dtype} of shape {tuple(label.shape)}."
        )
    if label.device.type != "cpu" or torch.compiler.is_compiling():
        return
    try:
        low, high = int(label.min()), int(label.max())
    except RuntimeError:  # an empty batch, or inside torch.func.vmap, where no value can be read
        return
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} takes labels in [0, {num_classes - 1}], not from {low} to {high}.")


def check_conditioning(net: nn.Module, conditioning: str, allowed: Collection[str], num_classes: int | None) -> None:
    """Hold the way of conditioning against the number of classes.

    Args:
        net: the network, for the message.
        conditioning: the name given; "none" stands for an unconditional network.
        allowed: the names this network knows.
        num_classes: number of classes K, or None.

    Raises:
        ValueError: for an unknown name, "none" with classes, or any other without.
    """
    name = type(net).__name__
    others = ", ".join(repr(other) for other in allowed if other != "none")
    if conditioning not in allowed:
        hint = did_you_mean(conditioning, allowed)
        raise ValueError(f"{name} knows no conditioning '{conditioning}'; allowed are 'none', {others}.{hint}")
    if conditioning == "none" and num_classes is not None:
        raise ValueError(
            f"{name} was given num_classes={num_classes} and conditioning='none'; "
            f"choose one of {others}, or set num_classes to null (None)."
        )
    if conditioning != "none" and num_classes is None:
        raise ValueError(f"{name} with conditioning='{conditioning}' also needs num_classes.")


def square_size(net: nn.Module, image_shape: ImageShape, allowed: Collection[int]) -> int:
    """Return the side of square images, or raise a ValueError where the network is not built for it."""
    _, height, width = image_shape
    if height != width or height not in allowed:
        sizes = ", ".join(str(size) for size in allowed)
        raise ValueError(
            f"{type(net).__name__} makes or reads square images of side {sizes}, not {height} x {width}; "
            "resize the data, or use a network for any size (MLPGenerator, MLPDiscriminator)."
        )
    return height


def positive(net: nn.Module, name: str, value: int) -> int:
    """Return `value`, or raise a ValueError where it is not a positive integer."""
    if value != int(value) or value < 1:
        raise ValueError(f"{type(net).__name__} takes a positive integer as {name}, not {value!r}.")
    return int(value)


def image_shape_of(net: nn.Module, image_shape: Sequence[int]) -> ImageShape:
    """Return `(C, H, W)` as integers, or raise a ValueError where it is not three positive ones."""
    if len(image_shape) != 3:
        raise ValueError(
            f"{type(net).__name__} takes image_shape as [channels, height, width], not {list(image_shape)}."
        )
    channels, height, width = (positive(net, "each number of image_shape", side) for side in image_shape)
    return channels, height, width


def level_widths(net: nn.Module, channels: int, multipliers: Sequence[float]) -> list[int]:
    """Return the number of channels of every level, or raise a ValueError where they are no whole numbers above 0."""
    name = type(net).__name__
    if not multipliers:
        raise ValueError(f"{name}: channel_multipliers holds one number per level, and there is no level.")
    widths = [int(channels * factor) for factor in multipliers]
    if any(width < 1 or width != channels * factor for width, factor in zip(widths, multipliers, strict=True)):
        raise ValueError(
            f"{name} takes channel_multipliers that make whole numbers of channels={channels}, not {list(multipliers)}."
        )
    return widths


def level_numbers(net: nn.Module, what: str, levels: Sequence[int], count: int) -> list[int]:
    """Return numbers of levels, those from the end (-1 is the last) counted from 0; a ValueError for one too many."""
    if any(not -count <= level < count for level in levels):
        raise ValueError(
            f"{type(net).__name__} with {count} levels takes {what} in [{-count}, {count - 1}], not {levels}."
        )
    return sorted({level % count for level in levels})


def num_classes_of(net: nn.Module, num_classes: int | None) -> int | None:
    """Return the number of classes, or raise a ValueError where it is neither None nor a positive integer."""
    return None if num_classes is None else positive(net, "num_classes", num_classes)
