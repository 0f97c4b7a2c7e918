r"""LPIPS: the distance of deep features of two images, weighted channel by channel as people judged.

With :math:`f_l` the features of layer l of VGG16 (after each stage's last ReLU), scaled to length 1 at every place,

.. math:: d(x, y) = \sum_l \frac{1}{H_l W_l} \sum_{h, w} \sum_c w_{lc}\,(f_l(x) - f_l(y))^2_{chw}

(equation 1, the weights learned and of version 0.1). The weights w come with torchmetrics, those of VGG16 from a file:
nothing is downloaded. A length is :math:`\sqrt{10^{-8} + \sum_c f_c^2}`, which has a gradient where all features are 0.

References:
    The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
    https://arxiv.org/abs/1801.03924
    Very Deep Convolutional Networks for Large-Scale Image Recognition (VGG)
    https://arxiv.org/abs/1409.1556
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_gen.errors import MissingData
from lightning_gen.metrics.extractors import file_sha256
from lightning_gen.metrics.perceptual import PerceptualLoss
from lightning_gen.metrics.weight_files import WeightsFile

FILE = WeightsFile(
    ("vgg16-397923af.pth",), "https://download.pytorch.org/models/vgg16-397923af.pth", hash_prefix="397923af"
)
VARIABLES = ("LIGHTNING_GEN_WEIGHTS", "LIGHTNING_GEN_DATA")
"""Folders that are searched for the file."""
SMALLEST = 16
"""Pixels along each axis, which the four halvings between the layers leave one of."""

_ENDS = (4, 9, 16, 23, 30)
_EPS = 1e-8
# mean and deviation of ImageNet's colors, for images in [-1, 1]
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(PerceptualLoss):
    """LPIPS by VGG16, of images of 16 x 16 or larger, gray ones repeated to three channels.

    Args:
        weights_path: file of VGG16's weights, or a folder with it; null searches $LIGHTNING_GEN_WEIGHTS,
            $LIGHTNING_GEN_DATA and the cache of torch hub.

    Attributes:
        weights_sha256: hash of the file.

    Raises:
        MissingData: where the file is in none of these places; says which, from where and where to put it.
        ValueError: for a file that holds something else.
    """

    def __init__(self, weights_path: str | None = None) -> None:
        super().__init__()
        path = find_vgg16_weights(weights_path)
        self.weights_path = weights_path
        self.weights_sha256 = file_sha256(path)
        standard = self.weights_sha256.startswith(FILE.hash_prefix)
        self.name = "lpips" if standard else f"lpips-{self.weights_sha256[:8]}"
        # in a tuple, where no state dict, optimizer, average or process group finds it
        self._held = (_Features(FILE.read(path), str(path)),)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LPIPS":
        """Take the held weights along to another device or precision."""
        self._held[0]._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `(B,)` of images in [-1, 1], `(B, C, H, W)`, C being 1 or 3.

        Raises:
            ValueError: for images of two shapes, of other channels, or too small.
        """
        self.check(x, y)
        features = self._held[0]
        total = torch.zeros(len(x), device=x.device, dtype=torch.promote_types(features.dtype, torch.float32))
        # one after the other: nothing is recorded for the images, of which no gradient is asked
        for weight, of_x, of_y in zip(features.heads, features(x), features(y), strict=True):
            difference = (_unit(of_x) - _unit(of_y)).square().mean(dim=(2, 3))
            total = total + difference @ weight.to(difference.dtype)
        return total

    def check(self, x: Tensor, y: Tensor) -> None:
        """Raise a ValueError for images that LPIPS does not take."""
        super().check(x, y)
        if x.shape[1] not in (1, 3) or min(x.shape[2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS takes images of 1 or 3 channels of {SMALLEST} x {SMALLEST} or larger, not {tuple(x.shape)}:"
                " use LaplacianPyramid (laplacian), which takes any."
            )


class _Features(nn.Module):
    """The five stages of VGG16 and the weights of their channels, frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):  # nothing drawn, and no memory for the classifier
            layers = vgg16(weights=None).features[: _ENDS[-1]]
        inside = {
            name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")
        }
        try:
            layers.load_state_dict(inside, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{where} does not hold the weights of VGG16 ({str(error).splitlines()[0]}). The file is"
                f" {FILE.names[0]}, from {FILE.url}."
            ) from error
        self.stages = nn.ModuleList(layers[start:end] for start, end in zip((0, *_ENDS), _ENDS, strict=False))
        self.heads = nn.ParameterList(_read_heads())
        self.register_buffer("shift", torch.tensor(_SHIFT).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(-1, 1, 1))
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images.to(self.dtype) - self.shift) / self.scale  # a gray image becomes three channels here
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


def _unit(features: Tensor) -> Tensor:
    """Scale to length 1 at every place, in float32 or wider."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / torch.sqrt(_EPS + features.square().sum(dim=1, keepdim=True))


def _read_heads() -> list[Tensor]:
    import torchmetrics  # some seconds, where Lightning has not brought it along

    path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
    if not path.is_file():
        raise MissingData(
            f"torchmetrics {torchmetrics.__version__} has no {path}, the weights of LPIPS: pip install"
            " 'torchmetrics>=1.4,<2', or use LaplacianPyramid (laplacian), which needs none."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(_ENDS))]


def find_vgg16_weights(path: str | Path | None = None) -> Path:
    """Find the weights of VGG16; nothing is downloaded.

    Looked at in turn: `path` (a file, or a folder with it), the folders $LIGHTNING_GEN_WEIGHTS and
    $LIGHTNING_GEN_DATA, the cache of torch hub.

    Raises:
        MissingData: where it is in none of them; which file, from where, to which path.
        ValueError: for a file with the standard name whose content is not the standard one.
    """
    if path is not None:
        found = FILE.inside(Path(path).expanduser())
        if found is None:
            raise _missing(f"weights_path is {path}, where no such file is")
        return FILE.verified(found)
    folders = [Path(os.environ[name]).expanduser() for name in VARIABLES if os.environ.get(name)]
    for folder in [*(folder for folder in folders if folder.is_dir()), FILE.cached.parent]:
        found = FILE.inside(folder)
        if found is not None and found != folder:
            return FILE.verified(found)
    raise _missing(f"it is neither in ${' nor in $'.join(VARIABLES)} nor in the cache of torch hub")


def _missing(why: str) -> MissingData:
    return MissingData(
        f"The VGG16 weights of LPIPS are missing: {why}. Get {FILE.names[0]} (528 MB) from {FILE.url} and put it at"
        f" {FILE.cached} or into a folder that ${VARIABLES[0]} names, or give weights_path=FILE; or use"
        " LaplacianPyramid (laplacian), which needs none."
    )
