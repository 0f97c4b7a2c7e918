"""The condition of a training batch, and the one that a person asks for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gen.labels import ClassPrior, label_of
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.seeding import RandomStream


def condition_of_batch(batch: Mapping[str, Tensor], net: DenoisingNetwork) -> Condition:
    """Take what the network is told from a batch of training data.

    Raises:
        ValueError: where the data lacks it.
    """
    label = label_of(batch, net.num_classes)
    for name, width in (("vector", net.vector_dim), ("tokens", net.token_dim)):
        if width and name not in batch:
            raise ValueError(f"This model is told a '{name}' of width {width}, and its data has none in its batches.")
    return Condition(
        label=label,
        vector=batch["vector"] if net.vector_dim else None,
        tokens=batch["tokens"] if net.token_dim else None,
        mask=batch.get("mask") if net.token_dim else None,
    )


def condition_of_request(
    cond: Any,
    net: DenoisingNetwork,
    prior: ClassPrior,
    stream: RandomStream,
    n: int,
    device: torch.device,
) -> Condition:
    """Turn what `sample` is asked for into a condition.

    Args:
        cond: classes, or a dict of "label", "vector", "tokens", "mask".
        net: the network that is told.
        prior: draws classes where none is given.
        stream: draws classes.
        n: number of samples.
        device: where they are made.

    Raises:
        ValueError: for what the network cannot be told, and for what it needs and is not given.
    """
    asked = dict(cond) if isinstance(cond, Mapping) else {"label": cond}
    unknown = [key for key in asked if key not in ("label", "vector", "tokens", "mask")]
    if unknown:
        raise ValueError(f"cond has label, vector, tokens and mask; given was '{unknown[0]}'.")
    told: dict[str, Tensor | None] = {"label": prior.labels(stream, n, asked.pop("label", None))}
    for name, width in (("vector", net.vector_dim), ("tokens", net.token_dim)):
        value = asked.get(name)
        if (value is None) != (width == 0):
            raise ValueError(
                f"This model takes no '{name}'." if width == 0 else f"This model needs cond={{'{name}': ...}}."
            )
        if value is not None:
            value = torch.as_tensor(value, device=device)
            told[name] = value.expand(n, *value.shape[1:]) if len(value) == 1 else value
    if asked.get("mask") is not None and net.token_dim:
        mask = torch.as_tensor(asked["mask"], device=device)
        told["mask"] = mask.expand(n, -1)
    elif asked.get("mask") is not None:
        raise ValueError("This model takes no 'mask', which says which tokens are there: it takes no 'tokens'.")
    if net.augment_dim:
        told["augment"] = torch.zeros(n, net.augment_dim, device=device)
    return Condition(**told)
