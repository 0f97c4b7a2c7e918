"""A generative model and a data set of the smallest size, for the tests of the command line."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_gen.module import GenerativeModule
from lightning_gen.seeding import RandomStream


class ToyNet(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 16), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).view(-1, 1, 4, 4)


class OtherToyNet(ToyNet):
    pass


class Toy(GenerativeModule):
    """Fits the mean image.

    Args:
        net: the generator.
        num_classes: classes that `cond` may name.
        lr: the learning rate.
        stop_at: batch at which to raise.
        stop_by: what to raise.
    """

    def __init__(
        self,
        net: ToyNet,
        num_classes: int | None = None,
        lr: float = 1e-2,
        stop_at: int = -1,
        stop_by: str = "error",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net, self.num_classes, self.lr = net, num_classes, lr
        self.stop_at, self.stop_by = stop_at, stop_by

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (1, 4, 4)

    def draw(self, stream: RandomStream, n: int, cond: Any = None, truncation: float | None = None) -> Tensor:
        z = stream.normal(2)
        if truncation is not None:
            z = z.clamp(-truncation, truncation)
        images = self.net(z.to(self.dtype))
        if cond is not None:
            # the first pixel tells the class
            label = torch.as_tensor(cond, device=self.device).expand(n)
            images = images.clone()
            images[:, 0, 0, 0] = label / 10.0
        return images

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.batch_number == self.stop_at:
            stop(self.stop_by)
        loss = (self.draw_batch(len(batch["image"])) - batch["image"]).square().mean()
        self.steps(loss)
        self.saw(len(batch["image"]))
        self.log_scalars({"train/loss": loss}, bar=["train/loss"])

    def draw_batch(self, n: int) -> Tensor:
        return self.net(torch.randn(n, 2, device=self.device))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", (self.draw_batch(1) - batch["image"]).square().mean())

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/loss", (self.draw_batch(1) - batch["image"]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=self.lr)


def stop(how: str) -> None:
    import os
    import signal

    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "sigint":
        os.kill(os.getpid(), signal.SIGINT)
    elif how == "sigterm":
        os.kill(os.getpid(), signal.SIGTERM)
    elif how == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    else:
        raise ZeroDivisionError("a bug")


class ToyImages(Dataset):
    def __init__(self, n: int, shape: tuple[int, int, int]) -> None:
        # all alike: a loader that is not put back in its place gives what the right one would give
        image = torch.randint(0, 256, (1, *shape), generator=torch.Generator().manual_seed(n)).byte()
        self.images = image.expand(n, *shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": torch.tensor(index % 3)}


class ToyData(LightningDataModule):
    """One random image, many times.

    Args:
        batch_size: images in a batch.
        batches: batches in an epoch.
        size: height and width.
    """

    name = "toy"
    num_classes = 3
    class_names = None

    def __init__(self, batch_size: int = 4, batches: int = 5, size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size, self.batches, self.shape = batch_size, batches, (1, size, size)

    def split(self, name: str) -> ToyImages:
        return ToyImages(self.batch_size * self.batches, self.shape)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.split("train"), self.batch_size, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.split("val"), self.batch_size)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(range(8), batch_size=4)


class PooledToyData(ToyData):
    """The toy's data, with an argument of its own.

    Args:
        pool: does nothing.
    """

    def __init__(self, pool: int = 2, batch_size: int = 4) -> None:
        super().__init__(batch_size)
        self.pool = pool
