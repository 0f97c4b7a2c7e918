"""Folders of diffusers' autoencoders, `AutoencoderKL` and `VQModel`, read as an `Autoencoder` and written from one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gen.autoencoder.bottlenecks import Bottleneck, GaussianBottleneck
from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.autoencoder.quantizers import VectorQuantizer
from lightning_gen.interop.describing import describe, path_of
from lightning_gen.interop.diffusers_autoencoder import autoencoder_parts, autoencoder_to_diffusers
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

AUTOENCODERS = ("AutoencoderKL", "VQModel")


def autoencoder_from(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], image_size: Sequence[int] | None = None
) -> Autoencoder:
    """Build the `Autoencoder` of a config and a state dict of diffusers.

    Args:
        config: the contents of config.json.
        weights: the tensors by name.
        image_size: height and width to build for, in place of those that the config says.

    Returns:
        The model in evaluation mode, in float32, or in float64 where the weights are; its checkpoints load by
        themselves.

    Raises:
        ValueError: for what cannot be mapped; says which entry and value.
    """
    parts = autoencoder_parts(config, weights, image_size)
    kind: type[Bottleneck] = GaussianBottleneck if parts.codebook is None else VectorQuantizer
    # the initial weights, replaced at once, shall not move the caller's random numbers
    with torch.random.fork_rng(devices=[]):
        encoder, decoder = ConvolutionalEncoder(**parts.encoder), ConvolutionalDecoder(**parts.decoder)
        bottleneck = kind(**parts.bottleneck)
    module = Autoencoder(encoder, decoder, bottleneck)
    module.to(next(iter(parts.encoder_state.values())).dtype)
    encoder.load_state_dict(parts.encoder_state)
    decoder.load_state_dict(parts.decoder_state)
    if parts.codebook is not None:
        bottleneck.load_state_dict({**bottleneck.state_dict(), "codebook.codes": parts.codebook})
    given = {"encoder": (encoder, parts.encoder), "decoder": (decoder, parts.decoder)}
    given |= {"bottleneck": (bottleneck, parts.bottleneck)}
    describe(module, {name: {"class_path": path_of(type(part)), "init_args": a} for name, (part, a) in given.items()})
    return module.eval()


def autoencoder_folder(module: Autoencoder, weights: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what config.json holds, and the tensors by name.

    Args:
        module: the model.
        weights: "raw", "ema", ...; the first average where there is one.

    Raises:
        ValueError: for a model that diffusers has nothing like; names the part.
    """
    net, _ = module.latent_network(weights)
    return network_folder(net)


def network_folder(
    net: AutoencoderNet, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what config.json holds, and the tensors by name, of a network.

    Args:
        net: the network.
        mean: of each channel of its latents, which a model of them takes off; None for 0.
        std: of each channel; None for 1.

    Raises:
        ValueError: for a network that diffusers has nothing like; names the part.
    """
    encoder, decoder, bottleneck = net.encoder, net.decoder, net.bottleneck
    if not isinstance(encoder, ConvolutionalEncoder) or not isinstance(decoder, ConvolutionalDecoder):
        raise ValueError(
            f"A {type(encoder).__name__} is no network of diffusers; an autoencoder that can go out has a"
            " ConvolutionalEncoder and a ConvolutionalDecoder."
        )
    if isinstance(bottleneck, VectorQuantizer) and not bottleneck.codebook.normalized:
        return autoencoder_to_diffusers(encoder, decoder, bottleneck.codebook.codes, mean, std)
    if isinstance(bottleneck, GaussianBottleneck):
        return autoencoder_to_diffusers(encoder, decoder, None, mean, std)
    raise ValueError(
        f"diffusers has nothing like this {type(bottleneck).__name__}; a GaussianBottleneck can go out, and a"
        " VectorQuantizer whose codes are not normalized."
    )
