"""Diffusion transformers from and to diffusers' `DiTTransformer2DModel`.

Its weights are those of `DiT`, laid out otherwise:

- every block has a copy of the embeddings of time and class, of which `DiT` has one: an export writes copies, an
  import refuses copies that differ;
- the blocks' shifts, scales and gates come from a linear layer a block; here from one of all their rows;
- queries, keys and values come from three linear layers; here from one;
- the patches are cut by a convolution; here by a linear layer with the kernel's entries in the same order.

Three facts are not in its config: the frequencies of the time end at 1/10000 exactly (`freq_shift=1`, other than
published), the norms before attention and at the end add 1e-6 to the variance whatever `norm_eps` says, and the
table of classes has a row more than `num_embeds_ada_norm`, for "none".

References:
    Scalable Diffusion Models with Transformers
    https://arxiv.org/abs/2212.09748
    diffusers, DiTTransformer2DModel
    https://huggingface.co/docs/diffusers/api/models/dit_transformer2d
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gen.networks.dit import DiT

_EPS = 1e-6
_CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# what the configs say by default, and the only value that can be taken
_ONLY: dict[str, Any] = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "upcast_attention": False,
    "attention_type": "default",
}
_READ = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}
_UNUSED = ("norm_num_groups",)
_ENDS = (("pos_embed.proj", "patch_embedding"), ("proj_out_1", "final_modulation"), ("proj_out_2", "final"))
_TIME = (("timestep_embedder.linear_1", "time.hidden"), ("timestep_embedder.linear_2", "time.out"))
_BLOCK = (("attn1.to_out.0", "attention.out"), ("ff.net.0.proj", "mlp.hidden"), ("ff.net.2", "mlp.out"))
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")


def dit_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the `DiT` that a config describes.

    Args:
        config: the content of `config.json`.

    Raises:
        ValueError: names an entry that asks for what `DiT` has not.
    """
    name = config.get("_class_name", _CLASSES[0])
    if name not in _CLASSES:
        raise ValueError(f"The config is of a {name}; a DiT is made from one of a {_CLASSES[0]}.")
    for key, value in config.items():
        if key in _ONLY and value != _ONLY[key]:
            raise ValueError(f"The config has {key}={value!r}, and DiT knows no other than {_ONLY[key]!r}.")
        known = key in _ONLY or key in _READ or key in _UNUSED or key.startswith("_")
        # the older Transformer2DModel lists what other models need, as null or false
        if not known and value:
            raise ValueError(f"The config has {key}={value!r}, of which DiT knows nothing.")
    given = {key: config.get(key, default) for key, default in _READ.items()}
    missing = [key for key, value in given.items() if value is None and key != "out_channels"]
    if missing:
        raise ValueError(f"The config says nothing of {', '.join(missing)}, which DiT needs.")
    channels = given["in_channels"]
    out_channels = channels if given["out_channels"] is None else given["out_channels"]
    if out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"The config has out_channels={out_channels} and in_channels={channels}; DiT returns as many channels as it"
            " takes, or twice as many where the variance is learned."
        )
    return {
        "image_shape": [channels, given["sample_size"], given["sample_size"]],
        "width": given["num_attention_heads"] * given["attention_head_dim"],
        "depth": given["num_layers"],
        "heads": given["num_attention_heads"],
        "patch_size": given["patch_size"],
        "num_classes": given["num_embeds_ada_norm"],
        "learned_variance": out_channels != channels,
        "qkv_bias": given["attention_bias"],
        "dropout": given["dropout"],
        "norm_eps": _EPS,
        "mlp_norm_eps": given["norm_eps"],
        "freq_shift": 1,
    }


def dit_config(net: DiT) -> dict[str, Any]:
    """Return the config that describes a `DiT`.

    Raises:
        ValueError: names the arguments of the network that the config cannot express.
    """
    _check(net)
    channels, side, _ = net.image_shape
    return {
        "_class_name": _CLASSES[0],
        "num_attention_heads": net.heads,
        "attention_head_dim": net.width // net.heads,
        "in_channels": channels,
        "out_channels": net.out_channels,
        "num_layers": net.depth,
        "dropout": net.dropout,
        "norm_num_groups": 32,
        "attention_bias": net.qkv_bias,
        "sample_size": side,
        "patch_size": net.patch_size,
        "activation_fn": _ONLY["activation_fn"],
        "num_embeds_ada_norm": net.num_classes,
        "upcast_attention": _ONLY["upcast_attention"],
        "norm_type": _ONLY["norm_type"],
        "norm_elementwise_affine": _ONLY["norm_elementwise_affine"],
        "norm_eps": net.mlp_norm_eps,
    }


def dit_from_diffusers(state: Mapping[str, Tensor], net: DiT) -> dict[str, Tensor]:
    """Return the state dict of a `DiT` from that of a `DiTTransformer2DModel`.

    Args:
        state: diffusers' state dict.
        net: the network it is for, as `dit_arguments` describes it; its weights are not read.

    Raises:
        ValueError: names weights that are missing, left over, of another shape, or copies that differ.
    """
    _check(net)
    left = dict(state)
    blocks = [f"transformer_blocks.{i}." for i in range(net.depth)]
    kinds = ("weight", "bias")
    qkv_kinds = kinds if net.qkv_bias else kinds[:1]
    out = {f"{ours}.{kind}": _take(left, f"{theirs}.{kind}") for theirs, ours in _ENDS for kind in kinds}
    out["patch_embedding.weight"] = out["patch_embedding.weight"].flatten(1)
    for theirs, ours in _TIME:
        for kind in kinds:
            out[f"{ours}.{kind}"] = _same(left, [f"{block}norm1.emb.{theirs}.{kind}" for block in blocks])
    tables = [f"{block}norm1.emb.class_embedder.embedding_table.weight" for block in blocks]
    out["classes.weight"] = _same(left, tables)
    for kind in kinds:
        out[f"modulation.{kind}"] = torch.cat([_take(left, f"{block}norm1.linear.{kind}") for block in blocks])
    for i, block in enumerate(blocks):
        for theirs, ours in _BLOCK:
            out |= {f"blocks.{i}.{ours}.{kind}": _take(left, f"{block}{theirs}.{kind}") for kind in kinds}
        for kind in qkv_kinds:
            out[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat([_take(left, f"{block}{q}.{kind}") for q in _QKV])
    if left:
        raise ValueError(f"DiT has no place for the weights {_listed(left)}.")
    _check_shapes(out, net)
    return out


def dit_to_diffusers(state: Mapping[str, Tensor], net: DiT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and state dict of the `DiTTransformer2DModel` that computes the same.

    Args:
        state: state dict of a `DiT`; its averages, say.
        net: the network it is of; its weights are not read.

    Returns:
        The content of `config.json` and a state dict that shares no memory within itself.

    Raises:
        ValueError: names the arguments of the network that diffusers has not, or weights that do not fit.
    """
    config = dit_config(net)
    _check_shapes(state, net)
    kinds = ("weight", "bias")
    out = {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for theirs, ours in _ENDS for kind in kinds}
    size = net.patch_size
    out["pos_embed.proj.weight"] = out["pos_embed.proj.weight"].reshape(net.width, net.in_channels, size, size)
    for i in range(net.depth):
        block = f"transformer_blocks.{i}."
        for theirs, ours in _TIME:
            out |= {f"{block}norm1.emb.{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in kinds}
        out[f"{block}norm1.emb.class_embedder.embedding_table.weight"] = state["classes.weight"]
        for kind in kinds:
            out[f"{block}norm1.linear.{kind}"] = state[f"modulation.{kind}"].chunk(net.depth)[i]
        for theirs, ours in _BLOCK:
            out |= {f"{block}{theirs}.{kind}": state[f"blocks.{i}.{ours}.{kind}"] for kind in kinds}
        for kind in kinds if net.qkv_bias else kinds[:1]:
            parts = state[f"blocks.{i}.attention.qkv.{kind}"].chunk(3)
            out |= {f"{block}{theirs}.{kind}": part for theirs, part in zip(_QKV, parts, strict=True)}
    return config, {name: value.detach().clone() for name, value in out.items()}


def _check(net: DiT) -> None:
    """Refuse a network that computes what a `DiTTransformer2DModel` does not."""
    channels, height, _ = net.image_shape
    wanted: dict[str, tuple[Any, Any]] = {
        "mlp": (net.mlp_name, "gelu"),
        "mlp_ratio": (net.mlp_ratio, 4),
        "norm": (net.norm_name, "layer"),
        "norm_eps": (net.norm_eps, _EPS),
        "qk_norm": (net.qk_norm, False),
        "positions": (net.positions, "sincos"),
        "freq_shift": (net.freq_shift, 1),
        "null_class": (net.null_class, True),
        "vector_dim": (net.vector_dim, 0),
        "token_dim": (net.token_dim, 0),
        "image_channels": (net.image_channels, 0),
        "augment_dim": (net.augment_dim, 0),
        "two_times": (net.two_times, False),
        "image_shape": (net.image_shape, (channels, height, height)),
    }
    if net.num_classes is None:
        wanted = {"num_classes": (None, "a number of classes"), **wanted}
    wrong = [f"{name}={given!r} (it has {only!r})" for name, (given, only) in wanted.items() if given != only]
    if wrong:
        raise ValueError(f"diffusers' {_CLASSES[0]} has nothing like this DiT's {', '.join(wrong)}.")


def _take(left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise ValueError(f"The state dict has no '{name}'; is it of a {_CLASSES[0]} of this depth and these biases?")
    return left.pop(name)


def _same(left: dict[str, Tensor], names: list[str]) -> Tensor:
    """Take what should be copies of one weight."""
    first, *copies = (_take(left, name) for name in names)
    for name, copy in zip(names[1:], copies, strict=True):
        if not torch.equal(copy, first):
            raise ValueError(f"'{name}' differs from '{names[0]}', and DiT has one embedding for all blocks.")
    return first


def _check_shapes(state: Mapping[str, Tensor], net: DiT) -> None:
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    if lacking := shapes.keys() - state.keys():
        raise ValueError(f"The state dict lacks {_listed(lacking)}.")
    if more := state.keys() - shapes.keys():
        raise ValueError(f"The network has no place for {_listed(more)}.")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"'{name}' has the shape {tuple(state[name].shape)}, and the network takes {shape}.")


def _listed(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    return f"'{first}'" + (f" and {len(more)} more" if more else "")
