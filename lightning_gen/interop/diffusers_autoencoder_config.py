"""The configs of diffusers' `AutoencoderKL` and `VQModel` as arguments of ours, and back.

The weights are in `diffusers_autoencoder`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from lightning_gen.errors import choose
from lightning_gen.interop.diffusers_unet_config import multipliers
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

KL, VQ = "AutoencoderKL", "VQModel"

_COMMON: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
    # which precision their pipelines decode in; ours is the weights'
    "force_upcast": None,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    KL: {
        **_COMMON,
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    VQ: {
        **_COMMON,
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
    },
}
"""What the classes take for a key that a config.json leaves out."""

_ALLOWED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "lookup_from_codebook": (False,),
}
_EPS = 1e-6


class AutoencoderArguments(NamedTuple):
    """Arguments of our networks, plain data; see `diffusers_autoencoder.AutoencoderParts`."""

    kind: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    bottleneck: dict[str, Any]
    scaling_factor: float
    shift_factor: float
    latent_channels: int


def autoencoder_arguments(config: Mapping[str, Any], image_size: Sequence[int] | None = None) -> AutoencoderArguments:
    """Turn the config of an `AutoencoderKL` or a `VQModel` into the arguments of our networks.

    Args:
        config: the contents of config.json; keys left out have diffusers' defaults.
        image_size: height and width to build for, in place of sample_size.

    Raises:
        ValueError: names the key that cannot be mapped.
    """
    kind, config = _completed(config)
    widths, size = list(config["block_out_channels"]), image_size or config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    groups = config["norm_num_groups"]
    if not isinstance(groups, int) or any(width % groups for width in widths):
        raise _refused(kind, "norm_num_groups", groups, "it is a whole number that divides block_out_channels")
    common = {
        "channels": widths[0],
        "channel_multipliers": multipliers(widths),
        "blocks": config["layers_per_block"],
        "middle_attention": bool(config["mid_block_add_attention"]),
        "norm_groups": groups,
        "norm_eps": _EPS,
    }
    latent = config["latent_channels"]
    if kind == KL:
        ends = {"out_channels": 2 * latent, "quant_conv": bool(config["use_quant_conv"])}
        begins = {"in_channels": latent, "post_quant_conv": bool(config["use_post_quant_conv"])}
        bottleneck = {"channels": latent}
    else:
        codes = latent if config["vq_embed_dim"] is None else config["vq_embed_dim"]
        ends = {"out_channels": codes, "quant_conv": True, "quant_channels": latent}
        begins = {"in_channels": codes, "post_quant_conv": True, "quant_channels": latent}
        bottleneck = {"channels": codes, "codebook_size": config["num_vq_embeddings"]}
    shape_in, shape_out = [config["in_channels"], height, width], [config["out_channels"], height, width]
    down = {"image_shape": shape_in, **ends, **common, "attention_levels": _attention_levels(kind, config, "Down")}
    up = {"image_shape": shape_out, **begins, **common, "attention_levels": _attention_levels(kind, config, "Up")}
    scale, shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)
    return AutoencoderArguments(kind, down, up, bottleneck, scale, shift, bottleneck["channels"])


def whitening(config: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """Return mean and deviation that a model of latents takes off, one each for every channel.

    Raises:
        ValueError: names the key that cannot be mapped.
    """
    kind, config = _completed(config)
    scale = float(config["scaling_factor"])
    if not scale > 0:
        raise _refused(kind, "scaling_factor", config["scaling_factor"], "it is above 0")
    mean, std = config.get("latents_mean"), config.get("latents_std")
    for key, value in (("latents_mean", mean), ("latents_std", std)):
        if value is not None and len(value) != channels:
            raise _refused(kind, key, value, f"it has one number for each of the {channels} channels of a latent")
    shift = config.get("shift_factor")
    if shift and mean is not None:
        raise _refused(kind, "shift_factor", shift, "the mean of latents is said by latents_mean as well")
    means = [float(shift or 0.0)] * channels if mean is None else [float(value) for value in mean]
    return means, [(1.0 if std is None else float(std[channel])) / scale for channel in range(channels)]


def _completed(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the class and the config with its defaults."""
    kind = config.get("_class_name", KL)
    defaults = choose("autoencoder that can be mapped", kind, DEFAULTS)
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    for key in given:
        if key not in defaults:
            raise _refused(kind, key, given[key], "the key is not known")
    whole = defaults | given
    for key, allowed in _ALLOWED.items():
        if key in whole and whole[key] not in allowed:
            raise _refused(kind, key, whole[key], f"it is mapped for {' and '.join(map(repr, allowed))} alone")
    return kind, whole


def _refused(kind: str, key: str, value: Any, why: str) -> ValueError:
    return ValueError(f"{kind} with {key}={value!r} has no counterpart here: {why}.")


def _attention_levels(kind: str, config: Mapping[str, Any], way: str) -> list[int]:
    key, coder = f"{way.lower()}_block_types", "Encoder" if way == "Down" else "Decoder"
    known = {f"{way}{coder}Block2D": False, f"Attn{way}{coder}Block2D": True}
    names = list(config[key])
    if len(names) != len(config["block_out_channels"]) or any(name not in known for name in names):
        raise _refused(kind, key, names, f"there is one of {' and '.join(known)} for each of block_out_channels")
    has = [known[name] for name in names]
    return [level for level, attention in enumerate(has if way == "Down" else has[::-1]) if attention]


# ---------------------------------------------------------------------- the other way


def autoencoder_config(
    encoder: ConvolutionalEncoder,
    decoder: ConvolutionalDecoder,
    codebook: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> dict[str, Any]:
    """Turn our networks into the config of an `AutoencoderKL`, or with a codebook of a `VQModel`.

    Args:
        encoder: images to features.
        decoder: latents to images.
        codebook: number and length of the codes, None for a Gaussian bottleneck.
        mean: of each channel of a latent, or one for all; None for 0.
        std: of each channel of a latent, or one for all; None for 1.

    Raises:
        ValueError: names the argument that it cannot express.
    """
    kind = KL if codebook is None else VQ
    groups = _refuse_what_they_lack(encoder, decoder, kind)
    _, height, width = encoder.image_shape
    config = {
        "_class_name": kind,
        "in_channels": encoder.image_shape[0],
        "out_channels": decoder.image_shape[0],
        "down_block_types": _types(encoder, "DownEncoderBlock2D"),
        "up_block_types": _types(decoder, "UpDecoderBlock2D")[::-1],
        "block_out_channels": encoder.widths,
        "layers_per_block": encoder.blocks,
        "act_fn": "silu",
        "norm_num_groups": groups,
        "sample_size": height if height == width else [height, width],
        "mid_block_add_attention": encoder.middle_attention,
        **_factors(kind, decoder.in_channels, mean, std),
    }
    if codebook is None:
        quant = {"use_quant_conv": bool(encoder.quant_channels), "use_post_quant_conv": bool(decoder.quant_channels)}
        return {**config, "latent_channels": decoder.in_channels, **quant}
    size, length = codebook
    if length != decoder.in_channels:
        raise ValueError(f"The codes have length {length}, and the decoder takes {decoder.in_channels} channels.")
    return {**config, "latent_channels": encoder.quant_channels, "num_vq_embeddings": size, "vq_embed_dim": length}


def _types(net: ConvolutionalEncoder | ConvolutionalDecoder, plain: str) -> list[str]:
    return [f"Attn{plain}" if level in net.attention_levels else plain for level in range(len(net.widths))]


def _refuse_what_they_lack(encoder: ConvolutionalEncoder, decoder: ConvolutionalDecoder, kind: str) -> int:
    """Return the number of groups of all normalizations, or refuse networks that their class cannot express."""
    for name in ("widths", "blocks", "middle_attention", "factor"):
        ours, others = getattr(encoder, name), getattr(decoder, name)
        if ours != others:
            raise ValueError(f"{kind} has one {name} for both ways, and encoder and decoder have {ours} and {others}.")
    norms = [part for net in (encoder, decoder) for part in net.modules() if isinstance(part, nn.GroupNorm)]
    counts, eps = {norm.num_groups for norm in norms}, {norm.eps for norm in norms}
    if len(counts) > 1:
        raise ValueError(
            f"Networks whose normalizations have {sorted(counts)} groups cannot be a {kind}; set norm_groups so that it"
            " divides all channels."
        )
    if eps != {_EPS}:
        raise ValueError(f"Networks with norm_eps={min(eps)} cannot be a {kind}, whose own is {_EPS}.")
    outside = (2 if kind == KL else 1) * decoder.in_channels
    if encoder.out_channels != outside:
        raise ValueError(f"The encoder makes {encoder.out_channels} channels, and this {kind} has {outside}.")
    inside = (encoder.quant_channels, decoder.quant_channels)
    if kind == KL and (inside[0] not in (0, encoder.out_channels) or inside[1] not in (0, decoder.in_channels)):
        raise ValueError(
            f"Networks with quant_channels={inside} cannot be an {KL}: its 1x1 convolutions keep the width."
        )
    if kind == VQ and (inside[0] != inside[1] or not inside[0]):
        raise ValueError(f"Networks with quant_channels={inside} cannot be a {VQ}, which has one number for both.")
    return counts.pop()


def _factors(kind: str, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, Any]:
    """Say the whitening by one scale and shift where all channels have the same, else channel by channel."""
    means, stds = list(mean or [0.0]), list(std or [1.0])
    for name, values in (("mean", means), ("std", stds)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} has {len(values)} numbers, and a latent {channels} channels.")
    alike = len(set(means)) == 1 and len(set(stds)) == 1
    if kind == VQ and (not alike or means[0]):
        raise ValueError(
            f"A {VQ} has one scale for all channels of a latent and no mean; given were {means} and {stds}."
        )
    if kind == VQ:
        return {"scaling_factor": 1 / stds[0]}
    if alike:
        return {"scaling_factor": 1 / stds[0], "shift_factor": means[0] or None}
    whole = {"latents_mean": means * (channels // len(means)), "latents_std": stds * (channels // len(stds))}
    return {"scaling_factor": 1.0, "shift_factor": None, **whole}
