"""The names of tensors here and in diffusers: blocks that several networks have, and state dicts both ways.

A table names for each tensor of ours those of theirs of which it is the concatenation, along the first dimension.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_gen.networks.unet_blocks import ResidualBlock

_DEPRECATED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def block_names(ours: str, theirs: str, index: int, block: ResidualBlock) -> dict[str, list[str]]:
    """Name the parts of a residual block, ours to theirs, and of the attention behind it."""
    resnet, attention = f"{theirs}.resnets.{index}", f"{theirs}.attentions.{index}"
    names = {f"{ours}.{part}": [f"{resnet}.{part}"] for part in ("norm1", "conv1", "norm2", "conv2")}
    if isinstance(block.shortcut, nn.Conv2d):
        names[f"{ours}.shortcut"] = [f"{resnet}.conv_shortcut"]
    if block.attention is not None:
        names[f"{ours}.attention.norm"] = [f"{attention}.group_norm"]
        names[f"{ours}.attention.qkv"] = [f"{attention}.to_{part}" for part in "qkv"]
        names[f"{ours}.attention.out"] = [f"{attention}.to_out.0"]
    return names


def weights_and_biases(modules: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Turn a table of modules that have both into one of their tensors."""
    return {
        f"{ours}.{kind}": [f"{part}.{kind}" for part in theirs]
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }


def modern(name: str) -> str:
    """Return the name that a tensor of attention has had since diffusers 0.15; others as they are."""
    parent, _, kind = name.rpartition(".")
    root, _, last = parent.rpartition(".")
    return f"{root}.{_DEPRECATED[last]}.{kind}" if ".attentions." in name and last in _DEPRECATED else name


def joined(
    state: Mapping[str, Tensor], names: Mapping[str, Sequence[str]], net: nn.Module, kind: str, arguments: str
) -> dict[str, Tensor]:
    """Turn a state dict of theirs into ours.

    Args:
        state: their tensors by name; the names of attention before diffusers 0.15 are understood, too.
        names: the table.
        net: our network, for the shapes; its weights may be on the meta device.
        kind: name of their class, for the messages.
        arguments: what makes the arguments of our network from their config, for the messages.

    Raises:
        ValueError: names the tensors that are missing or left over, or whose shape is another.
    """
    state = {modern(name): value for name, value in state.items()}
    wanted = {part for parts in names.values() for part in parts}
    hint = f"build the network with {arguments} of the same folder."
    if wanted != state.keys():
        missing, surplus = sorted(wanted - state.keys()), sorted(state.keys() - wanted)
        raise ValueError(
            f"The state dict is not that of this {kind}: {_listed(missing)} missing, {_listed(surplus)} left over;"
            f" {hint}"
        )
    ours = {mine: torch.cat([state[part] for part in parts]) for mine, parts in names.items()}
    for name, parameter in net.state_dict().items():
        # Convolutions of 1x1 were once stored for what are linear layers.
        ours[name] = ours[name].flatten(1) if parameter.dim() == 2 else ours[name]
        if ours[name].shape != parameter.shape:
            raise ValueError(
                f"{', '.join(names[name])} give shape {tuple(ours[name].shape)}, and {name} has"
                f" {tuple(parameter.shape)}; {hint}"
            )
    return ours


def parted(
    state: Mapping[str, Tensor], names: Mapping[str, Sequence[str]], sizes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Turn a state dict of ours into theirs.

    Args:
        state: our tensors by name.
        names: the table.
        sizes: by modules, lengths of the parts of their tensors; those of others are equal.
    """
    theirs: dict[str, Tensor] = {}
    for mine, parts in names.items():
        equal = [len(state[mine]) // len(parts)] * len(parts)
        lengths = list((sizes or {}).get(mine.rpartition(".")[0], equal))
        pieces = torch.split(state[mine], lengths) if len(parts) > 1 else [state[mine]]
        theirs |= {part: piece.clone() for part, piece in zip(parts, pieces, strict=True)}
    return theirs


def _listed(names: Sequence[str]) -> str:
    return (", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "nothing"
