"""The config of diffusers' `UNet2DModel` as arguments of `UNet`, and back; the weights are in `diffusers_unet`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_gen.networks.embeddings import PositionalEmbedding
from lightning_gen.networks.unet import UNet

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""What `UNet2DModel` takes for a key that a config.json leaves out."""

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}


_MESSAGES = {
    "channel_multipliers": "UNet whose first of channel_multipliers is {value:g}, not 1, cannot be a UNet2DModel.",
    "image_channels": "UNet with image_channels={value} and learned_variance cannot be told from its UNet2DModel.",
    "norm_groups": "UNet whose normalizations have {value} different numbers of groups cannot be a UNet2DModel; set"
    " norm_groups and norm_group_width so that all have the same.",
}


def _refused(key: str, value: Any, why: str) -> ValueError:
    return ValueError(f"UNet2DModel with {key}={value!r} has no counterpart here: {why}.")


def unet_arguments(
    config: Mapping[str, Any], image_size: Sequence[int] | None = None, null_class: bool = False
) -> dict[str, Any]:
    """Turn the config of a `UNet2DModel` into the arguments of `UNet`.

    Args:
        config: the contents of config.json; keys left out have diffusers' defaults.
        image_size: height and width, where the config has no sample_size or another one.
        null_class: whether the last row of the class table stands for "no class".

    Returns:
        Plain data, fit for `UNet(**arguments)` or for YAML.

    Raises:
        ValueError: names the key that cannot be mapped.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    name = config.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise ValueError(f"This is the config of {name}; only that of a UNet2DModel can be mapped.")
    for key in given:
        if key not in DEFAULTS:
            raise _refused(key, given[key], "the key is not known")
    config = DEFAULTS | given
    for key, allowed in _ALLOWED.items():
        if config[key] not in allowed:
            raise _refused(key, config[key], f"it is mapped for {' and '.join(map(repr, allowed))} alone")
    widths = list(config["block_out_channels"])
    return {
        **_channels(config, image_size),
        "channels": widths[0],
        "channel_multipliers": multipliers(widths),
        "blocks": config["layers_per_block"],
        "attention_levels": _attention_levels(config),
        "middle_attention": bool(config["add_attention"]),
        "head_dim": config["attention_head_dim"],
        "dropout": config["dropout"],
        "norm_groups": _groups(config),
        "norm_group_width": 1,
        "norm_eps": config["norm_eps"],
        "modulation": "add" if config["resnet_time_scale_shift"] == "default" else "scale_shift",
        "resampling": _resampling(config),
        "embedding_order": "cos_sin" if config["flip_sin_to_cos"] else "sin_cos",
        "embedding_freq_shift": config["freq_shift"],
        "embedding_dim": config["time_embedding_dim"] or 4 * widths[0],
        **_classes(config, null_class),
    }


def multipliers(widths: list[int]) -> list[float]:
    """Return the widths of levels as multiples of the first."""
    factors = [width / widths[0] for width in widths]
    return [int(factor) if factor == int(factor) else factor for factor in factors]


def _channels(config: Mapping[str, Any], image_size: Sequence[int] | None) -> dict[str, Any]:
    inputs, outputs, size = config["in_channels"], config["out_channels"], image_size or config["sample_size"]
    if size is None:
        raise _refused("sample_size", None, "the network is built for one size; give image_size=(height, width)")
    height, width = (size, size) if isinstance(size, int) else size
    if inputs < outputs != 2 * inputs:
        raise _refused("out_channels", outputs, f"it is at most in_channels ({inputs}), or twice that")
    learned = outputs == 2 * inputs
    channels = inputs if learned else outputs
    return {
        "image_shape": [channels, height, width],
        "learned_variance": learned,
        "image_channels": inputs - channels,
    }


def _classes(config: Mapping[str, Any], null_class: bool) -> dict[str, Any]:
    rows = config["num_class_embeds"]
    if rows is None:
        return {"num_classes": None}
    if rows - null_class < 1:
        raise _refused("num_class_embeds", rows, "with null_class it counts one row for 'none' and one a class")
    return {"num_classes": rows - null_class, "null_class": null_class, "class_embedding": "table"}


def _groups(config: Mapping[str, Any]) -> int:
    groups, middle = config["norm_num_groups"], config["attn_norm_num_groups"]
    if not isinstance(groups, int) or any(width % groups for width in config["block_out_channels"]):
        raise _refused("norm_num_groups", groups, "it is a whole number that divides block_out_channels")
    missing = middle is None and config["resnet_time_scale_shift"] == "scale_shift"
    if config["add_attention"] and (missing or middle not in (None, groups)):
        why = f"attention in the middle is normalized like everything else, in norm_num_groups={groups} groups"
        raise _refused("attn_norm_num_groups", middle, why)
    return groups


def _kinds(config: Mapping[str, Any], way: str) -> list[tuple[bool, str]]:
    """Return for each block of one way, from full resolution down, whether it has attention and how it resamples."""
    key = f"{way.lower()}_block_types"
    known = {
        f"{way}Block2D": (False, "conv"),
        f"Attn{way}Block2D": (True, config[f"{way.lower()}sample_type"]),
        f"Resnet{way}sampleBlock2D": (False, "resnet"),
    }
    kinds = []
    for name in config[key]:
        short = name.removeprefix("UNetRes")
        if short not in known:
            raise _refused(key, list(config[key]), f"{name!r} is not among {', '.join(known)}")
        kinds.append(known[short])
    if len(kinds) != len(config["block_out_channels"]):
        raise _refused(key, list(config[key]), "there is one block for each of block_out_channels")
    return kinds if way == "Down" else kinds[::-1]


def _attention_levels(config: Mapping[str, Any]) -> list[int]:
    down, up = ([level for level, (has, _) in enumerate(_kinds(config, way)) if has] for way in ("Down", "Up"))
    if down != up:
        raise _refused(
            "up_block_types",
            list(config["up_block_types"]),
            f"attention is at the same levels on both ways, and down_block_types has it at {down}, not {up}",
        )
    return down


def _resampling(config: Mapping[str, Any]) -> str:
    # At the deepest level nothing is resampled.
    down, up = ([how for _, how in _kinds(config, way)][:-1] for way in ("Down", "Up"))
    hows = set(down) | set(up)
    if len(hows) > 1:
        why = f"all levels resample alike, and here they do so by {down} downwards and {up} upwards"
        raise _refused("down_block_types", list(config["down_block_types"]), why)
    if hows == {"resnet"}:
        return "block"
    return "conv" if config["downsample_padding"] == 1 else "conv_asymmetric"


def refuse_what_they_lack(net: UNet) -> None:
    """Refuse a network that a `UNet2DModel` cannot express.

    Raises:
        ValueError: names the argument.
    """
    settings = net.settings
    for name, value, allowed in (
        ("channel_multipliers", net.widths[0] / net.channels, (1,)),
        ("decoder_attention", net.decoder_attention if net.attention_levels else "all", ("all",)),
        ("resampling", net.resampling, ("conv", "conv_asymmetric", "block")),
        ("resample_projection", settings.resample_projection and net.resampling == "block", (False,)),
        ("skip_scale", settings.skip_scale, (1,)),
        (
            "embedding",
            "positional" if isinstance(net.embedding.features, PositionalEmbedding) else "fourier",
            ("positional",),
        ),
        ("class_embedding", net.class_embedding if net.num_classes else "table", ("table",)),
        ("vector_dim", net.vector_dim, (0,)),
        ("token_dim", net.token_dim, (0,)),
        ("augment_dim", net.augment_dim, (0,)),
        ("image_channels", net.image_channels if net.learned_variance else 0, (0,)),
        ("two_times", net.two_times, (False,)),
        ("patch_size", net.patch_size, (1,)),
        ("norm_groups", len({norm.num_groups for norm in net.modules() if isinstance(norm, torch.nn.GroupNorm)}), (1,)),
    ):
        if value not in allowed:
            raise ValueError(
                _MESSAGES.get(name, "UNet with {name}={value!r} cannot be a UNet2DModel.").format(
                    name=name, value=value
                )
            )


def unet_config(net: UNet) -> dict[str, Any]:
    """Turn our network's arguments into the config of a `UNet2DModel`.

    Raises:
        ValueError: names the argument that it cannot express.
    """
    refuse_what_they_lack(net)
    features, settings = net.embedding.features, net.settings
    attention = [level in net.attention_levels for level in range(len(net.widths))]
    inside = net.resampling == "block"

    def kinds(way: str) -> list[str]:
        plain = f"Resnet{way}sampleBlock2D" if inside else f"{way}Block2D"
        return [f"Attn{way}Block2D" if has else plain for has in attention]

    _, height, width = net.image_shape
    groups = net.norm.num_groups
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": net.in_channels,
        "out_channels": net.out_channels,
        "freq_shift": getattr(features, "freq_shift", 0),
        "flip_sin_to_cos": features.order == "cos_sin",
        "time_embedding_dim": net.embedding_dim,
        "down_block_types": kinds("Down"),
        "up_block_types": kinds("Up")[::-1],
        "block_out_channels": net.widths,
        "layers_per_block": net.blocks,
        "downsample_padding": 0 if net.resampling == "conv_asymmetric" else 1,
        "downsample_type": "resnet" if inside else "conv",
        "upsample_type": "resnet" if inside else "conv",
        "dropout": settings.dropout,
        "attention_head_dim": settings.head_dim,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": settings.eps,
        "resnet_time_scale_shift": "default" if settings.modulation == "add" else "scale_shift",
        "add_attention": net.middle_attention,
        "num_class_embeds": net.label_rows or None,
    }
