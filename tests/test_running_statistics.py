"""All processes use the running statistics that a checkpoint holds: those of the first."""

import torch
from ranks import run_ranks
from torch import nn

from lightning_gen.sharding import share_statistics


def _shared(rank, folder):
    torch.distributed.init_process_group("gloo")
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False))
    torch.manual_seed(rank)
    network(torch.randn(8, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    share_statistics(network)
    torch.save((before, network.state_dict()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_they_are_those_of_the_first_process(tmp_path):
    run_ranks(_shared, 2, tmp_path)
    (first, _), (second, shared) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first["0.running_var"], second["0.running_var"])
    for name, value in first.items():
        assert torch.equal(value, shared[name])


def test_one_process_keeps_its_own():
    network = nn.BatchNorm1d(3)
    share_statistics(network)
    assert torch.equal(network.running_mean, torch.zeros(3))
