"""The Inception network of FID, KID and the inception score, as torch-fidelity converted it from the original.

2048 pooled features and 1008 class scores (without bias, as the original score reads them), after the bilinear
resize of TensorFlow 1 to 299 x 299. The layers are torch-fidelity's own; here are the layout (channels last:
about 1.4 times the images per second on a CPU), and the search for the weights.

References:
    - GANs trained by a two time-scale update rule converge to a local Nash equilibrium.
      https://arxiv.org/abs/1706.08500
    - torch-fidelity. https://github.com/toshas/torch-fidelity
"""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gen.errors import MissingData
from lightning_gen.metrics.extractors import Extraction, FeatureExtractor, file_sha256, state_sha256
from lightning_gen.metrics.protocol import STANDARD_INCEPTION
from lightning_gen.metrics.weight_files import WeightsFile

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
FILE_NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
HASH_PREFIX = "6726825d"
FILE = WeightsFile(FILE_NAMES, URL, HASH_PREFIX)
VARIABLE = "LIGHTNING_GEN_WEIGHTS"


class InceptionV3(FeatureExtractor):
    """Inception features and class scores of uint8 images of any size, gray or RGB.

    Args:
        weights_path: weights file, or a folder with it; None searches $LIGHTNING_GEN_WEIGHTS, the cache of torch
            hub and then downloads.
        state_dict: weights given directly, in place of a file.
        channels_last: memory layout; moves features by the rounding of float32 only.

    Raises:
        MissingData: no weights and no way to download them.
        ValueError: the file holds something else.
    """

    dim = 2048
    resize = "299x299 bilinear of TensorFlow 1"
    image_channels = 3

    def __init__(
        self,
        weights_path: str | Path | None = None,
        *,
        state_dict: dict[str, Tensor] | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if state_dict is None:
            path = find_inception_weights(weights_path)
            self.network = _build(FILE.read(path), str(path))
            self.weights_sha256 = file_sha256(path)
        else:
            self.network = _build(state_dict, "state_dict")
            self.weights_sha256 = state_sha256(self.network)
        standard = self.weights_sha256.startswith(HASH_PREFIX)
        self.name = STANDARD_INCEPTION if standard else f"{STANDARD_INCEPTION}-{self.weights_sha256[:8]}"
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.freeze()

    def forward(self, images: Tensor) -> Extraction:
        """Extract features and class scores.

        Args:
            images: (B, C, H, W) uint8, C being 3, or 1 for gray, which is repeated to RGB.

        Returns:
            Features (B, 2048) and logits (B, 1008), float32.

        Raises:
            ValueError: not uint8, not four dimensions, or another number of channels.
        """
        self.check(images)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features, logits = self.network(images)
        return Extraction(features, logits)

    def check(self, images: Tensor) -> None:
        """Refuse what is not a batch of gray or RGB uint8 images."""
        super().check(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"{self.name} takes images of 1 (gray) or 3 (RGB) channels, got shape {tuple(images.shape)}."
            )


def find_inception_weights(path: str | Path | None = None) -> Path:
    """Find the Inception weights, and download them where they are nowhere.

    Looked at in turn: `path`, $LIGHTNING_GEN_WEIGHTS (each a file or a folder with the file), the cache of torch hub
    under both names the file goes by, the download into that cache.

    Raises:
        MissingData: not where `path` or the variable says, or no download: which file, from where, to which path.
        ValueError: a file with the standard name whose content is not the standard one.
    """
    for given, what in ((path, "weights_path"), (os.environ.get(VARIABLE) or None, f"${VARIABLE}")):
        if given is not None:
            found = FILE.inside(Path(given).expanduser())
            if found is not None:
                return FILE.verified(found)
            if what == "weights_path" or not Path(given).expanduser().is_dir():
                raise _missing(f"{what} is {given}, where no such file is")
    found = FILE.inside(FILE.cached.parent)
    return FILE.verified(found if found is not None else _download(FILE.cached))


def _download(target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(target), hash_prefix=HASH_PREFIX, progress=False)
    except (OSError, RuntimeError) as error:
        raise _missing(f"the download failed ({error})") from error
    return target


def _missing(why: str) -> MissingData:
    return MissingData(
        f"The Inception weights of 'fid', 'kid' and 'is' are missing: {why}. Get {FILE_NAMES[0]} (91 MB) from {URL} "
        f"and put it at {FILE.cached}, or name it with weights_path=FILE (--weights_path FILE on the command line) or "
        f"{VARIABLE}=FILE. For digits in one channel 'fd-lenet5' needs no download."
    )


def _build(state_dict: dict[str, Tensor], where: str) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # its constructor reads a file without weights_only: hand it weights that were read with it, through memory
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return FeatureExtractorInceptionV3(
                STANDARD_INCEPTION, ["2048", "logits_unbiased"], feature_extractor_weights_path=buffer
            )
    except (RuntimeError, AttributeError, TypeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{where} does not hold the weights of this Inception network ({first}). "
            f"The file is {FILE_NAMES[0]}, from {URL}."
        ) from error
