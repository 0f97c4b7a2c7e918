r"""The autoencoder beside the network in a pipeline of diffusers: read as a codec, and written from one.

A pipeline of latents multiplies those of its autoencoder by one `scaling_factor`. A codec here takes the mean m and the
standard deviation s off each channel, and writes what it makes of them into the 1x1 convolutions at the ends of an
`AutoencoderKL`, which then needs no factor:

.. math:: \mu' = (\mu - m) / s, \qquad \log\sigma'^2 = \log\sigma^2 - 2 \log s, \qquad P'(y) = P(s\,y + m),

:math:`\mu, \log\sigma^2` coming out of `quant_conv` and P being `post_quant_conv`. A `VQModel` looks up codes between
the two, and has to be whitened by one factor alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.codec import Codec
from lightning_gen.interop.autoencoder_folders import autoencoder_from, network_folder
from lightning_gen.interop.describing import path_of
from lightning_gen.interop.diffusers_autoencoder_config import KL, whitening
from lightning_gen.interop.model_files import CONFIG, read_json, read_weights

CODECS = ("vae", "vqvae")
"""What pipelines call their autoencoder."""


class ReadCodec(NamedTuple):
    """A codec, and the class path and arguments that a checkpoint rebuilds it from."""

    codec: Codec
    described: dict[str, Any]


def codec_from(folder: Path, latent_shape: tuple[int, ...]) -> ReadCodec:
    """Read the autoencoder of a pipeline.

    Args:
        folder: with its config and weights.
        latent_shape: `(c, h, w)` of what the network makes; its images get the size that belongs to it.

    Raises:
        ValueError: where it cannot be mapped, or makes other latents.
    """
    config = read_json(folder / CONFIG)
    factor = 2 ** (len(config.get("block_out_channels", (64,))) - 1)
    size = [side * factor for side in latent_shape[1:]]
    network, described = autoencoder_from(config, read_weights(folder), size).latent_network()
    if network.latent_shape != tuple(latent_shape):
        raise ValueError(
            f"The autoencoder in {folder} makes latents {network.latent_shape}, the network beside it takes"
            f" {tuple(latent_shape)}."
        )
    codec = Codec(network)
    mean, std = whitening(config, network.latent_shape[0])
    codec.take(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
    return ReadCodec(codec, {"class_path": path_of(Codec), "init_args": {"network": described}})


def codec_folder(codec: Codec) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what config.json holds, and the tensors by name, of an autoencoder with a codec's latents.

    Raises:
        ValueError: for a codec that diffusers has nothing like; names the part.
    """
    network = codec.network
    if not isinstance(network, AutoencoderNet):
        raise ValueError(
            f"A codec with a {type(network).__name__} has no counterpart in diffusers: those that can go out are of an"
            " Autoencoder."
        )
    mean, std = codec.mean.flatten(), codec.std.flatten()
    config, state = network_folder(network)
    if config["_class_name"] == KL:
        return folded(config, state, mean, std)
    return network_folder(network, mean.tolist(), std.tolist())


def folded(
    config: Mapping[str, Any], state: Mapping[str, Tensor], mean: Tensor, std: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors of an `AutoencoderKL` whose own latents are whitened.

    Args:
        config: of the one whose latents are not.
        state: its tensors.
        mean: m of each channel, `(c,)`.
        std: s of each channel, `(c,)`.
    """
    like = next(iter(state.values()))
    mean, std = mean.to(like), std.to(like)
    before, of_before = _convolution(state, "quant_conv", 2 * len(mean), like)
    after, of_after = _convolution(state, "post_quant_conv", len(mean), like)
    scale = torch.cat([1 / std, torch.ones_like(std)])
    offset = torch.cat([-mean / std, -2 * std.log()])
    made = {
        "quant_conv.weight": scale[:, None] * before,
        "quant_conv.bias": scale * of_before + offset,
        "post_quant_conv.weight": after * std,
        "post_quant_conv.bias": of_after + after @ mean,
    }
    made = {name: value[:, :, None, None] if name.endswith("weight") else value for name, value in made.items()}
    convolutions = {"use_quant_conv": True, "use_post_quant_conv": True}
    return {**config, **convolutions, "scaling_factor": 1.0}, {**state, **made}


def _convolution(state: Mapping[str, Tensor], name: str, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a 1x1 convolution; where there is none, those that change nothing."""
    if f"{name}.weight" in state:
        return state[f"{name}.weight"][:, :, 0, 0], state[f"{name}.bias"]
    return torch.eye(channels).to(like), torch.zeros(channels).to(like)
