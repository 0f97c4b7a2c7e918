r"""Which images a rank reads, in which order, and from where after a restart.

The order of epoch :math:`e` is one permutation :math:`\pi(\text{seed}, e)` for all ranks; rank :math:`r`
of :math:`R` takes :math:`\pi_r, \pi_{r+R}, \ldots`. Batch :math:`b` of all ranks together then holds the
same images as batch :math:`b` of one process with :math:`R` times the batch size.
"""

import math
from collections.abc import Iterator, Sized

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_gen.data.datasets import Batch
from lightning_gen.seeding import mix


class EpochSampler(DistributedSampler[int]):
    """A rank's share of the permutation of an epoch, as indices `index + epoch * n` for `BatchView`.

    Being a DistributedSampler, it is kept by Lightning, which calls `set_epoch`. Every rank gets
    floor(n / ranks) images; the rest is left out, and another rest in each epoch. Fewer images than
    ranks are repeated, one a rank.

    Args:
        dataset: anything of length n.
        num_replicas: number of ranks.
        rank: this one.
        seed: the order of epoch e is a function of (seed, e) alone.
    """

    def __init__(self, dataset: Sized, num_replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        if len(dataset) == 0:
            raise ValueError("There is no image to train on.")
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.size = len(dataset)
        self.num_samples = max(1, self.size // num_replicas)
        self.total_size = self.num_samples * num_replicas
        self._resumed: tuple[int, int] | None = None

    def resume(self, epoch: int, skipped: int) -> None:
        """Leave out the first `skipped` images of this rank in that epoch, and in no other."""
        self._resumed = (epoch, skipped)

    def skipped(self) -> int:
        """Return how many of this rank's images are left out in the current epoch."""
        return self._resumed[1] if self._resumed is not None and self._resumed[0] == self.epoch else 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        order = order.repeat(math.ceil(self.total_size / self.size))[: self.total_size]
        share = order[self.rank :: self.num_replicas][self.skipped() :]
        return iter((share + self.epoch * self.size).tolist())


class RankSampler(DistributedSampler[int]):
    """A rank's share of images in their order, none repeated, none left out: lengths may differ by one.

    Args:
        dataset: anything of length n.
        num_replicas: number of ranks.
        rank: this one.
    """

    def __init__(self, dataset: Sized, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, len(dataset), num_replicas)
        self.num_samples, self.total_size = len(self.share), len(dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)


def even_batch_size(n_images: int, num_replicas: int, batch_size: int) -> int:
    """Return the largest batch size, up to `batch_size`, that gives all ranks as many batches.

    Ranks of floor(n / R) and of that plus one image differ in their number of batches where the former
    is a multiple of the batch size. DDP sends the buffers of rank 0 round before every batch, in
    validation too: the last batch of some ranks would be a collective call that the others never make.
    """
    floor, rest = divmod(n_images, num_replicas)
    if rest == 0:
        return batch_size
    return next((size for size in range(batch_size, 1, -1) if floor % size), batch_size)


class Loader(DataLoader[Batch]):
    """A DataLoader that begins a pass when its first batch is asked for, and knows how far it is.

    Lightning makes the iterator before it tells the sampler the epoch; worker processes would by then
    have fetched batches in the order of another epoch.
    """

    # of the pass under way or last made: its epoch, and the batches that it has handed out, those
    # left out by a resumed sampler included
    epoch = 0
    position = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.epoch, self.position = 0, 0
        if isinstance(self.sampler, EpochSampler):
            self.epoch = self.sampler.epoch
            self.position = self.sampler.skipped() // (self.batch_size or 1)
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the batches it has handed out: the place in training, alike on all ranks."""
        return {"epoch": self.epoch, "batches": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Leave out in that epoch what it had handed out; other epochs are whole."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.resume(state_dict["epoch"], state_dict["batches"] * (self.batch_size or 1))
