"""VQGAN's balance of two losses, by gradients computed by hand, and where there is nothing to balance."""

import os

import pytest
import torch
from ranks import run_ranks
from torch import nn

from lightning_gen.autoencoder import adaptive_weight
from lightning_gen.autoencoder.adaptive import LARGEST


def setting(dtype=torch.float64):
    torch.manual_seed(0)
    decoder, judge = nn.Linear(3, 2, dtype=dtype), nn.Linear(2, 1, dtype=dtype)
    z, x = torch.randn(5, 3, dtype=dtype), torch.randn(5, 2, dtype=dtype)
    return decoder, judge, z, x


def losses(decoder, judge, z, x):
    made = decoder(z)
    return (made - x).square().mean(), -judge(made).mean()


def test_the_weight_by_hand():
    """Of a linear layer: gradients 2 (y - x)^T z / N and -w^T (mean of z)."""
    decoder, judge, z, x = setting()
    made = decoder(z)
    by_rec = 2 * (made - x).T @ z / x.numel()
    by_g = -judge.weight.T @ z.mean(0, keepdim=True)
    expected = by_rec.norm() / (by_g.norm() + 1e-6)
    weight = adaptive_weight(*losses(decoder, judge, z, x), decoder.weight)
    torch.testing.assert_close(weight, expected.detach(), rtol=1e-13, atol=0)
    assert not weight.requires_grad


def test_both_losses_then_pull_as_hard():
    decoder, judge, z, x = setting()
    rec, adversarial = losses(decoder, judge, z, x)
    weight = adaptive_weight(rec, adversarial, decoder.weight)
    # the graphs are still there, and no gradient was left behind
    assert decoder.weight.grad is None
    pulls = [torch.autograd.grad(loss, decoder.weight, retain_graph=True)[0] for loss in (rec, weight * adversarial)]
    torch.testing.assert_close(pulls[0].norm(), pulls[1].norm(), rtol=1e-5, atol=0)
    (rec + weight * adversarial).backward()


def test_it_scales_with_the_reconstruction():
    decoder, judge, z, x = setting()
    rec, adversarial = losses(decoder, judge, z, x)
    first, tenfold = (adaptive_weight(scale * rec, adversarial, decoder.weight) for scale in (1, 10))
    torch.testing.assert_close(tenfold, 10 * first, rtol=1e-12, atol=0)


def test_it_is_clamped_where_the_discriminator_is_flat():
    decoder, judge, z, x = setting()
    rec, adversarial = losses(decoder, judge, z, x)
    assert adaptive_weight(1e6 * rec, 0 * adversarial, decoder.weight) == LARGEST == 1e4
    assert adaptive_weight(0 * rec, adversarial, decoder.weight) == 0
    assert adaptive_weight(0 * rec, 0 * adversarial, decoder.weight) == 0


@pytest.mark.parametrize("case", ["off", "off, as a number", "no_grad", "frozen", "frozen layer", "apart"])
def test_it_is_defined_where_there_is_nothing_to_balance(case):
    decoder, judge, z, x = setting()
    if case == "frozen":
        decoder.requires_grad_(False)
        z.requires_grad_()
    if case == "frozen layer":
        decoder.weight.requires_grad_(False)
    with torch.set_grad_enabled(case != "no_grad"):
        rec, adversarial = losses(decoder, judge, z, x)
        if case == "off":
            adversarial = adversarial.detach() * 0
        if case == "off, as a number":
            adversarial = torch.tensor(0.0)
        weight = adaptive_weight(rec, adversarial, decoder.weight)
    if case == "no_grad":
        assert adaptive_weight(rec, adversarial, decoder.weight) == 0
    if case == "apart":  # what the decoder made does not reach the discriminator
        weight = adaptive_weight(rec, judge.weight.sum(), decoder.weight)
        assert weight == LARGEST
    else:
        assert weight == 0
    assert torch.isfinite(weight)
    assert weight.shape == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    decoder, judge, z, x = setting(torch.float32)
    exact = adaptive_weight(*losses(decoder, judge, z, x), decoder.weight)
    with torch.autocast("cpu", dtype=dtype):
        weight = adaptive_weight(*losses(decoder, judge, z, x), decoder.weight)
        # beyond float16: an overflow is not passed on
        huge = adaptive_weight(1e30 * decoder(z).sum(), judge(decoder(z)).mean(), decoder.weight)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, exact, rtol=0.03, atol=0)
    assert 0 <= huge <= LARGEST


def _work(rank, folder):
    parts = setting()
    torch.distributed.init_process_group("gloo")
    decoder, judge, z, x = (*parts[:2], *(part[:4][rank::2] for part in parts[2:]))
    weight = adaptive_weight(*losses(decoder, judge, z, x), decoder.weight)
    torch.save(weight, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_have_the_weight_of_the_joined_batch(tmp_path):
    run_ranks(_work, 2, str(tmp_path))
    decoder, judge, z, x = setting()
    expected = adaptive_weight(*losses(decoder, judge, z[:4], x[:4]), decoder.weight)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_loss_that_is_not_averaged_is_told():
    decoder, judge, z, x = setting()
    rec, _ = losses(decoder, judge, z, x)
    with pytest.raises(ValueError, match=r"adversarial has shape \(5, 1\)"):
        adaptive_weight(rec, judge(decoder(z)), decoder.weight)
