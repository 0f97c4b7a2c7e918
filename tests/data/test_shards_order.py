"""The order of an epoch: a function of (seed, epoch, place), for any ranks, and nearly a full shuffle."""

import math
import sys
from pathlib import Path

import pytest
import torch

from lightning_gen.data.datasets import BatchView
from lightning_gen.data.shards.order import BlockOrder, BlockSampler

SIZES = [7, 3, 11, 1, 8, 8, 5, 9]


class Nothing:
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n


def whole(sizes, window=3, lanes=4, seed=0, epoch=0):
    order = BlockOrder(sizes, window, lanes, seed, epoch)
    return torch.cat([images for _, _, images in order.from_place(0)]).tolist()


def sampler(n, sizes, window=3, lanes=4, ranks=1, rank=0, epoch=0, **options):
    made = BlockSampler(BatchView(Nothing(n)), sizes, window, lanes, ranks, rank, **options)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 60])
@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("sizes", [SIZES, [5], [1, 1], [40, 1, 1]])
def test_each_image_stands_at_one_place(sizes, window, lanes):
    assert sorted(whole(sizes, window, lanes)) == list(range(sum(sizes)))


@pytest.mark.parametrize(("window", "lanes"), [(1, 1), (2, 1), (2, 4), (3, 8)])
def test_places_belong_to_the_lanes_and_blocks_of_the_formula(window, lanes):
    order = BlockOrder(SIZES, window, lanes, seed=5, epoch=2)
    n, length, width = sum(SIZES), sum(SIZES) // lanes, math.ceil(window * sum(SIZES) / len(SIZES) / lanes)
    # the images in the random order of the shards, written out
    first = [sum(SIZES[:number]) for number in range(len(SIZES))]
    counted = [first[shard] + k for shard in order.shards.tolist() for k in range(SIZES[shard])]
    assert sorted(counted) == list(range(n))
    for place, image in enumerate(whole(SIZES, window, lanes, seed=5, epoch=2)):
        count = counted.index(image)
        if place < lanes * length:
            lane, j = place % lanes, place // lanes
            start = j // width * width
            assert lane * length + start <= count < lane * length + min(start + width, length)
        else:
            assert count == place


def test_seed_and_epoch_and_nothing_else_decide():
    first = whole(SIZES)
    torch.manual_seed(1)
    assert whole(SIZES) == first
    assert whole(SIZES, epoch=1) != first != whole(SIZES, seed=1)
    # shards and images within them both move
    shards = [BlockOrder(SIZES, 3, 4, 0, epoch).shards.tolist() for epoch in range(3)]
    assert len({tuple(order) for order in shards}) == 3


def test_any_place_is_found_without_those_before():
    n = sum(SIZES)
    straight = list(sampler(n, SIZES, epoch=3))
    for skipped in range(n + 1):
        resumed = sampler(n, SIZES, epoch=3)
        resumed.resume(3, skipped)
        assert list(resumed) == straight[skipped:]
        resumed.set_epoch(4)
        assert list(resumed) == list(sampler(n, SIZES, epoch=4))


@pytest.mark.parametrize("lanes", [1, 3, 4])
@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_ranks_share_what_one_process_has(ranks, lanes):
    n = sum(SIZES)
    alone = list(sampler(n, SIZES, lanes=lanes, epoch=1))
    shares = [sampler(n, SIZES, lanes=lanes, ranks=ranks, rank=rank, epoch=1) for rank in range(ranks)]
    listed = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(share) for share in listed] == [n // ranks] * ranks
    for place in range(n // ranks * ranks):
        assert listed[place % ranks][place // ranks] == alone[place]


def test_fewer_images_than_ranks_are_one_a_rank():
    shares = [list(sampler(2, [1, 1], ranks=3, rank=rank)) for rank in range(3)]
    assert [len(share) for share in shares] == [1, 1, 1]
    assert {share[0] for share in shares} == {0, 1}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_read_shards_of_their_own(ranks):
    """With as many lanes as ranks, no rank reads more than its share of the shards and those at the cuts."""
    sizes = [10] * 40
    shard_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    for rank in range(ranks):
        told = []
        share = sampler(400, sizes, window=4, lanes=4, ranks=ranks, rank=rank, announce=told.append)
        read = {shard_of[index] for index in share}
        assert len(read) <= 40 / ranks + 4 / ranks
        # all that is read has been announced, and little else
        assert read == {shard for shards in told for shard in shards}


def test_few_shards_are_read_at_a_time():
    sizes = [10] * 40
    told = []
    list(sampler(400, sizes, window=4, lanes=2, announce=told.append))
    # two blocks of 4 shards each, which may begin and end within one, in either lane
    assert max(len(set(shards)) for shards in told) <= 2 * 4 + 2
    assert len(told) > 8


# ---- how good a shuffle it is


@pytest.fixture
def statistics(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    import shard_shuffling

    yield shard_shuffling
    sys.modules.pop("shard_shuffling", None)


def test_the_statistics_know_a_full_shuffle_and_none(statistics):
    sizes = [100] * 50
    none = statistics.measured([torch.arange(5000)] * 3, sizes, batch=50)
    assert none["correlation"] == pytest.approx(1)
    assert none["spread"] == pytest.approx(0.02, rel=0.02)
    assert none["shards in a batch"] == 1
    full = [torch.randperm(5000, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    found = statistics.measured(full, sizes, batch=50)
    # a coefficient of n random pairs has the standard deviation 1 / sqrt(n - 1)
    assert found["correlation"] < 3 / math.sqrt(4999)
    assert found["spread"] == pytest.approx(1, rel=0.01)
    assert found["shards in a batch"] == pytest.approx(50 * (1 - 0.98**50), rel=0.03)


def test_shuffling_blocks_is_nearly_a_full_shuffle_in_what_a_batch_sees(statistics):
    sizes = [100 + (number % 7) for number in range(100)]

    def found(window, lanes):
        orders = [
            torch.cat([images for _, _, images in BlockOrder(sizes, window, lanes, 0, epoch).from_place(0)])
            for epoch in range(20)
        ]
        return statistics.measured(orders, sizes, batch=64)

    block, all_at_once = found(16, 8), found(100, 1)
    n = sum(sizes)
    # a window of all shards is a full shuffle
    assert all_at_once["correlation"] < 3 / math.sqrt(n - 1)
    assert all_at_once["spread"] == pytest.approx(1, rel=0.01)
    assert all_at_once["shards in a batch"] == pytest.approx(100 * (1 - 0.99**64), rel=0.03)
    # 64 of at least 16 shards: as many different ones as 64 draws from 16 have, or more
    assert block["shards in a batch"] > 16 * (1 - (15 / 16) ** 64)
    # from epoch to epoch the shards move, not single images: as random as an order of 100 things
    assert block["correlation"] < 3 / math.sqrt(99)
    assert 0.05 < block["spread"] < 0.5
    # one shard after the other, as without a window
    alone = found(1, 1)
    assert alone["shards in a batch"] < 3
    assert alone["spread"] < block["spread"] < all_at_once["spread"]
