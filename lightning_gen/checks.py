"""What a trainer must have, and must not have, to train modules that step by hand."""

from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy


def check_callbacks(savers: Iterable[Any]) -> None:
    """Refuse callbacks that would never save.

    Raises:
        MisconfigurationException: says which one to use.
    """
    if any(getattr(saver, "_train_time_interval", None) for saver in savers):
        raise MisconfigurationException(
            "ModelCheckpoint(train_time_interval=...) never saves a model that steps by hand, as these do: use"
            " LastCheckpoint(every_minutes=...)."
        )


def expect_unused_parameters(strategy: Any) -> None:
    """Let DDP expect parameters without a gradient: a GAN's backward pass leaves half.

    Raises:
        MisconfigurationException: where it was told not to.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    if not strategy._ddp_kwargs["find_unused_parameters"] or strategy._ddp_kwargs.get("static_graph"):
        raise MisconfigurationException(
            "These losses leave parameters without a gradient, which DDP has to be told:"
            " use strategy='ddp_find_unused_parameters_true', without static_graph."
        )
