"""The U-Net's exchange with the `UNet2DModel` of diffusers: its config and its state dict, both ways.

Pure functions of dictionaries, without diffusers itself. What the two do alike and name differently:

| here                           | there                                                         |
|--------------------------------|---------------------------------------------------------------|
| `modulations`, one for all     | `time_emb_proj` of every residual block                       |
| `qkv`                          | `to_q`, `to_k`, `to_v`                                        |
| `resampling="conv_asymmetric"` | `downsample_padding=0`                                        |
| `resampling="block"`           | `downsample_type="resnet"`, or blocks `ResnetDownsample...`   |
| `modulation="scale_shift"`     | `resnet_time_scale_shift="scale_shift"`                       |
| `num_classes` and `null_class` | `num_class_embeds`, which counts the class "none"             |

References:
    UNet2DModel: https://huggingface.co/docs/diffusers/api/models/unet2d
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gen.interop.diffusers_names import block_names, joined, parted, weights_and_biases
from lightning_gen.interop.diffusers_unet_config import refuse_what_they_lack, unet_arguments, unet_config
from lightning_gen.networks.unet import UNet
from lightning_gen.networks.unet_blocks import ResidualBlock

__all__ = ["parameter_names", "unet_arguments", "unet_config", "unet_from_diffusers", "unet_to_diffusers"]


def _level_names(net: UNet, way: str) -> tuple[dict[str, list[str]], list[str]]:
    """Name the parts of one way through the levels, and in order those that make the modulations."""
    names: dict[str, list[str]] = {}
    projections: list[str] = []
    sampler = f"{way}samplers.0"
    for number, level in enumerate(net.encoder if way == "down" else net.decoder):
        ours, theirs = f"{'encoder' if way == 'down' else 'decoder'}.{number}", f"{way}_blocks.{number}"
        for index, block in enumerate(level.blocks):  # type: ignore[arg-type]
            names |= block_names(f"{ours}.blocks.{index}", theirs, index, block)
            projections.append(f"{theirs}.resnets.{index}.time_emb_proj")
        if isinstance(level.resample, ResidualBlock):
            inside = block_names(f"{ours}.resample", theirs, 0, level.resample)
            names |= {mine: [part.replace("resnets.0", sampler) for part in parts] for mine, parts in inside.items()}
            projections.append(f"{theirs}.{sampler}.time_emb_proj")
        elif level.resample is not None:
            names[f"{ours}.resample.conv"] = [f"{theirs}.{sampler}.conv"]
    return names, projections


def parameter_names(net: UNet) -> dict[str, list[str]]:
    """Name our tensors and theirs: each of ours is the concatenation of theirs along the first dimension."""
    down, down_projections = _level_names(net, "down")
    up, up_projections = _level_names(net, "up")
    middle: dict[str, list[str]] = {}
    for index, block in enumerate(net.middle):
        middle |= block_names(f"middle.{index}", "mid_block", index, block)  # type: ignore[arg-type]
    middle_projections = [f"mid_block.resnets.{index}.time_emb_proj" for index in range(len(net.middle))]
    modules = {
        "embedding.network.hidden": ["time_embedding.linear_1"],
        "embedding.network.out": ["time_embedding.linear_2"],
        "input": ["conv_in"],
        **down,
        **middle,
        **up,
        "norm": ["conv_norm_out"],
        "output": ["conv_out"],
        "modulations": [*down_projections, *middle_projections, *up_projections],
    }
    names = weights_and_biases(modules)
    if net.num_classes is not None:
        names["embedding.table.weight"] = ["class_embedding.weight"]
    return names


def unet_from_diffusers(state: Mapping[str, Tensor], net_or_args: UNet | Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn the state dict of a `UNet2DModel` into that of our network.

    Args:
        state: their tensors by name; the names of attention before diffusers 0.15 are understood, too.
        net_or_args: our network, or what `unet_arguments` returned.

    Returns:
        What `UNet.load_state_dict` takes.

    Raises:
        ValueError: names the tensors that are missing or left over, or whose shape is another.
    """
    net = net_or_args if isinstance(net_or_args, UNet) else _weightless(net_or_args)
    refuse_what_they_lack(net)
    return joined(state, parameter_names(net), net, "UNet2DModel", "unet_arguments(config)")


def unet_to_diffusers(state: Mapping[str, Tensor], net: UNet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the state dict of our network into the config and the state dict of a `UNet2DModel`.

    Args:
        state: our tensors by name, as `net.state_dict()` gives them.
        net: the network.

    Returns:
        What config.json holds, and their tensors by name.

    Raises:
        ValueError: names the argument of the network that a `UNet2DModel` cannot express.
    """
    config = unet_config(net)
    return config, parted(state, parameter_names(net), {"modulations": net.modulation_widths})


def _weightless(arguments: Mapping[str, Any]) -> UNet:
    with torch.device("meta"):
        return UNet(**arguments)
