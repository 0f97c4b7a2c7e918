"""The convolutional generator and discriminator of DCGAN, for square images of side 8 to 128.

The generator projects the latent to maps of the bottom side and doubles them by transposed convolutions
(4 x 4, stride 2) while it halves their number; the discriminator mirrors it by strided convolutions. At
64 x 64 with the defaults these are the networks of the published PyTorch example (3,576,704 and 2,765,568
parameters). Weights start from N(0, 0.02^2), the gains of the norms from N(1, 0.02^2).

References:
    Unsupervised representation learning with deep convolutional GANs: https://arxiv.org/abs/1511.06434
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.networks.base import (
    Discriminator,
    DiscriminatorOutput,
    Generator,
    check_conditioning,
    positive,
    square_size,
)
from lightning_gen.networks.conditioning import (
    DiscriminatorConditioning,
    GeneratorConditioning,
    apply_norm,
    concat_label,
    concat_label_maps,
    make_generator_norm,
    make_head,
)
from lightning_gen.networks.normalization import NormName, make_norm, spectral_normalize

# Side of the images: side of the smallest maps. 8 and 16 are for small sets such as the scikit-learn digits.
_BOTTOM = {8: 2, 16: 4, 28: 7, 32: 4, 64: 4, 128: 4}
_SLOPE = 0.2


def _widths(size: int, channels: int) -> list[int]:
    """Numbers of maps from the largest maps to the smallest: channels, 2 channels, 4 channels ..."""
    doublings = (size // _BOTTOM[size]).bit_length() - 1
    return [channels * 2**level for level in range(doublings)]


def init_dcgan(module: nn.Module) -> None:
    """Give the layers under `module` the initial weights of DCGAN, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) and layer.affine:
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)
            nn.init.zeros_(layer.bias)


class DCGANGenerator(Generator):
    """Transposed convolutions from a latent to a square image.

    Args:
        latent_dim: length of one latent vector.
        channels: number of the largest maps; each halving of their side doubles it.
        image_shape: `(C, H, W)` of one image, H = W in 8, 16, 28, 32, 64, 128.
        num_classes: number of classes; None for an unconditional generator.
        conditioning: "none", "concat" (one-hot label joined to the latent) or "cbn" (conditional batch norm).
        norm: normalization before each ReLU. Layers have a bias only where it is "none".

    Raises:
        ValueError: for another side, a value outside its range, classes without conditioning, or a
            conditional norm that is not a batch norm.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        channels: int = 64,
        image_shape: tuple[int, int, int] = (3, 64, 64),
        num_classes: int | None = None,
        conditioning: GeneratorConditioning = "none",
        norm: NormName = "batch",
    ) -> None:
        super().__init__(latent_dim, image_shape, num_classes)
        check_conditioning(self, conditioning, ("none", "concat", "cbn"), num_classes)
        size = square_size(self, self.image_shape, _BOTTOM)
        self.conditioning = conditioning
        self.bottom = _BOTTOM[size]
        bias = norm == "none"
        widths = _widths(size, positive(self, "channels", channels))[::-1]
        inputs = latent_dim + (num_classes or 0) * (conditioning == "concat")
        classes = num_classes if conditioning == "cbn" else None
        # The same map as a transposed convolution of a 1 x 1 image, as one matrix product.
        self.project = nn.Linear(inputs, widths[0] * self.bottom**2, bias=bias)
        self.norms = nn.ModuleList(make_generator_norm(norm, width, classes) for width in widths)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(width, following, 4, stride=2, padding=1, bias=bias)
            for width, following in zip(widths, [*widths[1:], self.image_shape[0]], strict=True)
        )
        init_dcgan(self)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Make images `(B, C, H, W)` in [-1, 1] of latents `(B, latent_dim)` and labels `(B,)`."""
        self.check(z, label)
        if self.conditioning == "concat" and self.num_classes is not None and label is not None:
            z = concat_label(z, label, self.num_classes)
        h: Tensor = self.project(z)
        h = h.view(len(z), -1, self.bottom, self.bottom)
        for norm, up in zip(self.norms, self.ups, strict=True):
            h = up(F.relu(apply_norm(norm, h, label), inplace=True))
        return torch.tanh(h)


class DCGANDiscriminator(Discriminator):
    """Strided convolutions from a square image to a logit.

    Args:
        channels: number of the largest maps; each halving of their side doubles it.
        image_shape: `(C, H, W)` of one image, H = W in 8, 16, 28, 32, 64, 128.
        num_classes: number of classes; None for an unconditional discriminator.
        conditioning: "none", "concat" (label maps as channels), "projection" (on features summed over
            positions) or "auxiliary".
        norm: normalization of every convolution but the first. Layers have a bias only where it is "none".
            A gradient penalty needs one that keeps samples apart, so any but "batch".
        spectral_norm: whether every layer is spectrally normalized; published together with norm "none".

    Raises:
        ValueError: for another side, a value outside its range, or classes without conditioning.
    """

    def __init__(
        self,
        channels: int = 64,
        image_shape: tuple[int, int, int] = (3, 64, 64),
        num_classes: int | None = None,
        conditioning: DiscriminatorConditioning = "none",
        norm: NormName = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, auxiliary=conditioning == "auxiliary")
        check_conditioning(self, conditioning, ("none", "concat", "projection", "auxiliary"), num_classes)
        size = square_size(self, self.image_shape, _BOTTOM)
        self.conditioning = conditioning
        bias = norm == "none"
        widths = _widths(size, positive(self, "channels", channels))
        inputs = self.image_shape[0] + (num_classes or 0) * (conditioning == "concat")
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Conv2d(inputs, width, 4, stride=2, padding=1, bias=bias))
            if layers[1:]:
                layers.append(make_norm(norm, width))
            layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
            inputs = width
        self.layers = nn.Sequential(*layers)
        # A valid convolution over the smallest maps is a linear layer on all their values.
        positions = 1 if conditioning == "projection" else _BOTTOM[size] ** 2
        self.head = make_head(conditioning, widths[-1] * positions, num_classes, bias)
        init_dcgan(self)
        if spectral_norm:
            spectral_normalize(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | DiscriminatorOutput:
        """Judge images `(B, C, H, W)` in [-1, 1] with labels `(B,)`; see `Discriminator.forward`."""
        self.check(x, label)
        if self.conditioning == "concat" and self.num_classes is not None and label is not None:
            x = concat_label_maps(x, label, self.num_classes)
        h: Tensor = self.layers(x)
        h = h.sum((2, 3)) if self.conditioning == "projection" else h.flatten(1)
        output: Tensor | DiscriminatorOutput = self.head(h, label)
        return output
