"""Codes of two grids: what depends on what, and how they are laid out."""

import pytest
import torch

from lightning_gen.autoencoder import ResidualQuantizer, TwoLevelQuantizer, VectorQuantizer


def make(top=None, bottom=None):
    torch.manual_seed(0)
    top = top or VectorQuantizer(3, 16, ema_decay=0.9, restart_below=0.1)
    bottom = bottom or VectorQuantizer(2, 8, ema_decay=0.9, restart_below=0.1)
    net = TwoLevelQuantizer(4, top, bottom, channels=8, block_channels=4).double()
    for seed in range(5):
        net(features(seed=seed))
    return net.eval()


def features(batch=2, side=(8, 4), seed=10):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, *side, generator=generator, dtype=torch.float64)


def test_codes_lie_on_the_coarse_grid():
    """One of the top level, then the four of the bottom level row by row, each at its place."""
    net = make()
    x = features()
    bottled = net(x)
    assert bottled.indices.shape == (2, 4, 2, 5)
    assert (net.num_quantizers, net.codebook_size, net.out_channels) == (5, 16, 5)
    top = net.top(net.encode_top(x))
    assert torch.equal(bottled.indices[..., 0], top.indices)
    told = torch.cat([x, net.decode_top(top.z)], dim=1)
    fine = net.bottom(net.condition(told)).indices
    for row in range(8):
        for column in range(4):
            packed = bottled.indices[:, row // 2, column // 2, 1 + 2 * (row % 2) + column % 2]
            assert torch.equal(packed, fine[:, row, column])


def test_the_decoder_is_given_both_levels():
    net = make()
    bottled = net(features())
    top = net.top.decode_indices(bottled.indices[..., 0])
    assert torch.equal(bottled.z[:, :3], net.upsample(top))
    bottom = bottled.z[:, 3:].movedim(1, -1).reshape(-1, 2)
    rows = {tuple(row) for row in net.bottom.codebook.codes.tolist()}
    assert {tuple(row) for row in bottom.tolist()} <= rows


@pytest.mark.parametrize("levels", ["one code", "several"])
def test_codes_decode(levels):
    several = {"top": ResidualQuantizer(3, 16, 2), "bottom": ResidualQuantizer(2, 8, 3)}
    net = make(**several) if levels == "several" else make()
    bottled = net(features())
    assert bottled.indices.shape[-1] == net.num_quantizers == (2 + 4 * 3 if levels == "several" else 5)
    assert torch.equal(net.decode_indices(bottled.indices), bottled.z)
    with pytest.raises(ValueError, match=f"decodes {net.num_quantizers} codes"):
        net.decode_indices(bottled.indices[..., :-1])


def test_a_bottom_code_moves_its_own_place_alone():
    net = make()
    codes = net(features()).indices
    changed = codes.clone()
    changed[0, 1, 1, 3] = (codes[0, 1, 1, 3] + 1) % 8  # the third of four: one row down, first column
    moved = (net.decode_indices(changed) != net.decode_indices(codes)).any(1)
    assert moved.nonzero().tolist() == [[0, 3, 2]]


def test_the_top_level_is_seen_by_the_bottom_level():
    """Gradients of the bottom level's commitment reach the top level's encoder, through its codes."""
    net = make().train()
    x = features()
    net.bottom.beta = 1.0
    net.top.beta = 0.0
    net(x).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in net.encode_top.parameters())
    assert all(p.grad.abs().sum() > 0 for p in net.decode_top.parameters())


def test_losses_add_up():
    net = make()
    bottled = net(features())
    expected = 0.25 * (bottled.logs["top_commitment_loss"] + bottled.logs["bottom_commitment_loss"])
    torch.testing.assert_close(bottled.loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(net.usage, (net.top.usage + net.bottom.usage) / 2)


def test_an_odd_side_is_told():
    with pytest.raises(ValueError, match=r"7 x 4.*multiples of twice"):
        make()(features(side=(7, 4)))
