"""What the families have in common that train one network by one loss, and draw from averages of it."""

from abc import ABC
from typing import Any

from torch import Tensor

from lightning_gen.ema import Averages
from lightning_gen.module import GenerativeModule
from lightning_gen.nonfinite import LossesOfABatch, NonFiniteLoss


class OneNetwork(GenerativeModule, ABC):
    """A module whose first optimizer trains `net`, in steps of `accumulate` batches.

    Attributes:
        net: the network, with `image_shape`.
        net_ema: averages of its weights.
        nonfinite: looks at the losses, of those that use `accepts`.
    """

    net: Any
    net_ema: Averages
    nonfinite: NonFiniteLoss
    _learned: int = 0  # images of this step so far, those of batches left out not counted

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape `(C, H, W)` of an image."""
        return tuple(self.net.image_shape)

    def weights_used(self, weights: str | None = None, **how: Any) -> str:
        """Name the weights that `sample(weights=...)` draws by."""
        return self.net_ema.resolve(weights)

    @property
    def micro(self) -> int:
        """Number of this batch in its step, from 0 to accumulate - 1."""
        return self.batch_number % self.accumulate

    @property
    def skipped_batches(self) -> int:
        """Batches left out for their loss, on this process, and steps left out for their gradient."""
        steps = getattr(self, "steps", None)
        return self.nonfinite.skipped + (steps.gradients.skipped if steps is not None else 0)

    def learn_from(self, images: int) -> None:
        """Count the images of this batch, on this process, towards the step."""
        self._learned = images + (0 if self.micro == 0 else self._learned)

    def accepts(self, losses: LossesOfABatch, images: int) -> bool:
        """Tell whether this batch of so many images may be learned from, and count them if so.

        Raises:
            RunError: where its loss is not finite, and the policy is to stop.
        """
        accepted = self.nonfinite.accepts(losses, self.iterations, self.trainer.world_size)
        self.learn_from(images if accepted else 0)
        return accepted

    def take_step(self, loss: Tensor | None) -> bool:
        """Take the step, or this batch's part of it, and move the averages behind it; None leaves the batch out.

        Returns:
            Whether the network moved.
        """
        moved = self.steps.skip(micro=self.micro) if loss is None else self.steps(loss, micro=self.micro)
        if moved:
            self.net_ema.update(self.net, self.saw(self._learned), self.images_seen)
        return moved
