r"""EDM's U-Nets, `SongUNet` as DDPM++ and `DhariwalUNet` (ADM), as arguments and weights of `UNet`.

The layers are the same; these are the differences of their layout:

- each block makes its modulation by a linear layer of its own; in `UNet` they are the rows of one;
- queries, keys and values are 1x1 convolutions whose channels run over head, entry, then (query, key, value); in
  `UNet` over (query, key, value), head, then entry, as a linear layer;
- ADM's classes are a linear layer of the one-hot label without a bias, which is a table of its columns; DDPM++'s
  one-hot label is scaled by :math:`\sqrt K` in both.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models
    https://arxiv.org/abs/2206.00364
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.errors import choose
from lightning_gen.interop.edm_pickle import EDMNetwork
from lightning_gen.networks.unet import UNet
from lightning_gen.networks.unet_blocks import ResidualBlock

_REQUIRED = ("img_resolution", "in_channels", "out_channels")
_SHARED: dict[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.1,
    "label_dropout": 0,
}
_SONG = _SHARED | {
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
}
_DHARIWAL = _SHARED | {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
# what makes a SongUNet the one of DDPM++
_DDPMPP: dict[str, Any] = {
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_OURS: dict[str, dict[str, Any]] = {
    "SongUNet": {
        "decoder_attention": "last",
        "resample_projection": True,
        "skip_scale": math.sqrt(0.5),
        "norm_eps": 1e-6,
        "class_embedding": "one_hot",
        "embedding_order": "sin_cos",
        "embedding_freq_shift": 1,
    },
    "DhariwalUNet": {
        "decoder_attention": "all",
        "head_dim": 64,
        "norm_eps": 1e-5,
        "modulation": "scale_shift",
        "class_embedding": "table",
        "embedding_order": "cos_sin",
        "embedding_freq_shift": 0,
    },
}
_BLOCK = (("norm0", "norm1"), ("conv0", "conv1"), ("norm1", "norm2"), ("conv1", "conv2"), ("skip", "shortcut"))


def edm_arguments(network: EDMNetwork) -> dict[str, Any]:
    """Return the arguments of the `UNet` that computes what a network of an EDM pickle does.

    Args:
        network: a SongUNet or DhariwalUNet, or the preconditioned network around one.

    Raises:
        ValueError: names what `UNet` cannot be made to compute.
    """
    inner = _inner(network)
    defaults = _SONG if inner.class_name == "SongUNet" else _DHARIWAL
    only = _DDPMPP if inner.class_name == "SongUNet" else {}
    for name, value in inner.arguments.items():
        if name in only and value != only[name]:
            raise ValueError(
                f"The {inner.class_name} has {name}={value!r}, and UNet knows no other than {only[name]!r} (DDPM++)."
            )
        if name not in (*_REQUIRED, *defaults, *only):
            raise ValueError(f"The {inner.class_name} has {name}={value!r}, of which UNet knows nothing.")
    missing = [name for name in _REQUIRED if name not in inner.arguments]
    if missing:
        raise ValueError(f"The {inner.class_name} of the pickle does not say its {', '.join(missing)}.")
    given = defaults | inner.arguments
    channels, out_channels, side = given["in_channels"], given["out_channels"], given["img_resolution"]
    if out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"The {inner.class_name} turns {channels} channels into {out_channels}; UNet as many or twice."
        )
    if inner.class_name == "DhariwalUNet" and given["channel_mult"][0] != 1:
        raise ValueError(
            f"The DhariwalUNet has channel_mult={given['channel_mult']}; UNet's first layer has the width 1."
        )
    levels = range(len(given["channel_mult"]))
    return {
        "image_shape": [channels, side, side],
        "channels": given["model_channels"],
        "channel_multipliers": list(given["channel_mult"]),
        "blocks": given["num_blocks"],
        "attention_levels": [level for level in levels if side >> level in given["attn_resolutions"]],
        "embedding_dim": given["model_channels"] * given["channel_mult_emb"],
        "dropout": given["dropout"],
        "num_classes": given["label_dim"] or None,
        "null_class": given["label_dropout"] > 0,
        "learned_variance": out_channels != channels,
        "augment_dim": given["augment_dim"],
        "resampling": "block",
        **_OURS[inner.class_name],
    }


def edm_state(network: EDMNetwork, net: UNet) -> dict[str, Tensor]:
    """Return the state dict of a `UNet` from a network of an EDM pickle.

    Args:
        network: a SongUNet or DhariwalUNet, or the preconditioned network around one.
        net: the network it is for, as `edm_arguments` describes it; its weights are not read.

    Raises:
        ValueError: names weights that are missing, left over or of another shape.
    """
    moving = _Moving(_inner(network).state, {name: tuple(value.shape) for name, value in net.state_dict().items()})
    side = f"{net.image_shape[1]}x{net.image_shape[1]}"
    song = _inner(network).class_name == "SongUNet"
    for theirs, ours in (
        ("map_layer0", "embedding.network.hidden"),
        ("map_layer1", "embedding.network.out"),
        ("map_augment", "embedding.augment"),
        ("map_label", "embedding.classes"),
        (f"enc.{side}_conv", "input"),
        (f"dec.{side}_aux_norm" if song else "out_norm", "norm"),
        (f"dec.{side}_aux_conv" if song else "out_conv", "output"),
    ):
        moving.move(theirs, ours)
    if "embedding.table.weight" in moving.shapes:
        table = moving.take("map_label.weight").T
        none = table.new_zeros(net.label_rows - len(table), table.shape[1])
        moving.out["embedding.table.weight"] = torch.cat([table, none])
    blocks = _blocks(net)
    for ours, theirs in blocks.items():
        _move_block(moving, theirs, ours, net.get_submodule(ours))
    for kind in ("weight", "bias"):
        rows = [moving.take(f"{theirs}.affine.{kind}") for theirs in blocks.values()]
        moving.out[f"modulations.{kind}"] = torch.cat(rows)
    return moving.result()


class _Moving:
    """Weights on their way from one state dict to another."""

    def __init__(self, state: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
        self.left, self.shapes, self.out = dict(state), shapes, dict[str, Tensor]()

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise ValueError(
                f"The network of the pickle has no '{name}'; is the UNet of the same depth, attention and conditions?"
            )
        return self.left.pop(name)

    def move(self, theirs: str, ours: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Move weight and bias of a layer, those of them that our layer has."""
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in self.shapes:
                value = self.take(f"{theirs}.{kind}")
                self.out[f"{ours}.{kind}"] = value if change is None else change(value)

    def result(self) -> dict[str, Tensor]:
        if self.left:
            raise ValueError(f"UNet has no place for the weights {', '.join(sorted(self.left)[:5])}.")
        for name, shape in self.shapes.items():
            given = tuple(self.out[name].shape)
            if given != shape:
                raise ValueError(f"'{name}' has the shape {given}, and the network takes {shape}.")
        return self.out


def _move_block(moving: _Moving, theirs: str, ours: str, block: nn.Module) -> None:
    for one, other in _BLOCK:
        moving.move(f"{theirs}.{one}", f"{ours}.{other}")
    if isinstance(block, ResidualBlock) and block.attention is not None:
        heads = block.attention.heads
        moving.move(f"{theirs}.norm2", f"{ours}.attention.norm")
        moving.move(f"{theirs}.qkv", f"{ours}.attention.qkv", lambda value: _grouped(value, heads))
        moving.move(f"{theirs}.proj", f"{ours}.attention.out", _linear)
    for layer in ("conv0", "skip"):
        kernel = moving.left.pop(f"{theirs}.{layer}.resample_filter", None)
        if kernel is not None and not (kernel.shape[-2:] == (2, 2) and bool((kernel == 0.25).all())):
            raise ValueError(
                f"'{theirs}.{layer}' resamples by another filter than the mean of 2x2 pixels, the only one of UNet."
            )


def _linear(value: Tensor) -> Tensor:
    """Make the weight of a 1x1 convolution one of a linear layer; a bias stays as it is."""
    return value.flatten(1) if value.ndim > 1 else value


def _grouped(value: Tensor, heads: int) -> Tensor:
    """Bring the outputs from the order (head, entry, 3) to (3, head, entry)."""
    value = _linear(value)
    split = value.reshape(heads, len(value) // heads // 3, 3, *value.shape[1:])
    return split.movedim(2, 0).reshape(value.shape)


def _inner(network: EDMNetwork) -> EDMNetwork:
    inner = network if network.model is None else network.model
    choose("U-Net of EDM that can be mapped", inner.class_name, _OURS)
    return inner


def _blocks(net: UNet) -> dict[str, str]:
    """Return EDM's names of the residual blocks by ours, in the order of their modulations."""
    levels, side = len(net.widths), net.image_shape[1]
    sides = [f"{side >> level}x{side >> level}" for level in range(levels)]
    names: dict[str, str] = {"middle.0": f"dec.{sides[-1]}_in0", "middle.1": f"dec.{sides[-1]}_in1"}
    for level, size in enumerate(sides):
        down, up = f"encoder.{level}", f"decoder.{levels - 1 - level}"
        names |= {f"{down}.blocks.{i}": f"enc.{size}_block{i}" for i in range(net.blocks)}
        names |= {f"{up}.blocks.{i}": f"dec.{size}_block{i}" for i in range(net.blocks + 1)}
        if level + 1 < levels:
            names[f"{down}.resample"] = f"enc.{sides[level + 1]}_down"
        if level:
            names[f"{up}.resample"] = f"dec.{sides[level - 1]}_up"
    return {ours: names[ours] for ours, part in net.named_modules() if isinstance(part, ResidualBlock)}
