"""Two processes have the codebook, the counts and the gradients of one on the joined batch."""

import os

import pytest
import torch
from quantized import QUANTIZERS, QuantizedAutoencoder, fit
from ranks import assert_all_equal_one, run_ranks
from tiny import TinyImages, weights

from lightning_gen.autoencoder.joined import joined_mean, permutation, summed
from lightning_gen.autoencoder.quantizers.codebook import Codebook
from lightning_gen.images import from_uint8

STEPS = 14


def by_hand(name, module, rank=0, world=1):
    """Train with plain SGD, gradients averaged by hand."""
    images = from_uint8(TinyImages(8 * STEPS).images).double()
    for step in range(STEPS):
        batch = images[8 * step : 8 * step + 8][rank::world]
        module.zero_grad()
        module.loss(batch).backward()
        for parameter in module.parameters():
            if parameter.grad is not None:
                summed(parameter.grad)
                parameter.data -= 0.3 * parameter.grad / world
    return weights(module)


def work(rank, folder):
    # as a LightningModule is: before there are processes
    modules = {name: QuantizedAutoencoder(name).double() for name in QUANTIZERS}
    torch.distributed.init_process_group("gloo")
    trained = {f"gloo {name}": by_hand(name, module, rank, 2) for name, module in modules.items()}
    torch.distributed.destroy_process_group()
    trained |= {f"ddp {name}": weights(fit(name, folder, rank, 2, STEPS)[0]) for name in QUANTIZERS}
    torch.save(trained, os.path.join(folder, f"2-{rank}.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantizers")
    run_ranks(work, 2, str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_lightnings_processes_equal_one(folder, name):
    assert_all_equal_one(folder, 2, f"ddp {name}", weights(fit(name, folder, steps=STEPS)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_processes_equal_one(folder, name):
    assert_all_equal_one(folder, 2, f"gloo {name}", by_hand(name, QuantizedAutoencoder(name).double()))


@pytest.mark.parametrize(
    "name", [name for name in QUANTIZERS if ", " in name and "lfq" not in name and name != "vq, ema"]
)
def test_codes_start_anew_in_these_trainings(name, monkeypatch):
    """Else the tests above would not see how."""
    restart, restarted = Codebook.restart, []

    def counted(codebook, vectors):
        before = codebook.cluster_size.clone()
        restart(codebook, vectors)
        if codebook.restart_below and codebook.updates > 0:
            restarted.append(int((codebook.cluster_size != before).sum()))

    monkeypatch.setattr(Codebook, "restart", counted)
    by_hand(name, QuantizedAutoencoder(name).double())
    assert sum(restarted) > 3


def _unequal(rank, folder):
    torch.distributed.init_process_group("gloo")
    rows = torch.arange(10.0, dtype=torch.float64).view(5, 2)[:4] if rank else torch.full((2, 2), 7.0).double()
    rows.requires_grad_()
    mean = joined_mean(rows)
    (mean**3).sum().backward()
    torch.save((mean.detach(), rows.detach(), rows.grad), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_joined_mean_has_the_joined_gradient(tmp_path):
    """With different numbers of rows too: averaged over processes, the gradient is that of all rows."""
    run_ranks(_unequal, 2, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    rows = torch.cat([part[1] for part in parts]).requires_grad_()
    mean = rows.mean(0)
    (mean**3).sum().backward()
    for found, _, _ in parts:
        torch.testing.assert_close(found, mean.detach(), rtol=0, atol=1e-12)
    averaged = torch.cat([part[2] for part in parts]) / 2
    torch.testing.assert_close(averaged, rows.grad, rtol=0, atol=1e-12)


def test_permutations_are_permutations_and_differ():
    found = {tuple(permutation(50, torch.tensor(salt)).tolist()) for salt in range(20)}
    assert len(found) == 20
    assert all(sorted(one) == list(range(50)) for one in found)


def test_permutations_are_even():
    """Each place is as likely to come first: a chi-square of 9 degrees of freedom, at one in a thousand."""
    first = torch.stack([permutation(10, torch.tensor(salt))[0] for salt in range(2000)])
    observed = torch.bincount(first, minlength=10).double()
    assert float(((observed - 200) ** 2 / 200).sum()) < 27.9
