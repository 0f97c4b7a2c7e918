r"""The order in which the images of shards are read: nearly that of a full shuffle, from few shards at a time.

The shards are put in a random order and their images counted in it, :math:`c = 0 \ldots n - 1`. These are cut
into :math:`V` lanes of :math:`L = \lfloor n / V \rfloor`, each lane into blocks of :math:`w` images. Place
:math:`p` of the epoch belongs to lane :math:`v = p \bmod V`, where it is the image number
:math:`j = \lfloor p / V \rfloor`, of the block :math:`b = \lfloor j / w \rfloor`:

.. math:: c(p) = v L + b w + \pi_{b, v}(j - b w)

The last :math:`n - V L` places have the images that no lane has. The order of the shards is drawn from
(seed, epoch), the permutations :math:`\pi_{b, v}` of the images of a block from (seed, epoch, b): what stands at
place p is a function of (seed, epoch, p), whoever asks, and is found without going through what stands before it.

At any time a run reads from :math:`V w` images' worth of shards. Rank r of R takes the places r, r + R, ...;
where R divides V those are R times fewer lanes, and each rank reads shards that the others do not, though all
ranks together have the batches of one process.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_gen.data.datasets import BatchView
from lightning_gen.data.loading import EpochSampler
from lightning_gen.seeding import mix

Announce = Callable[[list[int]], None]


class BlockOrder:
    """The order of one epoch.

    Args:
        sizes: number of images of each shard.
        window: shards that are shuffled together.
        lanes: parts that the epoch interleaves.
        seed: any integer.
        epoch: which one.
    """

    def __init__(self, sizes: Sequence[int], window: int, lanes: int, seed: int, epoch: int) -> None:
        self.lanes, self.seed, self.epoch = lanes, seed, epoch
        generator = torch.Generator().manual_seed(mix(seed, epoch))
        self.shards = torch.randperm(len(sizes), generator=generator)
        lengths = torch.tensor(sizes, dtype=torch.int64)
        first = lengths.cumsum(0) - lengths
        # of the shards in their random order: where they end, counted in it, and what turns a count into an index
        self.ends = lengths[self.shards].cumsum(0)
        self.shift = first[self.shards] - (self.ends - lengths[self.shards])
        self.size = int(self.ends[-1])
        self.length = self.size // lanes
        self.width = max(1, math.ceil(window * self.size / len(sizes) / lanes))
        self.count = -(-self.length // self.width)

    def block(self, number: int) -> Tensor:
        """Return the images of the places `number * lanes * width` and following, int64; the rest after the last."""
        if number == self.count:
            return self._images(torch.arange(self.lanes * self.length, self.size))
        start = number * self.width
        width = min(self.width, self.length - start)
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, number))
        inner = torch.stack([torch.randperm(width, generator=generator) for _ in range(self.lanes)])
        counts = inner + start + self.length * torch.arange(self.lanes)[:, None]
        return self._images(counts.T.reshape(-1))

    def shards_of(self, number: int, lanes: Sequence[int]) -> list[int]:
        """Return the shards that a block takes the images of these lanes from."""
        start = min(number * self.width, self.length)
        width = min(self.width, self.length - start)
        found: dict[int, None] = {}
        for lane in lanes if width else ():
            ends = torch.tensor([lane * self.length + start, lane * self.length + start + width - 1])
            low, high = torch.searchsorted(self.ends, ends, right=True).tolist()
            found |= dict.fromkeys(self.shards[low : high + 1].tolist())
        return list(found)

    def from_place(self, place: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the number of each block, its first place, and its images, from the block that holds `place` on."""
        for number in range(min(place // (self.lanes * self.width), self.count), self.count + 1):
            yield number, min(number * self.width, self.length) * self.lanes, self.block(number)

    def _images(self, counts: Tensor) -> Tensor:
        return counts + self.shift[torch.searchsorted(self.ends, counts, right=True)]


class BlockSampler(EpochSampler):
    """A rank's share of the places of an epoch, as indices `index + epoch * n` for `BatchView`.

    Lengths, ranks and resuming are those of `EpochSampler`: every rank gets floor(n / ranks) images, none twice.

    Args:
        view: the images.
        sizes: number of images of each shard.
        window: shards that are shuffled together.
        lanes: parts that the epoch interleaves.
        num_replicas: number of ranks.
        rank: this one.
        seed: the order of epoch e is a function of (seed, e) alone.
        announce: told which shards this rank reads, and which next, at the begin of each block.
    """

    def __init__(
        self,
        view: BatchView,
        sizes: Sequence[int],
        window: int,
        lanes: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        announce: Announce | None = None,
    ) -> None:
        super().__init__(view, num_replicas, rank, seed)
        self.sizes, self.window, self.lanes, self.announce = list(sizes), window, lanes, announce

    def __iter__(self) -> Iterator[int]:
        if self.size < self.num_replicas:  # an image a rank, some of them twice
            yield from super().__iter__()
            return
        order = BlockOrder(self.sizes, self.window, self.lanes, self.seed, self.epoch)
        apart = math.gcd(self.lanes, self.num_replicas)
        mine = [lane for lane in range(self.lanes) if (lane - self.rank) % apart == 0]
        place = self.skipped() * self.num_replicas + self.rank
        for number, first, images in order.from_place(place):
            if self.announce is not None:
                self.announce(order.shards_of(number, mine) + order.shards_of(number + 1, mine))
            end = max(first, min(first + len(images), self.total_size))
            for index in images[place - first : end - first : self.num_replicas].tolist():
                yield index + self.epoch * self.size
                place += self.num_replicas
