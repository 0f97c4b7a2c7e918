r"""Penalties on the discriminator's gradient with respect to its images, and weight clipping.

With D the discriminator, x real and y generated images, every norm taken per sample over (C, H, W):

| class    | penalty                                                                         |
|----------|---------------------------------------------------------------------------------|
| `WGANGP` | weight E (||grad D(u)|| - 1)^2, u = alpha x + (1 - alpha) y, alpha ~ U[0,1] per sample |
| `DRAGAN` | weight E (||grad D(x + delta)|| - 1)^2, delta = alpha 1/2 std(x) U              |
| `R1`     | gamma/2 E ||grad D(x)||^2                                                       |
| `R2`     | gamma/2 E ||grad D(y)||^2                                                       |

The inner gradient is taken with respect to the images alone (no parameter's `.grad` is touched), in at least
float32 with autocast off, and never sees a loss scale, so a penalty under mixed precision is the same number
as without. All of these are per sample: image i must not change the logit of image j, hence
`refuse_batch_norm`.

A lazy penalty (`every=k`) is added in every k-th step only and multiplied by k (`scaled`), with Adam adapted by
`lazy_adam`.

References:
    Improved Training of Wasserstein GANs, https://arxiv.org/abs/1704.00028
    On Convergence and Stability of GANs (DRAGAN), https://arxiv.org/abs/1705.07215
    Which Training Methods for GANs do actually Converge? (R1, R2), https://arxiv.org/abs/1801.04406
    Analyzing and Improving the Image Quality of StyleGAN (lazy regularization), https://arxiv.org/abs/1912.04958
    Wasserstein GAN (weight clipping), https://arxiv.org/abs/1701.07875
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Judge = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B,), with label and augmentation already bound."""


def _full(images: Tensor) -> Tensor:
    """Cut images from their graph, in at least float32."""
    images = images.detach()
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def image_gradients(judge: Judge, images: Tensor) -> Tensor:
    """Return the gradient of each image's logit with respect to that image, differentiable once more.

    The sum of the logits is differentiated, which gives each sample its own gradient only while no sample
    changes another's logit.

    Args:
        judge: the discriminator.
        images: where to take the gradient, (B, C, H, W); cut from whatever graph they came from.

    Returns:
        The gradients, (B, C, H, W), float32 or float64.

    Raises:
        ValueError: where the judge does not return one logit an image.
    """
    keep = torch.is_grad_enabled()
    points = _full(images).clone().requires_grad_(True)
    with torch.enable_grad(), torch.autocast(points.device.type, enabled=False):
        logits = judge(points)
        if logits.shape != points.shape[:1]:
            raise ValueError(
                f"A gradient penalty needs one logit an image: for {len(points)} images it expects logits of shape "
                f"({len(points)},), but the discriminator returned {tuple(logits.shape)}. A mean over the batch "
                f"would divide every gradient by the batch size."
            )
        (gradients,) = torch.autograd.grad(logits.sum(), points, create_graph=keep)
    return gradients


def sample_norms(gradients: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample over all its other dimensions.

    Each sample is divided by its largest entry before squaring, so nothing overflows, and nothing underflows
    down to the smallest normal number. At zero, where a norm has no gradient, the gradient is defined as zero
    (`sqrt` alone would give NaN there): a sample whose gradient vanishes, as behind a dead ReLU, then adds its
    value to a penalty but no direction.

    Args:
        gradients: (B, ...).

    Returns:
        (B,).
    """
    flat = gradients.flatten(1)
    # A constant: the norm does not depend on what it is scaled by, so neither do its derivatives.
    scale = flat.detach().abs().amax(dim=1).clamp(min=torch.finfo(flat.dtype).tiny)
    squares = (flat / scale[:, None]).square().sum(dim=1)
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt() * scale)


class Penalty(ABC):
    """A term of the discriminator's loss that needs the discriminator itself.

    Args:
        every: the lazy interval in discriminator steps; 1 is every step.

    Attributes:
        per_sample: whether it takes one sample's gradient for another's independent of it, so that it cannot
            go through batch normalization (see `refuse_batch_norm`).
        on: which images it is taken at, and so whose labels its judge is bound to; "between" mixes a real with a
            generated image, which must then be of one class.
    """

    per_sample: ClassVar[bool] = True
    on: ClassVar[Literal["real", "fake", "between"]] = "real"

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(
                f"every={every}: a penalty is added every 1, 2, 3 ... steps. To go without it, leave it out."
            )
        self.every = every

    @abstractmethod
    def __call__(self, judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
        """Return the penalty, its weight included, not multiplied by `every`.

        Args:
            judge: the discriminator, images (B, C, H, W) to logits (B,).
            real: real images, (B, C, H, W).
            fake: generated images, (B, C, H, W).

        Returns:
            A scalar, differentiable with respect to the discriminator's parameters where gradients are enabled.
        """

    def scaled(self, judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
        """Return the penalty times `every`: what to add in the steps that are `due`."""
        return self.every * self(judge, real, fake)

    def due(self, step: int) -> bool:
        """Return whether the penalty belongs into discriminator step `step`, counted from 0."""
        return step % self.every == 0


class WGANGP(Penalty):
    """Unit gradient norm on the lines between real and generated images (equation 3).

    Args:
        weight: lambda, 10 in the paper.
        every: the lazy interval; 1 in the paper.
    """

    on = "between"

    on = "between"

    def __init__(self, weight: float = 10.0, every: int = 1) -> None:
        super().__init__(every)
        self.weight = _not_negative("weight", weight)

    def __call__(self, judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
        """Return weight E (||grad D(alpha x + (1 - alpha) y)|| - 1)^2, one alpha ~ U[0,1] a sample.

        Raises:
            ValueError: where real and generated images differ in shape.
        """
        if real.shape != fake.shape:
            raise ValueError(
                f"WGANGP draws a line from each generated image to a real one, so both batches must have the same "
                f"shape, but the real images are {tuple(real.shape)} and the generated ones {tuple(fake.shape)}. "
                f"Generate as many images as there are real ones."
            )
        real, fake = _full(real), _full(fake)
        alpha = torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype, device=real.device)
        points = alpha * real + (1 - alpha) * fake
        return self.weight * (sample_norms(image_gradients(judge, points)) - 1).square().mean()


class DRAGAN(Penalty):
    """Unit gradient norm in the neighborhood of the real images.

    The paper writes delta ~ N(0, cI); its published code, and so this class, takes
    `delta = alpha 1/2 std(x) U`, with U ~ U[0,1) for every entry, alpha ~ U[0,1) for every sample, and std(x)
    one number: the population standard deviation of all entries of the real batch.

    Args:
        weight: lambda, 10 in the paper.
        every: the lazy interval; 1 in the paper.
    """

    on = "real"

    def __init__(self, weight: float = 10.0, every: int = 1) -> None:
        super().__init__(every)
        self.weight = _not_negative("weight", weight)

    def __call__(self, judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
        """Return weight E (||grad D(x + delta)|| - 1)^2; the generated images are not read."""
        real = _full(real)
        alpha = torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype, device=real.device)
        points = real + alpha * 0.5 * real.std(correction=0) * torch.rand_like(real)
        return self.weight * (sample_norms(image_gradients(judge, points)) - 1).square().mean()


class R1(Penalty):
    """A flat discriminator at the real images (equation 9).

    Args:
        gamma: twice the factor of the mean squared norm; 10 in the paper, lower for smaller images.
        every: the lazy interval; 1 in the paper, 16 in StyleGAN2.
    """

    on = "real"

    def __init__(self, gamma: float = 10.0, every: int = 1) -> None:
        super().__init__(every)
        self.gamma = _not_negative("gamma", gamma)

    def __call__(self, judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
        """Return gamma/2 E ||grad D(x)||^2; the generated images are not read."""
        return _half_mean_square(self.gamma, image_gradients(judge, real))


class R2(Penalty):
    """A flat discriminator at the generated images (equation 10).

    Args:
        gamma: twice the factor of the mean squared norm; 10 in the paper, lower for smaller images.
        every: the lazy interval; 1 in the paper.
    """

    on = "fake"

    on = "fake"

    def __init__(self, gamma: float = 10.0, every: int = 1) -> None:
        super().__init__(every)
        self.gamma = _not_negative("gamma", gamma)

    def __call__(self, judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
        """Return gamma/2 E ||grad D(y)||^2; the real images are not read."""
        return _half_mean_square(self.gamma, image_gradients(judge, fake))


PENALTIES: dict[str, type[Penalty]] = {"wgan_gp": WGANGP, "dragan": DRAGAN, "r1": R1, "r2": R2}


def _half_mean_square(gamma: float, gradients: Tensor) -> Tensor:
    return 0.5 * gamma * gradients.flatten(1).square().sum(dim=1).mean()


def _not_negative(name: str, value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: the weight of a penalty must be finite and at least 0.")
    return value


def lazy_adam(lr: float, betas: tuple[float, float], every: int) -> tuple[float, tuple[float, float]]:
    """Adapt Adam to a penalty that is added every k-th step only (appendix B of StyleGAN2).

    What were k + 1 updates (k plain ones and one of the penalty) become k, so with c = k / (k + 1) the learning
    rate becomes c lr and each beta becomes beta^c.

    Args:
        lr: the learning rate without laziness.
        betas: Adam's betas without laziness.
        every: the lazy interval k.

    Returns:
        The learning rate and betas to give to Adam; as given where `every` is 1.
    """
    if every < 1:
        raise ValueError(f"every={every}: the lazy interval is 1, 2, 3 ... steps.")
    if every == 1:
        return lr, (betas[0], betas[1])
    c = every / (every + 1)
    return c * lr, (betas[0] ** c, betas[1] ** c)


@torch.no_grad()
def clip_weights_(module: nn.Module, bound: float = 0.01) -> None:
    """Clamp every parameter to [-bound, bound] in place, after each step of a WGAN critic (algorithm 1).

    Args:
        module: the critic; its buffers stay as they are.
        bound: c, 0.01 in the paper.
    """
    if not bound > 0:
        raise ValueError(f"bound={bound}: weights are clipped to [-bound, bound], so the bound must be above 0.")
    for parameter in module.parameters():
        parameter.clamp_(-bound, bound)


def refuse_batch_norm(module: nn.Module) -> None:
    """Refuse a discriminator whose batch normalization would mix the samples of a per-sample penalty.

    Batch statistics make the logit of image j depend on image i, so the gradient of the summed logits is no
    longer each image's own. Batch normalization by running statistics (`eval()`) mixes nothing and passes.

    Args:
        module: the discriminator, in the mode in which it will be trained.

    Raises:
        ValueError: names the layers and says what to use instead.
    """
    names = [
        f"{name or 'the module itself'} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.training or not layer.track_running_stats)
    ]
    if names:
        raise ValueError(
            f"A gradient penalty is taken per sample, but {type(module).__name__} normalizes over the batch in "
            f"{', '.join(names)}, so that the gradient of one image's logit reaches the other images. Build the "
            f"discriminator without batch normalization (no normalization, spectral normalization, or "
            f"GroupNorm / LayerNorm / InstanceNorm), or leave the penalty out."
        )
