"""Losses that are NaN or infinite: what the message says, what is counted, and that processes agree."""

import math
import os
from dataclasses import dataclass

import pytest
import torch
from ranks import run_ranks

from lightning_gen.errors import RunError
from lightning_gen.nonfinite import NonFiniteLoss

NAN, INF = math.nan, math.inf


@dataclass
class Batch:
    total: torch.Tensor
    t: torch.Tensor


def batch(*losses):
    return Batch(torch.tensor(losses, requires_grad=True), torch.arange(len(losses)) / 8)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_finite_losses_are_accepted(policy):
    guard = NonFiniteLoss(policy)
    assert guard.accepts(batch(0.0, -3.0, 1e38), 5, 1)
    assert guard.skipped == 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_message_names_iteration_rows_and_times(bad):
    with pytest.raises(RunError) as error:
        NonFiniteLoss("stop").accepts(batch(1.0, bad, 2.0, bad), 17, 1)
    message = str(error.value)
    assert "iteration 17" in message
    assert "samples [1, 3] of the batch, at t = [0.125, 0.375]" in message
    for advice in ("learning rate", "gradient_clip_val", "bf16-mixed", "on_nonfinite: skip"):
        assert advice in message


def test_many_rows_are_shown_in_part():
    with pytest.raises(
        RunError, match=r"samples \[0, 1, 2, 3, 4, 5, 6, 7\] \.\.\. of the batch, at t = \[0\.0, .*0\.875\]\)"
    ):
        NonFiniteLoss("stop").accepts(batch(*[NAN] * 20), 0, 1)


def test_skipped_batches_are_counted():
    guard = NonFiniteLoss("skip")
    told = [guard.accepts(batch(*losses), 0, 1) for losses in ((1.0, NAN), (1.0, 1.0), (INF, INF), (2.0, 3.0))]
    assert told == [False, True, False, True]
    assert guard.skipped == 2


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match="on_nonfinite is 'stop' or 'skip'; given was 'ignore'"):
        NonFiniteLoss("ignore")


def agree(rank, folder):
    torch.distributed.init_process_group("gloo")
    guard = NonFiniteLoss("skip")
    # first neither has one, then the second process, then the first, then both
    mine = [(1.0, 1.0), (1.0, NAN if rank == 1 else 1.0), (INF if rank == 0 else 1.0, 1.0), (NAN, 1.0)]
    told = [guard.accepts(batch(*losses), 0, 2) for losses in mine]
    try:
        NonFiniteLoss("stop").accepts(batch(*mine[1]), 3, 2)
        message = ""
    except RunError as error:
        message = str(error)
    torch.save((told, guard.skipped, message), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_agree(tmp_path):
    run_ranks(agree, 2, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [told for told, *_ in found] == [[True, False, False, False]] * 2
    assert [skipped for _, skipped, _ in found] == [3, 3]
    # both stop; each says whose it was
    assert "the batch of another process" in found[0][2]
    assert "samples [1] of the batch, at t = [0.125]" in found[1][2]
