r"""The PatchGAN discriminator of pix2pix, as VQGAN trains with it: a logit for each of many overlapping patches.

Convolutions (4 x 4, padding 1): n of stride 2, whose widths double from `channels` up to eight times that, one of
stride 1, and one of stride 1 that makes the logits; leaky ReLU (0.2) between, normalization on all but the first and
the last. The first and the last have a bias, the others where no batch norm follows. Weights start from N(0, 0.02^2),
the gains of the norms from N(1, 0.02^2).

A logit sees a square of side :math:`r_0` with :math:`r = 4` at the last layer and :math:`r \leftarrow 4 + s (r - 1)`
for every layer of stride s before it:

| n | side of a patch | logits of 32 x 32 pixels | of 256 x 256 |
|---|-----------------|--------------------------|--------------|
| 1 | 16              | 14 x 14                  | 126 x 126    |
| 2 | 34              | 6 x 6                    | 62 x 62      |
| 3 | 70              | 2 x 2                    | 30 x 30      |

References:
    Image-to-Image Translation with Conditional Adversarial Networks (appendix 6.1)
    https://arxiv.org/abs/1611.07004
    Taming Transformers for High-Resolution Image Synthesis
    https://arxiv.org/abs/2012.09841
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gen.networks.base import Discriminator, positive
from lightning_gen.networks.dcgan import init_dcgan
from lightning_gen.networks.normalization import NormName, make_norm, spectral_normalize

_SLOPE = 0.2
_MOST = 8


class PatchDiscriminator(Discriminator):
    """Images to a logit a patch, `(B, P)`.

    Args:
        image_shape: `(C, H, W)` of one image.
        channels: number of the largest maps; each layer of stride 2 doubles it, up to eight times.
        n_layers: number n of layers of stride 2.
        norm: normalization before each leaky ReLU but the first. Batch norm lets the images of a batch see each other,
            and each process normalizes by its own.
        spectral_norm: whether every layer is spectrally normalized; published together with norm "none".

    Attributes:
        grid: height and width of the grid of patches, `P` in all.
        patch_size: side of the square that a logit sees, in pixels.

    Raises:
        ValueError: for a number out of range, or an image that is too small for so many layers.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 256, 256),
        channels: int = 64,
        n_layers: int = 3,
        norm: NormName = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(image_shape)
        channels, n_layers = positive(self, "channels", channels), positive(self, "n_layers", n_layers)
        self.grid = self._grid(n_layers)
        strides = [2] * n_layers + [1]
        layers: list[nn.Module] = []
        width = self.image_shape[0]
        for level, stride in enumerate(strides):
            after = channels * min(2**level, _MOST)
            normed = level > 0
            bias = not normed or norm != "batch"
            layers.append(nn.Conv2d(width, after, 4, stride=stride, padding=1, bias=bias))
            if normed:
                layers.append(make_norm(norm, after))
            layers.append(nn.LeakyReLU(_SLOPE, inplace=True))
            width = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.patch_size = 4
        for stride in reversed(strides):
            self.patch_size = 4 + stride * (self.patch_size - 1)
        init_dcgan(self)
        if spectral_norm:
            spectral_normalize(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Judge the patches of images `(B, C, H, W)` in [-1, 1], row by row; there are no labels.

        Returns:
            Logits `(B, P)`.
        """
        self.check(x, label)
        logits: Tensor = self.layers(x)
        return logits.flatten(1)

    def _grid(self, n_layers: int) -> tuple[int, int]:
        height, width = (side // 2**n_layers - 2 for side in self.image_shape[1:])
        if min(height, width) < 1:
            least = min(self.image_shape[1:])
            most = (least // 3).bit_length() - 1
            advice = f"take n_layers of {most} at most" if most > 0 else "images are 6 pixels high and wide at least"
            raise ValueError(
                f"PatchDiscriminator with n_layers={n_layers} takes images of {3 * 2**n_layers} pixels and more along"
                f" each side, not {self.image_shape[1]} x {self.image_shape[2]}: {advice}."
            )
        return height, width
