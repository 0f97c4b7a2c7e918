"""Adaptive discriminator augmentation (ADA): augment with a probability p that follows the overfitting.

Each transform is applied to each image with probability p. The mean sign of the discriminator's logits on the
real training images,

    r = E sign(D(x_train)),

rises towards 1 as it overfits; every few batches p moves by a fixed step so that r stays near a target:

    p <- clamp(p + sign(r - target) * (images since the last move) / images, 0, 1)

Transforms, in order, with their distributions (the paper's `bgc`; s = 2^(0.2 n) with n ~ N(0, 1), lengths in
units of the image's size, values in the images' range [-1, 1]):

| group     | name                  | parameter                                                    |
|-----------|-----------------------|--------------------------------------------------------------|
| blit      | `flip`                | left-right, i ~ U{0, 1}                                      |
|           | `rot90`               | k ~ U{0, 1, 2, 3} quarter turns                              |
|           | `integer_translation` | t ~ U(-1/8, 1/8) in x and y, rounded to pixels               |
| geometric | `scaling`             | by s                                                         |
|           | `rotation`            | U(-pi, pi) with probability 1 - sqrt(1 - p), twice (see below) |
|           | `anisotropic_scaling` | by s in x and 1/s in y                                       |
|           | `translation`         | t ~ N(0, (1/8)^2) in x and y                                 |
| color     | `brightness`          | add N(0, 0.2^2)                                              |
|           | `contrast`            | multiply by 2^(0.5 n)                                        |
|           | `luma_flip`           | mirror the luma axis, i ~ U{0, 1}                            |
|           | `hue`                 | rotate around the luma axis by U(-pi, pi)                    |
|           | `saturation`          | multiply by 2^n                                              |

The two rotations stand before and after `anisotropic_scaling`; one of them at least happens with probability p.

Where this deviates from the paper: the resampling filter (`warp` says why), and an image that nothing was
applied to is returned bit by bit instead of passing through the filters.

References:
    Training Generative Adversarial Networks with Limited Data, https://arxiv.org/abs/2006.06676
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gen.gan import ada_transforms as maps
from lightning_gen.gan.augmentation import Augmentation, parse_names
from lightning_gen.gan.warp import warp

GROUPS: dict[str, tuple[str, ...]] = {
    "blit": ("flip", "rot90", "integer_translation"),
    "geometric": ("scaling", "rotation", "anisotropic_scaling", "translation"),
    "color": ("brightness", "contrast", "luma_flip", "hue", "saturation"),
}


class _Draw:
    """One parameter an image, replaced by a neutral value where the image is not chosen."""

    def __init__(self, n: int, p: Tensor, dtype: torch.dtype) -> None:
        self.n, self.p, self.dtype = n, p, dtype

    def _chosen(self, value: Tensor, neutral: float, p: Tensor | None) -> Tensor:
        gate = torch.rand(self.n, device=self.p.device) < (self.p if p is None else p)
        return torch.where(gate, value, neutral).to(self.dtype)

    def uniform(self, bound: float, p: Tensor | None = None) -> Tensor:
        """Draw from U(-bound, bound), else 0."""
        return self._chosen((2 * torch.rand(self.n, device=self.p.device) - 1) * bound, 0.0, p)

    def integers(self, high: int) -> Tensor:
        """Draw from U{0 ... high - 1}, else 0."""
        return self._chosen(torch.randint(high, (self.n,), device=self.p.device).float(), 0.0, None)

    def normal(self, std: float) -> Tensor:
        """Draw from N(0, std^2), else 0."""
        return self._chosen(torch.randn(self.n, device=self.p.device) * std, 0.0, None)

    def power_of_two(self, std: float) -> Tensor:
        """Draw 2^n with n from N(0, std^2), else 1."""
        return torch.exp2(self.normal(std))

    def pair(self, std_or_bound: float, uniform: bool) -> tuple[Tensor, Tensor]:
        """Draw two numbers under one choice, else (0, 0)."""
        noise = torch.empty(2, self.n, device=self.p.device)
        noise = noise.uniform_(-1, 1) if uniform else noise.normal_()
        x, y = self._chosen(noise * std_or_bound, 0.0, None)
        return x, y


class ADA(Augmentation):
    """Adaptive discriminator augmentation.

    Call it on real and generated images alike, and `update` once a batch of real images, on every process.

    Args:
        target: what r is held to, in (-1, 1); None leaves p as it is.
        images: number of images over which p can move from 0 to 1.
        every: calls of `update` from one move of p to the next.
        p: the probability to begin with, in [0, 1].
        transforms: comma list of groups ("blit", "geometric", "color") and single transforms (see the table in
            this module); the order of application is fixed. Leave out what changes the meaning of your images:
            "flip" and "rot90" for digits, for instance. "" is the identity.

    Attributes:
        p: the probability now, a float32 scalar buffer.
        tally: buffer of four integers since the last move: sum of signs, logits, images, calls. It is in
            the state dict and the same on every process, so a resumed run moves p when the first would have.

    Raises:
        ValueError: for a value out of range or an unknown transform, with the nearest names.

    References:
        Training Generative Adversarial Networks with Limited Data, https://arxiv.org/abs/2006.06676
    """

    p: Tensor
    tally: Tensor

    def __init__(
        self,
        target: float | None = 0.6,
        images: int = 500_000,
        every: int = 4,
        p: float = 0.0,
        transforms: str = "blit,geometric,color",
    ) -> None:
        super().__init__()
        if target is not None and not -1 < target < 1:
            raise ValueError(f"target={target}: r is the mean of signs, so its target lies between -1 and 1.")
        if images < 1 or every < 1:
            raise ValueError(f"images={images}, every={every}: both count something and must be at least 1.")
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: a probability lies in [0, 1].")
        self.target, self.images, self.every = target, images, every
        single = [name for group in GROUPS.values() for name in group]
        chosen = parse_names("ADA transform", transforms, [*GROUPS, *single])
        self.transforms = frozenset(name for choice in chosen for name in GROUPS.get(choice, (choice,)))
        self.register_buffer("p", torch.tensor(p, dtype=torch.float32))
        self.register_buffer("tally", torch.zeros(4, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Augment each image by itself, (B, C, H, W) to (B, C, H, W); the identity, bit by bit, at p = 0."""
        full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        with torch.autocast(x.device.type, enabled=False):
            return self._recolor(self._move(full)).to(x.dtype)

    def _move(self, x: Tensor) -> Tensor:
        """Apply the blits and the geometric transforms."""
        if self.transforms.isdisjoint(GROUPS["blit"] + GROUPS["geometric"]):
            return x
        inverse = self._geometry(_Draw(len(x), self.p, x.dtype), x.shape[2], x.shape[3])
        moved = _altering(inverse)
        return torch.where(moved[:, None, None, None], warp(x, inverse), x) if _any(moved) else x

    def _recolor(self, x: Tensor) -> Tensor:
        """Apply the color transforms."""
        if self.transforms.isdisjoint(GROUPS["color"]):
            return x
        matrix = self._color(_Draw(len(x), self.p, x.dtype), x.shape[1])
        changed = _altering(matrix)
        return torch.where(changed[:, None, None, None], maps.recolor(x, matrix), x) if _any(changed) else x

    def _geometry(self, draw: _Draw, height: int, width: int) -> Tensor:
        """Draw the inverse of each image's geometric transform, (B, 3, 3)."""
        steps: list[Tensor] = [torch.eye(3, dtype=draw.dtype, device=draw.p.device).expand(draw.n, 3, 3)]
        one = steps[0][:, 0, 0]
        if "flip" in self.transforms:
            steps.append(maps.inverse_scaling(1 - 2 * draw.integers(2), one))
        if "rot90" in self.transforms:
            steps.append(maps.inverse_quarter_turns(draw.integers(4)))
        if "integer_translation" in self.transforms:
            tx, ty = draw.pair(0.125, uniform=True)
            steps.append(maps.inverse_translation((tx * width).round(), (ty * height).round()))
        if "scaling" in self.transforms:
            s = draw.power_of_two(0.2)
            steps.append(maps.inverse_scaling(s, s))
        p_rotation = 1 - torch.sqrt(1 - self.p)  # so that one of the two rotations happens with probability p
        if "rotation" in self.transforms:
            steps.append(maps.inverse_rotation(draw.uniform(math.pi, p_rotation)))
        if "anisotropic_scaling" in self.transforms:
            s = draw.power_of_two(0.2)
            steps.append(maps.inverse_scaling(s, 1 / s))
        if "rotation" in self.transforms:
            steps.append(maps.inverse_rotation(draw.uniform(math.pi, p_rotation)))
        if "translation" in self.transforms:
            tx, ty = draw.pair(0.125, uniform=False)
            steps.append(maps.inverse_translation(tx * width, ty * height))
        return _product(steps)

    def _color(self, draw: _Draw, channels: int) -> Tensor:
        """Draw each image's color transform, (B, 4, 4); what leaves gray as it is is not drawn for one channel."""
        steps: list[Tensor] = [torch.eye(4, dtype=draw.dtype, device=draw.p.device).expand(draw.n, 4, 4)]
        if "brightness" in self.transforms:
            steps.append(maps.shift_color(draw.normal(0.2)))
        if "contrast" in self.transforms:
            steps.append(maps.scale_color(draw.power_of_two(0.5)))
        if "luma_flip" in self.transforms:
            steps.append(maps.luma_flip(draw.integers(2)))
        if "hue" in self.transforms and channels > 1:
            steps.append(maps.rotate_hue(draw.uniform(math.pi)))
        if "saturation" in self.transforms and channels > 1:
            steps.append(maps.saturate(draw.power_of_two(1.0)))
        return _product(steps[::-1])

    @torch.no_grad()
    def update(self, real_logits: Tensor, batch_size: int) -> None:
        """Count the signs of the logits and, every `every` calls, move p.

        Under torch.distributed the counts of all processes are summed in each call, so every process must call.
        The host never waits for the device.

        Args:
            real_logits: this process's logits of augmented real training images, (B,).
            batch_size: number of this process's images in the batch; the step of p grows with it.
        """
        if self.target is None:
            return
        signs = (real_logits > 0).sum() - (real_logits < 0).sum()
        seen = torch.stack([signs, torch.full_like(signs, real_logits.numel()), torch.full_like(signs, batch_size)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)
        self.tally += torch.cat([seen, torch.ones_like(seen[:1])])
        due = self.tally[3] >= self.every
        r = self.tally[0].float() / self.tally[1].clamp(min=1)
        step = torch.sign(r - self.target) * self.tally[2] / self.images
        self.p.copy_(torch.where(due, (self.p + step).clamp(0, 1), self.p))
        self.tally.mul_(~due)

    def extra_repr(self) -> str:
        """Show the settings in the module's repr."""
        names = [name for group in GROUPS.values() for name in group if name in self.transforms]
        return f"target={self.target}, images={self.images}, every={self.every}, transforms={','.join(names)!r}"


def _altering(matrices: Tensor) -> Tensor:
    """Say which matrices are not the identity, (B,) bool."""
    eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    return (matrices != eye).flatten(1).any(dim=1)


def _any(mask: Tensor) -> bool:
    """Say whether work may be needed: asked on the CPU, where it is free; elsewhere it would wait for the device."""
    return mask.device.type != "cpu" or bool(mask.any())


def _product(factors: list[Tensor]) -> Tensor:
    """Multiply matrices from left to right."""
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    return product
