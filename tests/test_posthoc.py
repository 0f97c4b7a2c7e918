"""Averages put together after training: the least-squares problem, and reconstruction against direct averages."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gen.ema import PowerEMA
from lightning_gen.ema_profiles import exponent_of
from lightning_gen.posthoc import find_snapshots, reconstruct, solve_coefficients, write_snapshot

WIDTHS = (0.05, 0.1)


def stored(snapshots, end=1_000_000):
    return [(end * (k + 1) // snapshots, width) for k in range(snapshots) for width in WIDTHS]


@pytest.mark.parametrize("unit_sum", [True, False])
@pytest.mark.parametrize(("n", "error"), [(1, 5e-16), (2, 8e-16), (4, 4e-15), (8, 8e-15), (32, 1e-12)])
def test_a_stored_profile_has_the_coefficient_one(n, error, unit_sum):
    profiles = stored(n)
    for k, profile in enumerate(profiles):
        coefficients = solve_coefficients(profiles, profile, unit_sum)
        assert coefficients.dtype == torch.float64
        assert (coefficients - nn.functional.one_hot(torch.tensor(k), len(profiles))).abs().max() < error


def profile(images, width, time):
    gamma = exponent_of(width)
    values = (gamma + 1) / images * (time / images) ** gamma
    return np.where(time <= images, values, 0.0)


@pytest.mark.parametrize("unit_sum", [True, False])
def test_no_other_coefficients_are_nearer_to_the_profile(unit_sum):
    """The least squares of the profiles themselves on a fine grid, by another solver."""
    profiles, wanted = stored(5), (900_000, 0.12)
    time = (np.arange(400_000) + 0.5) * 2.5
    columns = np.stack([profile(*one, time) for one in profiles], axis=1)
    target = profile(*wanted, time)
    if unit_sum:
        # the last coefficient is what the others leave of 1
        columns, target = columns[:, :-1] - columns[:, -1:], target - columns[:, -1]
        expected, *_ = np.linalg.lstsq(columns, target, rcond=None)
        expected = np.append(expected, 1 - expected.sum())
    else:
        expected, *_ = np.linalg.lstsq(columns, target, rcond=None)
    coefficients = solve_coefficients(profiles, wanted, unit_sum)
    np.testing.assert_allclose(coefficients.numpy(), expected, rtol=0, atol=2e-5)
    assert not unit_sum or coefficients.sum().item() == pytest.approx(1, rel=1e-13)


def test_the_unit_of_the_images_does_not_matter():
    wanted = (800.0, 0.08)
    small = solve_coefficients([(images / 1000, width) for images, width in stored(8)], wanted)
    large = solve_coefficients([(images * 1000, width) for images, width in stored(8)], (8e8, 0.08))
    torch.testing.assert_close(small, large, rtol=0, atol=1e-13)


def test_what_cannot_be_solved_is_refused():
    with pytest.raises(ValueError, match="one or more"):
        solve_coefficients([], (1, 0.1))
    with pytest.raises(ValueError, match="no two"):
        solve_coefficients([(1, 0.1), (1, 0.1)], (1, 0.1))
    with pytest.raises(ValueError, match="relative width"):
        solve_coefficients([(1, 0.1)], (1, 0.3))


# ---------------------------------------------------------------------- weights


def walk(steps, offset, seed=0, width=64):
    """Weights on a random walk, one row a step."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randn(steps, width, generator=generator, dtype=torch.float64)
    return offset + 3 * moves.cumsum(0) / steps**0.5


def brute_force(path, sigma_rel):
    """The integral of the profile over weights that stand still between steps."""
    ends = (torch.arange(len(path) + 1, dtype=torch.float64) / len(path)) ** (exponent_of(sigma_rel) + 1)
    return (ends.diff()[:, None] * path).sum(0)


def snapshots_of(path, folder, n, batch=100):
    """Track the stored widths step by step, and write n snapshots of them."""
    network = nn.Linear(path.shape[1], 1, bias=False).double()
    averages = [PowerEMA(network, width) for width in WIDTHS]
    for step, weight in enumerate(path, start=1):
        network.weight.data.copy_(weight)
        for average in averages:
            average.update(network, batch, step * batch)
            if step % (len(path) // n) == 0:
                write_snapshot(folder, "net_ema", step * batch, average.sigma_rel, average.network.state_dict())
    return find_snapshots(folder)


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_reconstruction_on_a_random_walk(tmp_path, offset):
    """Against direct sums; the error in parts of the distance between the last weights and the average."""
    path = walk(1600, offset)
    snapshots = snapshots_of(path, tmp_path, 16)
    assert len(snapshots) == 32
    for steps, width, bound in [
        (1600, 0.05, 1e-12),
        (1600, 0.1, 1e-12),
        (1600, 0.07, 2e-3),
        (1600, 0.12, 2e-3),
        (1600, 0.15, 2e-3),
        (1200, 0.08, 2e-3),
        # between two snapshots
        (1250, 0.1, 3e-2),
    ]:
        direct = brute_force(path[:steps], width)
        made = reconstruct(snapshots, steps * 100, width)["weight"][0]
        scale = (path[steps - 1] - direct).square().mean().sqrt()
        assert (made - direct).square().mean().sqrt() < bound * scale, (steps, width)


def test_a_sum_of_one_keeps_what_does_not_move(tmp_path):
    """With few snapshots the paper's coefficients do not sum to 1, and scale weights that stand still."""
    path = walk(400, 20.0)
    snapshots = snapshots_of(path, tmp_path, 4)
    direct = brute_force(path, 0.15)
    held, free = (
        (reconstruct(snapshots, sigma_rel=0.15, unit_sum=unit)["weight"][0] - direct).square().mean().sqrt()
        for unit in (True, False)
    )
    assert held < free / 10
    still = snapshots_of(torch.full((40, 2), 5.0, dtype=torch.float64), tmp_path / "still", 4)
    torch.testing.assert_close(
        reconstruct(still, sigma_rel=0.2)["weight"], torch.full((1, 2), 5.0, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_a_real_training(tmp_path):
    """A polynomial, fitted by Adam: the width between, tracked beside, and put together after."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 1))
    widths = (*WIDTHS, 0.075, 0.15)
    averages = {width: PowerEMA(network, width) for width in widths}
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    batch, every = 32, 25
    for step in range(1, 501):
        x = torch.rand(batch, 1) * 2 - 1
        loss = (network(x) - x**3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for width, average in averages.items():
            average.update(network, batch, step * batch)
            if width in WIDTHS and step % every == 0:
                buffers = [name for name, _ in network.named_buffers()]
                write_snapshot(tmp_path, "net", step * batch, width, average.network.state_dict(), buffers)
    for width in (0.075, 0.15):
        made = reconstruct(find_snapshots(tmp_path), sigma_rel=width)
        direct = averages[width].network.state_dict()
        assert made.keys() == direct.keys()
        raw = network.state_dict()
        for name, value in made.items():
            assert value.dtype == direct[name].dtype
            if name.startswith("2.") and ("running" in name or "num" in name):
                assert torch.equal(value, raw[name])
            else:
                moved = (raw[name] - direct[name]).norm()
                assert (value - direct[name]).norm() < 1e-2 * moved + 1e-6, (width, name)
        other = copy.deepcopy(network)
        other.load_state_dict(made)


# ---------------------------------------------------------------------- files


def test_snapshots_are_listed_in_order_and_read_as_written(tmp_path):
    network = nn.Linear(2, 1)
    for images in (2000, 1000):
        for width in (0.1, 0.05):
            write_snapshot(tmp_path / "ema", "net_ema", images, width, network.state_dict(), ["bias"])
    # the run's folder does as well
    for folder in (tmp_path, tmp_path / "ema", str(tmp_path)):
        found = find_snapshots(folder)
        assert [(s.images, s.sigma_rel) for s in found] == [(1000, 0.05), (1000, 0.1), (2000, 0.05), (2000, 0.1)]
    assert (found[0].network, found[0].buffers) == ("net_ema", frozenset({"bias"}))
    assert torch.equal(found[0].load()["weight"], network.weight)
    # the same again replaces
    write_snapshot(tmp_path / "ema", "net_ema", 1000, 0.05, nn.Linear(2, 1).state_dict())
    assert len(find_snapshots(tmp_path)) == 4
    assert sorted(p.name for p in (tmp_path / "ema").iterdir())[0] == "net_ema-000000001000-0.050.safetensors"


def test_tied_weights_are_written_each(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

    network = Tied()
    snapshot = write_snapshot(tmp_path, "net", 1, 0.1, network.state_dict())
    loaded = snapshot.load()
    assert torch.equal(loaded["a.weight"], loaded["b.weight"])


def test_a_file_half_written_is_not_there(tmp_path, monkeypatch):
    import safetensors.torch

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        write_snapshot(tmp_path, "net", 1, 0.1, nn.Linear(1, 1).state_dict())
    assert list(tmp_path.iterdir()) == []


def test_several_networks_are_told_apart(tmp_path):
    for name in ("generator_ema", "encoder_ema"):
        write_snapshot(tmp_path, name, 1, 0.1, nn.Linear(1, 1).state_dict())
    with pytest.raises(ValueError, match=r"several networks.*encoder_ema"):
        find_snapshots(tmp_path)
    assert [s.network for s in find_snapshots(tmp_path, "encoder_ema")] == ["encoder_ema"]
    with pytest.raises(FileNotFoundError, match="'other_ema'"):
        find_snapshots(tmp_path, "other_ema")


def test_what_is_no_snapshot_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="EMASnapshots"):
        find_snapshots(tmp_path)
    (tmp_path / "net-1.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"net-1.safetensors is not a snapshot"):
        find_snapshots(tmp_path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "net-1.safetensors")
    with pytest.raises(ValueError, match=r"net-1.safetensors is not a snapshot"):
        find_snapshots(tmp_path)


def test_an_average_of_a_time_without_snapshots_is_refused(tmp_path):
    snapshots = [write_snapshot(tmp_path, "net", k * 100, 0.1, nn.Linear(1, 1).state_dict()) for k in (1, 2)]
    for images in (250, 50):
        with pytest.raises(ValueError, match=f"after {images} images.*those of 100 to 200"):
            reconstruct(snapshots, images)
    with pytest.raises(ValueError, match="there are none"):
        reconstruct([])
    # the later one is not looked at
    assert torch.equal(reconstruct(snapshots, 100)["weight"], snapshots[0].load()["weight"])
    other = write_snapshot(tmp_path, "net", 300, 0.1, nn.Linear(1, 1, bias=False).state_dict())
    with pytest.raises(ValueError, match="not of the same network"):
        reconstruct([*snapshots, other])
