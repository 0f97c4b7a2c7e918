"""A run that continues has its codec in its checkpoint: the file that it was taken from may be gone, or another one."""

from typing import Any, cast

from torch import nn

from lightning_gen.checkpoints import check_names


def own_codec(checkpoint: dict[str, Any] | None, settings: Any) -> dict[str, Any] | None:
    """Return class path and arguments of the codec that a checkpoint holds, where the model is to have one.

    Args:
        checkpoint: that the run continues from; None for a new run.
        settings: the arguments of the command.
    """
    if checkpoint is None or not (settings.model.get("init_args") or {}).get("codec"):
        return None
    kept = (checkpoint.get("hyper_parameters") or {}).get("codec")
    weights = any(name.startswith("codec.") for name in checkpoint.get("state_dict") or {})
    if not isinstance(kept, dict) or not weights:
        return None
    check_names(kept, "that this run continues from")
    return cast(dict[str, Any], kept)


def take_codec_weights(model: Any, checkpoint: dict[str, Any]) -> None:
    """Give the codec of a model the weights of the checkpoint, before anything asks whose latents it makes."""
    codec = cast(nn.Module, model.codec)
    prefix = "codec."
    state = checkpoint["state_dict"]
    codec.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
