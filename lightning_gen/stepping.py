"""The one way an optimizer moves in this package.

Every family steps by hand, since a GAN has to. Lightning then neither accumulates, clips nor steps a
schedule, refuses the Trainer's arguments for them, and counts every optimizer's step as a step of
training. All of that is put right here:

* the gradients of `accumulate` micro-batches are averaged, as the Trainer would;
* gradients are clipped after they are unscaled, where float16 training scales them;
* each optimizer has a gradient scaler of its own: one scaler would change the scale of one loss by the
  overflow of another, and between the backward passes that are being accumulated;
* a gradient that is NaN or infinite moves nothing: it ends the run, or is left out and counted;
* one optimizer a module is counted: `max_steps`, checkpoints, schedules and the loggers' x axis count
  its steps, which are the iterations of training.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_gen.nonfinite import FiniteGradients, NonFinitePolicy

if TYPE_CHECKING:
    from lightning_gen.module import GenerativeModule

ClipAlgorithm = Literal["norm", "value"]


class Stepping:
    """Backward passes and optimizer steps of one module during one `fit`.

    Args:
        module: the module whose losses and optimizers these are.
        accumulate: micro-batches in an optimizer step.
        clip_val: bound of the gradient's norm, or of each entry; None clips nothing.
        clip_algorithm: "norm" bounds the norm over all parameters of the optimizer, "value" each entry.
        on_nonfinite: what to do at a gradient that is NaN or infinite.
    """

    def __init__(
        self,
        module: "GenerativeModule",
        accumulate: int = 1,
        clip_val: float | None = None,
        clip_algorithm: ClipAlgorithm = "norm",
        on_nonfinite: NonFinitePolicy = "stop",
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"accumulate is the number of micro-batches in a step, 1 or more; given was {accumulate}.")
        if clip_val is not None and clip_val <= 0:
            raise ValueError(f"gradient_clip_val is above 0, or null for no clipping; given was {clip_val}.")
        self.module, self.accumulate = module, accumulate
        self.clip_val, self.clip_algorithm = clip_val, clip_algorithm
        self.gradients = FiniteGradients(on_nonfinite)
        self._optimizers = _as_list(module.optimizers())
        self._schedulers = _as_list(module.lr_schedulers())
        self._direct = _nothing_in_between(module)
        scaler = getattr(module.trainer.precision_plugin, "scaler", None)
        self._scalers = {} if scaler is None else {i: copy.deepcopy(scaler) for i in range(1, len(self._optimizers))}

    def __call__(self, loss: Tensor, index: int = 0, *, micro: int = 0, counted: bool = True) -> bool:
        """Add the gradient of one micro-batch; after the last one, move the optimizer.

        Args:
            loss: a scalar, the mean over the samples of the micro-batch.
            index: which of the module's optimizers it is for.
            micro: number of the micro-batch in its step, from 0 to accumulate - 1.
            counted: whether the step ends an iteration of training.

        Returns:
            Whether the optimizer moved.
        """
        optimizer = self._optimizers[index]
        last = micro == self.accumulate - 1
        if micro == 0:
            optimizer.zero_grad(set_to_none=True)
        if self.accumulate > 1:
            loss = loss / self.accumulate
        if self._direct:
            loss.backward()  # type: ignore[no-untyped-call]
            return last and self._move(optimizer, counted)
        with self._scaler_of(index), nullcontext() if last else self._no_sync():
            self.module.manual_backward(loss)
            return last and self._move(optimizer, counted)

    def skip(self, index: int = 0, *, micro: int = 0, counted: bool = True) -> bool:
        """Leave one micro-batch out: its gradient is 0, and a step in which all were left out is not taken.

        All processes leave out the same ones.

        Args:
            index: which of the module's optimizers it would have been for.
            micro: number of the micro-batch in its step.
            counted: whether the step ends an iteration of training.

        Returns:
            Whether the optimizer moved, by the gradients of the others.
        """
        optimizer = self._optimizers[index]
        if micro == 0:
            optimizer.zero_grad(set_to_none=True)
        moves = micro == self.accumulate - 1 and any(
            parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]
        )
        if moves:
            self._exchange(optimizer)
            with self._scaler_of(index):
                return self._move(optimizer, counted)
        return False

    def _exchange(self, optimizer: LightningOptimizer) -> None:
        """Average over processes what `_no_sync` kept back: the pass that would have done so was left out."""
        if not isinstance(self.module.trainer.strategy.model, DistributedDataParallel):
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # a parameter that no process used keeps having no gradient
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.module.device)
        torch.distributed.all_reduce(used, torch.distributed.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()

    def clip(self, optimizer: Optimizer) -> None:
        """Clip what the module's `on_before_optimizer_step` is given: gradients that are unscaled by then."""
        if self.clip_val is None:
            return
        plugin = self.module.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # bfloat16 scales nothing; Lightning refuses all fused optimizers here, which unscale where there is a scale
            Precision.clip_gradients(plugin, optimizer, self.clip_val, GradClipAlgorithmType(self.clip_algorithm))
        else:
            self.module.clip_gradients(optimizer, self.clip_val, self.clip_algorithm)

    def _finite(self, optimizer: LightningOptimizer) -> bool:
        """Tell whether a step may be taken; where gradients are scaled, the scaler does."""
        if getattr(self.module.trainer.precision_plugin, "scaler", None) is not None:
            return True
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return self.gradients.accepts(gradients, lambda: self._where(optimizer))

    def _where(self, optimizer: LightningOptimizer) -> str:
        """Say whose step of which iteration it is, and the place of its last batch in the data."""
        number = [one.optimizer for one in self._optimizers].index(optimizer.optimizer)
        which = "" if len(self._optimizers) == 1 else f"for optimizer {number} "
        loop: Any = self.module.trainer.fit_loop
        batch, epoch = loop.epoch_loop.batch_idx, loop.epoch_progress.current.processed
        return f"iteration {self.module.iterations} {which}(batch {batch} of epoch {epoch})"

    def _move(self, optimizer: LightningOptimizer, counted: bool) -> bool:
        if not self._finite(optimizer):
            return False
        if not counted:
            # Lightning sets these anew for every batch, so nothing has to be put back
            optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
        if self._direct:
            optimizer._on_before_step()
            self.clip(optimizer.optimizer)
            optimizer.optimizer.step()
            optimizer._on_after_step()
        else:
            optimizer.step()
        if counted:
            for scheduler in self._schedulers:
                scheduler.step()
        return True

    def _no_sync(self) -> AbstractContextManager[None]:
        """Processes exchange gradients once a step, not once a micro-batch."""
        block = getattr(self.module.trainer.strategy, "block_backward_sync", None)
        return block() if block is not None else nullcontext()

    @contextmanager
    def _scaler_of(self, index: int) -> Iterator[None]:
        if index not in self._scalers:
            yield
            return
        plugin: Any = self.module.trainer.precision_plugin
        first, plugin.scaler = plugin.scaler, self._scalers[index]
        try:
            yield
        finally:
            plugin.scaler = first

    def state_dict(self) -> dict[int, Any]:
        """Return the state of every scaler but the first, which Lightning saves."""
        return {index: scaler.state_dict() for index, scaler in self._scalers.items()}

    def load_state_dict(self, state: dict[int, Any]) -> None:
        """Take the scalers' states back; those of a run in another precision are left alone."""
        for index, scaler in self._scalers.items():
            if index in state:
                scaler.load_state_dict(state[index])


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network without making any for its parameters.

    Sharded parameters are left as they are: they refuse the change, and zero_grad drops their gradients.
    """
    parameters = [p for p in network.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def gradients_aside(network: nn.Module) -> Iterator[None]:
    """Drop the gradients that the block makes for a network, and put those back that it had before."""
    kept = [(parameter, parameter.grad) for parameter in network.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def tracking_layers(network: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """Find the layers of a network that keep running statistics."""
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats
    ]


@contextmanager
def untracked_statistics(layers: Sequence[nn.modules.batchnorm._NormBase]) -> Iterator[None]:
    """Let `tracking_layers` normalize by the batch without moving their running statistics."""
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode and, after the block, each of its parts back as it was."""
    training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled networks uncompiled: compiled ones have no second derivative."""
    with torch.compiler.set_stance("force_eager"):
        yield


_BETWEEN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


def _nothing_in_between(module: "GenerativeModule") -> bool:
    """Tell whether Lightning would add nothing to a backward pass and a step: one process, one precision, no hooks.

    What it does to find that out takes longer than a small network, see docs/performance.md.
    """
    from lightning_gen.module import GenerativeModule

    trainer: Any = module.trainer
    if type(trainer.strategy) is not SingleDeviceStrategy or type(trainer.precision_plugin) is not Precision:
        return False
    hooked = [(type(callback), Callback) for callback in trainer.callbacks] + [(type(module), GenerativeModule)]
    return all(getattr(cls, name) is getattr(base, name) for cls, base in hooked for name in _BETWEEN)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
