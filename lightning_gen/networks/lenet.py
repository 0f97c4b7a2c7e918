"""LeNet-5 as a discriminator.

Convolutions of 6 and 16 maps (5 x 5, each followed by 2 x 2 average pooling), then 120, 84 and, in place of
the ten classes, one logit. As in the original, 32 x 32 images enter as they are; 28 x 28 images are padded by
two. A leaky ReLU stands for the original's scaled tanh: a saturated critic gives the generator no gradient.

References:
    Gradient-based learning applied to document recognition: https://doi.org/10.1109/5.726791
"""

from torch import Tensor, nn

from lightning_gen.networks.base import Discriminator, DiscriminatorOutput, check_conditioning, square_size
from lightning_gen.networks.conditioning import DiscriminatorConditioning, concat_label_maps, make_head
from lightning_gen.networks.normalization import spectral_normalize

_PADDING = {28: 2, 32: 0}
_SLOPE = 0.2


class LeNetDiscriminator(Discriminator):
    """LeNet-5 with one logit, for images of side 28 or 32.

    Args:
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes; None for an unconditional discriminator.
        conditioning: "none", "concat" (label maps as channels), "projection" or "auxiliary" (both on the 84
            features).
        dropout: probability with which one of the 120 and 84 features is dropped, in [0, 1).
        spectral_norm: whether every layer is spectrally normalized.

    Raises:
        ValueError: for another side, a value outside its range, or classes without conditioning.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        conditioning: DiscriminatorConditioning = "none",
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes, auxiliary=conditioning == "auxiliary")
        check_conditioning(self, conditioning, ("none", "concat", "projection", "auxiliary"), num_classes)
        size = square_size(self, self.image_shape, _PADDING)
        if not 0 <= dropout < 1:
            raise ValueError(f"LeNetDiscriminator takes a dropout in [0, 1), not {dropout}.")
        self.conditioning = conditioning
        channels = self.image_shape[0] + (num_classes or 0) * (conditioning == "concat")
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=_PADDING[size]),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Dropout(dropout),
            nn.Linear(120, 84),
            nn.LeakyReLU(_SLOPE, inplace=True),
            nn.Dropout(dropout),
        )
        self.head = make_head(conditioning, 84, num_classes)
        if spectral_norm:
            spectral_normalize(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | DiscriminatorOutput:
        """Judge images `(B, C, H, W)` in [-1, 1] with labels `(B,)`; see `Discriminator.forward`."""
        self.check(x, label)
        if self.conditioning == "concat" and self.num_classes is not None and label is not None:
            x = concat_label_maps(x, label, self.num_classes)
        output: Tensor | DiscriminatorOutput = self.head(self.layers(x), label)
        return output
