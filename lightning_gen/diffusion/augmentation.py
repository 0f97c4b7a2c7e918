r"""Augmentation that does not leak into samples: the network is told what was done to each training image.

With images :math:`T_a x_0` and a network that is given the parameters a, samples drawn with a = 0, "not augmented",
are like the images themselves. Every transform happens with probability p, in the order of the table, n being
standard normal and lengths in parts of the image's:

| transform             | parameters                                       | told                                     |
|-----------------------|--------------------------------------------------|------------------------------------------|
| `x_flip`              | i of {0, 1}, left-right; whatever p, unless 0    | i                                        |
| `y_flip`              | i of {0, 1}, up-down                             | i                                        |
| `rot90`               | k of {0, 1, 2, 3} quarter turns                  | cos - 1, sin                             |
| `integer_translation` | t from U(-1/8, 1/8) in x and y, to whole pixels  | 8 t of both                              |
| `scaling`             | by 2^(0.2 n)                                     | n                                        |
| `rotation`            | by r from U(-pi, pi)                             | cos r - 1, sin r                         |
| `anisotropy`          | by 2^(0.2 \|n\|) along r from U(-pi, pi), by the inverse across | \|n\| cos r, \|n\| sin r  |
| `translation`         | by n/8 in x and y                                | n of both                                |

The paper's setting for CIFAR-10, and the default here, is all but `rot90` and `integer_translation`: nine numbers,
p = 0.12. For the anisotropy the paper takes n with its sign; as (-n, r + pi) is told like (n, r) and undoes it, here
it goes without. The transforms are distributed the same.

The first four move pixels exactly, beyond the border mirrored. The others are one affine map, see `gan/warp`, whose
filters may take values a little out of [-1, 1].

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (appendix F.2)
    https://arxiv.org/abs/2206.00364
"""

import math

import torch
from torch import Tensor

from lightning_gen.gan import ada_transforms as maps
from lightning_gen.gan.augmentation import parse_names
from lightning_gen.gan.warp import warp
from lightning_gen.seeding import RandomStream

# the numbers that tell of each transform
TOLD = {
    "x_flip": 1,
    "y_flip": 1,
    "rot90": 2,
    "integer_translation": 2,
    "scaling": 1,
    "rotation": 2,
    "anisotropy": 2,
    "translation": 2,
}
AFFINE = ("scaling", "rotation", "anisotropy", "translation")


class NonLeakyAugmentation:
    """Random transforms of training images, with the numbers that tell of them.

    Args:
        p: probability of each transform, 0 to 1.
        transforms: comma list of the transforms, see the table of this module; the order of application is fixed.
            Leave out what changes the meaning of the images: `x_flip` and `y_flip` for digits, for instance.

    Raises:
        ValueError: for a probability out of range or an unknown transform, with the nearest names.
    """

    def __init__(
        self, p: float = 0.12, transforms: str = "x_flip,y_flip,scaling,rotation,anisotropy,translation"
    ) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability, 0 to 1; given was {p}.")
        chosen = parse_names("transform", transforms, list(TOLD))
        self.p, self.transforms = p, tuple(name for name in TOLD if name in chosen)

    @property
    def augment_dim(self) -> int:
        """How many numbers tell of the transforms of an image: the network's `augment_dim`."""
        return sum(TOLD[name] for name in self.transforms)

    def __call__(self, images: Tensor, stream: RandomStream) -> tuple[Tensor, Tensor]:
        """Augment each image by itself.

        Args:
            images: `(B, C, H, W)`, in [-1, 1].
            stream: all random numbers.

        Returns:
            The images, bit by bit where nothing was done to one, and what was done, `(B, augment_dim)`.

        Raises:
            ValueError: where images that are not square are to be turned by a quarter.
        """
        height, width = images.shape[2:]
        kind = torch.float64 if images.dtype == torch.float64 else torch.float32
        told = {name: self._draw(name, stream, height, width, kind) for name in self.transforms}
        moved = self.apply(images, told)
        if not told:
            return moved, images.new_zeros(len(images), 0)
        return moved, torch.cat([told[name] for name in self.transforms], dim=1).to(images.dtype)

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """Take the numbers `(B, augment_dim)` apart: those of each transform, `(B, 1 or 2)`."""
        sizes = [TOLD[name] for name in self.transforms]
        return dict(zip(self.transforms, torch.split(vector, sizes, dim=1), strict=True))

    def apply(self, images: Tensor, told: dict[str, Tensor]) -> Tensor:
        """Do to images `(B, C, H, W)` what the numbers of each transform tell, see `parts`."""
        images = _blitted(images, told)
        affine = {name: value for name, value in told.items() if name in AFFINE}
        if not affine:
            return images
        moves = torch.stack([(value != 0).any(dim=1) for value in affine.values()]).any(dim=0)
        # on the CPU, where asking is free, only the images that move are computed
        if images.device.type == "cpu":
            rows = moves.nonzero().squeeze(1)
            if len(rows) == 0:
                return images
            chosen = {name: value[rows] for name, value in affine.items()}
            return images.index_copy(0, rows, _warped(images[rows], chosen))
        return _where(moves, _warped(images, affine), images)

    def _draw(self, name: str, stream: RandomStream, height: int, width: int, kind: torch.dtype) -> Tensor:
        """Draw the numbers that tell of one transform, zeros where it does not happen."""
        if name == "x_flip":
            return stream.integers(2, 1).to(kind) * float(self.p > 0)
        happens = stream.uniform() < self.p
        if name == "y_flip":
            drawn = stream.integers(2, 1).to(kind)
        elif name == "rot90":
            if height != width:
                raise ValueError(f"rot90 takes square images, not {height} x {width}: leave it out of transforms.")
            k = stream.integers(4)
            # exact, as no sine is rounded
            cos, sin = torch.where(k % 2 == 0, 1 - k, 0), torch.where(k % 2 == 1, 2 - k, 0)
            drawn = torch.stack([cos - 1, sin], dim=1).to(kind)
        elif name == "integer_translation":
            size = torch.tensor([width, height], dtype=kind).to(happens.device)
            drawn = ((2 * stream.uniform(2).to(kind) - 1) * size / 8).round() / (size / 8)
        elif name == "rotation":
            angle = (2 * stream.uniform().to(kind) - 1) * math.pi
            drawn = torch.stack([angle.cos() - 1, angle.sin()], dim=1)
        elif name == "anisotropy":
            angle = (2 * stream.uniform().to(kind) - 1) * math.pi
            drawn = stream.normal(1).to(kind).abs() * torch.stack([angle.cos(), angle.sin()], dim=1)
        else:
            drawn = stream.normal(TOLD[name]).to(kind)
        return torch.where(happens[:, None], drawn, 0.0)


def _blitted(images: Tensor, told: dict[str, Tensor]) -> Tensor:
    """Flip, turn and shift by whole pixels."""
    if "x_flip" in told:
        images = _where(told["x_flip"][:, 0] != 0, images.flip(3), images)
    if "y_flip" in told:
        images = _where(told["y_flip"][:, 0] != 0, images.flip(2), images)
    if "rot90" in told:
        cos, sin = told["rot90"][:, 0] + 1, told["rot90"][:, 1]
        straight = images
        for k, which in ((1, sin == 1), (2, cos == -1), (3, sin == -1)):
            images = _where(which, straight.rot90(k, (2, 3)), images)
    if "integer_translation" in told:
        for axis, column in ((3, 0), (2, 1)):
            shift = (told["integer_translation"][:, column] * images.shape[axis] / 8).round().long()
            images = _shifted(images, shift, axis)
    return images


def _where(which: Tensor, moved: Tensor, images: Tensor) -> Tensor:
    return torch.where(which[:, None, None, None], moved, images)


def _shifted(images: Tensor, shift: Tensor, axis: int) -> Tensor:
    """Shift each image by its number of pixels along an axis, mirrored at the centers of the border pixels."""
    length = images.shape[axis]
    period = max(2 * (length - 1), 1)
    source = (torch.arange(length, device=images.device) - shift[:, None]) % period
    source = torch.minimum(source, period - source).clamp(0, length - 1)
    shape = [len(images), 1, 1, 1]
    shape[axis] = length
    return images.gather(axis, source.view(shape).expand(images.shape))


def _warped(images: Tensor, told: dict[str, Tensor]) -> Tensor:
    """Scale, rotate, stretch and shift by one affine map."""
    height, width = images.shape[2:]
    full = images if images.dtype in (torch.float32, torch.float64) else images.float()
    inverse = torch.eye(3, dtype=full.dtype, device=full.device).expand(len(full), 3, 3)
    numbers = {name: value.to(full.dtype).unbind(1) for name, value in told.items()}
    if "scaling" in numbers:
        by = torch.exp2(0.2 * numbers["scaling"][0])
        inverse = inverse @ maps.inverse_scaling(by, by)
    if "rotation" in numbers:
        cos, sin = numbers["rotation"]
        inverse = inverse @ maps.inverse_rotation(torch.atan2(sin, cos + 1))
    if "anisotropy" in numbers:
        x, y = numbers["anisotropy"]
        by, along = torch.exp2(0.2 * torch.hypot(x, y)), torch.atan2(y, x)
        inverse = inverse @ maps.inverse_rotation(-along) @ maps.inverse_scaling(by, 1 / by)
        inverse = inverse @ maps.inverse_rotation(along)
    if "translation" in numbers:
        x, y = numbers["translation"]
        inverse = inverse @ maps.inverse_translation(x * width / 8, y * height / 8)
    return warp(full, inverse).to(images.dtype)
