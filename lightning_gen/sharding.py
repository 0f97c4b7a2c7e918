"""Networks in parts, one part a process: PyTorch's FSDP2, and what it asks of a module that steps by hand.

Every network of a module is sharded, its averages in the same way, so that weights, averages, gradients and the state
of optimizers take 1 / N of the memory. A weight is put together for the layers that are about to use it, and dropped
behind them. The strategy is `lightning_gen.fsdp2.FSDP2`; docs/parallel.md says what is equal to one process.

References:
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel
    https://arxiv.org/abs/2304.11277
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_gen.codec import Codec
from lightning_gen.ema import Averages
from lightning_gen.stepping import tracking_layers

if TYPE_CHECKING:
    from lightning_gen.module import GenerativeModule


COMPILED = (
    "{0} and sharding are not combined: what is put together and dropped around every block breaks the compiled graph"
    " there. Leave {0} out, or use strategy='ddp' (--trainer.strategy ddp)."
)


def shard_networks(module: "GenerativeModule") -> bool:
    """Shard every network of a module; return whether its trainer has a strategy for that.

    What the processes have drawn as initial weights need not be the same: the first one's are taken.

    Raises:
        MisconfigurationException: where the strategy would give several processes the same images, or the module
            trains in a way that sharding does not permit.
    """
    strategy = module.trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return False
    _check_strategy(strategy, module.trainer)
    module.check_sharding()
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    _send_first(module, strategy.root_device)
    mesh = strategy.device_mesh["data_parallel"]
    for network in networks_of(module):
        # What is kept together behind a forward pass that no backward pass follows, as in sampling, would be used
        # again after the next step: the weights of before. So nothing is kept, the outermost layers included.
        for part in (*_blocks(network), network):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        for name in getattr(network, "forward_methods", ()):
            register_fsdp_forward_method(network, name)
    return True


def networks_of(module: nn.Module) -> list[nn.Module]:
    """List what is sharded as a whole: the parts of a module that have weights, and each average of them."""
    networks: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, Averages):
            networks += [child[name].network for name in child.names]
        elif not isinstance(child, Codec):  # frozen, and used in parts of its own
            networks.append(child)
    return [network for network in networks if any(True for _ in network.parameters())]


def _blocks(network: nn.Module) -> list[nn.Module]:
    """List what a network has put together one after the other; a network that does not say is one block."""
    blocks: list[nn.Module] = getattr(network, "blocks_to_shard", list)()
    return blocks


def _check_strategy(strategy: ModelParallelStrategy, trainer: Any) -> None:
    mesh, world = strategy.device_mesh, trainer.world_size
    if mesh["data_parallel"].size() != world:
        raise MisconfigurationException(
            f"{type(strategy).__name__} was given data_parallel_size={mesh['data_parallel'].size()} and"
            f" tensor_parallel_size={mesh['tensor_parallel'].size()}: processes would train on the same images, and no"
            f" network here is tensor-parallel. Use strategy='fsdp2' (--trainer.strategy fsdp2), or"
            f" ModelParallelStrategy(data_parallel_size={world}, tensor_parallel_size=1)."
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise MisconfigurationException(
            "With sharded networks float16 is not scaled right: an overflow in one part is not known to the others."
            " Use precision='bf16-mixed' (--trainer.precision bf16-mixed)."
        )


def _send_first(module: nn.Module, device: torch.device) -> None:
    """Give all processes the weights and buffers of the first one, tensor by tensor."""
    for tensor in (*module.parameters(), *module.buffers()):
        # sharding knows no other order of the dimensions in memory
        here = tensor.detach().to(device).contiguous()
        torch.distributed.broadcast(here, 0)
        tensor.data = here.to(tensor.device)


# ---------------------------------------------------------------------- while it runs


def share_statistics(module: nn.Module) -> None:
    """Give all processes the running statistics of the first one, as DDP does before every batch; all call it.

    Each process normalizes by its own share of a batch and tracks that.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    tracked = [
        buffer
        for layer in tracking_layers(module)
        for buffer in (layer.running_mean, layer.running_var)
        if buffer is not None
    ]
    if not tracked:
        return
    flat = torch.cat([buffer.flatten() for buffer in tracked])
    torch.distributed.broadcast(flat, 0)
    for buffer, sent in zip(tracked, torch.split(flat, [buffer.numel() for buffer in tracked]), strict=True):
        buffer.copy_(sent.view_as(buffer))


def _parts(module: nn.Module) -> Iterator[Any]:
    from torch.distributed.fsdp import FSDPModule

    return (part for part in module.modules() if isinstance(part, FSDPModule))


def keep_through_backward(network: nn.Module) -> None:
    """Keep the weights of a sharded network together behind a backward pass, until `put_away`.

    A penalty on a gradient is differentiated again, and the second pass finds the weights where the first left them.
    """
    for part in _parts(network):
        part.set_reshard_after_backward(False, recurse=False)


def put_away(module: nn.Module) -> None:
    """Drop the weights that are still together, before an optimizer moves the parts."""
    for part in _parts(module):
        part.reshard()


def forget_order(module: nn.Module) -> None:
    """Drop what FSDP2 writes down of every forward pass for a backward pass, which in sampling never comes."""
    for part in _parts(module):
        state = part._get_fsdp_state()
        getattr(state._comm_ctx, "post_forward_order", []).clear()
        group = state._fsdp_param_group
        if group is not None:
            group._post_forward_indices.clear()


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the tensors of a state together; all processes call it."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def in_parts(value: Any, like: Tensor) -> Any:
    """Return this process's part of a tensor that has the shape of a sharded one; anything else as it is."""
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
