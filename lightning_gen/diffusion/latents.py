"""Diffusion in the latents of a codec: what fits, what is learned of the data, and images on the way in and out."""

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.codec import Codec
from lightning_gen.training_images import evenly, training_split

if TYPE_CHECKING:
    from lightning_gen.diffusion.module import Diffusion

NO_LIKELIHOOD = (
    "Bits per dimension are those of images, and this model tells the density of latents: set likelihood_steps=0"
    " (--model.likelihood_steps 0)."
)
# images that are encoded at a time where the whitening is learned
_BATCH = 64


def check_codec(module: "Diffusion") -> None:
    """Refuse a codec that does not fit the network, and parts that are made for images.

    Raises:
        ValueError: says which numbers, or which part, to change.
    """
    codec = module.codec
    if codec is None:
        return
    if tuple(module.net.image_shape) != tuple(codec.latent_shape):
        raise ValueError(
            f"The codec's latents have the shape {tuple(codec.latent_shape)}, the network is built for"
            f" {tuple(module.net.image_shape)}: set image_shape of the network to {list(codec.latent_shape)}."
        )
    for part, what in ((module.threshold, "threshold"), (module.conditioner, "conditioner")):
        if part is not None:
            raise ValueError(
                f"{what} {type(part).__name__} is made for images in [-1, 1], and with a codec the network learns"
                f" latents: leave {what} out."
            )
    if module.augmentation is not None:
        raise ValueError(
            "NonLeakyAugmentation is of images, and with a codec the network learns latents: leave it out."
        )
    if module.likelihood_steps:
        raise ValueError(NO_LIKELIHOOD)


def describe_codec(hyperparameters: MutableMapping[str, Any], codec: Codec | None) -> None:
    """Let hyperparameters name the codec by its network in place of its file, which need not be there later."""
    if codec is not None and isinstance(hyperparameters.get("codec"), dict):
        described = codec.described()
        if described is not None:
            hyperparameters["codec"] = described


def latents_of(batch: dict[str, Tensor], codec: Codec) -> dict[str, Tensor]:
    """Put whitened latents in the place of a batch's images: those it brings, or its images encoded."""
    if "latent" in batch:
        rest = {name: value for name, value in batch.items() if name != "latent"}
        return {**rest, "image": codec.whitening(batch["latent"].to(codec.mean.dtype))}
    return {**batch, "image": codec.encode(batch["image"])}


def start_of_latents(codec: Codec, picture: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Encode a picture to begin from; a latent pixel is kept where all of its pixels are."""
    if kept is not None:
        size = codec.latent_shape[1:]
        kept = (F.interpolate(kept, size, mode="area") > 1 - 1e-6).to(kept.dtype)
    return codec.encode(picture), kept


def check_cache(codec: Codec | None, datamodule: Any) -> None:
    """Refuse latents that were cached by another codec.

    Raises:
        ValueError: says whose they are.
    """
    made_by = getattr(datamodule, "codec_fingerprint", None)
    if made_by is None:
        return
    if codec is None:
        raise ValueError(
            "The data are cached latents, and this model has no codec to decode them: give it the one that made them"
            " (--model.codec TrainedCodec --model.codec.checkpoint PATH)."
        )
    if made_by != codec.fingerprint():
        raise ValueError(
            f"The cached latents were made by another codec (fingerprint {made_by}) than this model's"
            f" ({codec.fingerprint()}): give the checkpoint and weights of the `lightning-gen latents` command, or"
            " write the latents again with this codec, to another folder."
        )


def whiten(codec: Codec, datamodule: Any, device: torch.device) -> None:
    """Take mean and standard deviation of the latents from the training images, once; every process takes the same.

    Raises:
        MisconfigurationException: where the data module's training images cannot be read one by one.
    """
    if bool(codec.whitened) or codec.whiten == 0:
        return
    statistics = getattr(datamodule, "latent_statistics", None)
    if statistics is not None:
        codec.take(*statistics)
        return
    images = training_split(
        datamodule, "A codec's latents are whitened by those of training images; whiten=0 leaves them as they are."
    )

    def latents() -> Iterator[Tensor]:
        for _, batch in evenly(images, codec.whiten, _BATCH):
            yield codec.raw(batch.to(device=device, dtype=codec.mean.dtype))

    codec.learn(latents())
