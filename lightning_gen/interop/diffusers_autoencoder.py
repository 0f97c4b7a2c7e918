"""The exchange of convolutional autoencoders with the `AutoencoderKL` and the `VQModel` of diffusers, both ways.

Pure functions of dictionaries, without diffusers itself. What the two do alike and name differently:

| here                                   | there                                                       |
|----------------------------------------|-------------------------------------------------------------|
| `ConvolutionalEncoder.quant_conv`      | `quant_conv`, beside the encoder                            |
| `ConvolutionalDecoder.post_quant_conv` | `post_quant_conv`, beside the decoder                       |
| `levels`                               | `down_blocks`, `up_blocks`                                  |
| `attention_levels`                     | blocks `AttnDownEncoderBlock2D`, `AttnUpDecoderBlock2D`     |
| `qkv`                                  | `to_q`, `to_k`, `to_v`                                      |
| mean m of latents                      | `shift_factor`, or `latents_mean`                           |
| standard deviation s of latents        | 1 / `scaling_factor`, or `latents_std` / `scaling_factor`   |

A model of latents learns (z - m) / s, which there is (z - shift_factor) scaling_factor. Dropout is of training alone
and has no place in their config.

References:
    AutoencoderKL: https://huggingface.co/docs/diffusers/api/models/autoencoderkl
    VQModel: https://huggingface.co/docs/diffusers/api/models/vq
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.interop.diffusers_autoencoder_config import (
    VQ,
    autoencoder_arguments,
    autoencoder_config,
    whitening,
)
from lightning_gen.interop.diffusers_names import block_names, joined, parted, weights_and_biases
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

__all__ = ["AutoencoderParts", "autoencoder_parts", "autoencoder_to_diffusers"]

_CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True)
class AutoencoderParts:
    """An autoencoder of diffusers in our terms.

    Attributes:
        encoder: arguments of a `ConvolutionalEncoder`, plain data.
        decoder: arguments of a `ConvolutionalDecoder`.
        bottleneck: arguments of a `GaussianBottleneck` (`channels`), or with a codebook of a `VectorQuantizer`
            (`channels`, `codebook_size`).
        scaling_factor: what latents are multiplied by for a model of them.
        shift_factor: what is subtracted before.
        mean: m of each channel of a latent.
        std: s of each channel.
        encoder_state: state dict of the encoder.
        decoder_state: state dict of the decoder.
        codebook: `(K, channels)` of a `VQModel`; None for an `AutoencoderKL`.
    """

    encoder: dict[str, Any]
    decoder: dict[str, Any]
    bottleneck: dict[str, Any]
    scaling_factor: float
    shift_factor: float
    mean: list[float]
    std: list[float]
    encoder_state: dict[str, Tensor]
    decoder_state: dict[str, Tensor]
    codebook: Tensor | None = None


def autoencoder_parts(
    config: Mapping[str, Any], state: Mapping[str, Tensor], image_size: Sequence[int] | None = None
) -> AutoencoderParts:
    """Turn config and state dict of an `AutoencoderKL` or a `VQModel` into arguments and state dicts of ours.

    Args:
        config: the contents of config.json; keys left out have diffusers' defaults.
        state: their tensors by name; the names of attention before diffusers 0.15 are understood, too.
        image_size: height and width to build for, in place of sample_size; other sizes are taken, too.

    Raises:
        ValueError: names the key that cannot be mapped, or the tensors that are missing, left over or of another
            shape.
    """
    arguments = autoencoder_arguments(config, image_size)
    with torch.device("meta"):
        encoder, decoder = ConvolutionalEncoder(**arguments.encoder), ConvolutionalDecoder(**arguments.decoder)
    state, codebook = dict(state), None
    if arguments.kind == VQ:
        if _CODEBOOK not in state:
            raise ValueError(f"The state dict is not that of this {VQ}: {_CODEBOOK} missing.")
        codebook = state.pop(_CODEBOOK)
        wanted = (arguments.bottleneck["codebook_size"], arguments.bottleneck["channels"])
        if tuple(codebook.shape) != wanted:
            raise ValueError(f"{_CODEBOOK} has the shape {tuple(codebook.shape)}, and the config says {wanted}.")
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    ours = joined(state, _names(encoder, decoder), both, arguments.kind, "autoencoder_parts(config, state)")
    mean, std = whitening(config, arguments.latent_channels)
    return AutoencoderParts(
        arguments.encoder,
        arguments.decoder,
        arguments.bottleneck,
        arguments.scaling_factor,
        arguments.shift_factor,
        mean,
        std,
        _part_of(ours, "encoder"),
        _part_of(ours, "decoder"),
        codebook,
    )


def autoencoder_to_diffusers(
    encoder: ConvolutionalEncoder,
    decoder: ConvolutionalDecoder,
    codebook: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn our networks into config and state dict of an `AutoencoderKL`, or with a codebook of a `VQModel`.

    Args:
        encoder: images to features.
        decoder: latents to images.
        codebook: codes `(K, channels)`, None for a Gaussian bottleneck.
        mean: m of each channel of a latent, or one for all; None for 0.
        std: s of each channel of a latent, or one for all; None for 1.

    Returns:
        What config.json holds, and their tensors by name.

    Raises:
        ValueError: names the argument of the networks that diffusers cannot express.
    """
    config = autoencoder_config(encoder, decoder, None if codebook is None else tuple(codebook.shape), mean, std)
    ours = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    ours |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    theirs = parted({name: value.detach() for name, value in ours.items()}, _names(encoder, decoder))
    if codebook is not None:
        theirs[_CODEBOOK] = codebook.detach().clone()
    return config, theirs


def _part_of(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _names(encoder: ConvolutionalEncoder, decoder: ConvolutionalDecoder) -> dict[str, list[str]]:
    """Name our tensors and theirs."""
    modules = {**_network_names(encoder, "encoder", "down"), **_network_names(decoder, "decoder", "up")}
    if encoder.quant_conv is not None:
        modules["encoder.quant_conv"] = ["quant_conv"]
    if decoder.post_quant_conv is not None:
        modules["decoder.post_quant_conv"] = ["post_quant_conv"]
    return weights_and_biases(modules)


def _network_names(net: ConvolutionalEncoder | ConvolutionalDecoder, name: str, way: str) -> dict[str, list[str]]:
    names = {
        f"{name}.input": [f"{name}.conv_in"],
        f"{name}.norm": [f"{name}.conv_norm_out"],
        f"{name}.output": [f"{name}.conv_out"],
    }
    for number, level in enumerate(net.levels):
        ours, theirs = f"{name}.levels.{number}", f"{name}.{way}_blocks.{number}"
        for index, block in enumerate(level.blocks):  # type: ignore[arg-type]
            names |= block_names(f"{ours}.blocks.{index}", theirs, index, block)
        if level.resample is not None:
            names[f"{ours}.resample.conv"] = [f"{theirs}.{way}samplers.0.conv"]
    for index, block in enumerate(net.middle):
        names |= block_names(f"{name}.middle.{index}", f"{name}.mid_block", index, block)  # type: ignore[arg-type]
    return names
