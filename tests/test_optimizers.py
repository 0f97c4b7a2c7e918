"""Optimizers with defaults, and a rate that rises and falls, against closed forms."""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_gen.optimizers import DiffusionAdamW, WarmUp


def rates(n, lr=2.0, **arguments):
    """The rates of the first n steps, as the optimizer takes them."""
    weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = SGD([weight], lr=lr)
    schedule = WarmUp(optimizer, **arguments)
    taken = []
    for _ in range(n):
        weight.grad = torch.ones_like(weight)
        before = weight.item()
        optimizer.step()
        schedule.step()
        taken.append(before - weight.item())
    return taken


def test_the_rate_rises_in_equal_parts_to_its_value():
    assert rates(7, iterations=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0], rel=1e-12)
    assert rates(2, iterations=0) == pytest.approx([2.0, 2.0], rel=1e-12)
    assert rates(1)[0] == pytest.approx(2.0 / 1000, rel=1e-9)


def test_inverse_square_root():
    """EDM2's: lr / sqrt(max(i / after, 1)) times the rise, i counted from 1."""
    expected = [2.0 * min(i / 4, 1) / math.sqrt(max(i / 9, 1)) for i in range(1, 41)]
    found = rates(40, iterations=4, decay="rsqrt", after=9)
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[35] == pytest.approx(1.0, rel=1e-12)


def test_cosine_and_line_reach_zero_at_their_end():
    cosine = rates(12, iterations=2, decay="cosine", until=10)
    line = rates(12, iterations=2, decay="linear", until=10)
    for found in (cosine, line):
        assert found[:3] == pytest.approx([1.0, 2.0, 2.0], rel=1e-12)
        assert found[6] == pytest.approx(1.0, rel=1e-12)  # half of the way
        assert found[10:] == pytest.approx([0.0, 0.0], abs=1e-15)
        assert all(a > b for a, b in pairwise(found[2:11]))
    assert line[3:10] == pytest.approx([2 * (1 - k / 8) for k in range(1, 8)], rel=1e-12)
    assert cosine[3:10] == pytest.approx([2 * math.cos(math.pi * k / 16) ** 2 for k in range(1, 8)], rel=1e-12)


def test_torchs_cosine_is_the_same():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(20, iterations=0, decay="cosine", until=20) == pytest.approx(expected, rel=1e-10)


def test_groups_keep_their_own_rates():
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 3.0)])
    WarmUp(optimizer, iterations=4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.75]


def test_a_schedule_goes_on_from_its_state(tmp_path):
    """As a checkpoint keeps it, read without pickled objects."""

    def make():
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmUp(optimizer, 3, "linear", until=9)

    optimizer, schedule = make()
    for _ in range(5):
        optimizer.step()
        schedule.step()
    torch.save((optimizer.state_dict(), schedule.state_dict()), tmp_path / "state.pt")
    resumed, other = make()
    for part, state in zip((resumed, other), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    for _ in range(4):
        for one in (optimizer, resumed, schedule, other):
            one.step()
        assert resumed.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert other.last_epoch == 9
    assert resumed.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": -1}, "0 iterations or more; given was -1"),
        ({"decay": "rsqrt"}, "needs `after`"),
        ({"decay": "rsqrt", "after": 0}, "needs `after`"),
        ({"decay": "cosine"}, "decay='cosine' needs `until`, an iteration after the 1000 of the rise"),
        ({"decay": "linear", "until": 1000}, "needs `until`"),
        ({"decay": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmUp(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **arguments)


def test_the_optimizer_of_diffusion_models_is_adam_in_one_kernel():
    """Without weight decay AdamW is Adam; fused or not, the steps are the same."""
    start, gradients = torch.randn(5, dtype=torch.float64), torch.randn(10, 5, dtype=torch.float64)

    def trained(make):
        weight = nn.Parameter(start.clone())
        optimizer = make([weight])
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        return weight.detach(), optimizer

    found, optimizer = trained(DiffusionAdamW)
    expected, _ = trained(lambda p: torch.optim.Adam(p, lr=2e-4, betas=(0.9, 0.999), eps=1e-8, foreach=False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert optimizer.param_groups[0]["fused"]
    decayed, _ = trained(lambda p: DiffusionAdamW(p, 1e-3, weight_decay=0.5, fused=False))
    published, _ = trained(lambda p: AdamW(p, 1e-3, weight_decay=0.5, foreach=False))
    assert torch.equal(decayed, published)


def test_they_can_be_written_into_a_checkpoint():
    optimizer = DiffusionAdamW([nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    assert pickle.loads(pickle.dumps(optimizer.state_dict()))["param_groups"][0]["betas"] == (0.9, 0.99)
