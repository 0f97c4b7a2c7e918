"""What every quantizer keeps: codes that decode, straight gradients, counts, precision, checkpoints."""

import warnings

import numpy as np
import pytest
import torch
from quantized import QUANTIZERS, QuantizedAutoencoder, fit, quantizer
from tiny import Joined, same, trainer, weights

from lightning_gen.autoencoder import Quantizer, VectorQuantizer
from lightning_gen.autoencoder.quantizers.counts import WINDOW, CodeCounts

EVERY = pytest.mark.parametrize("name", QUANTIZERS)


def features(net, batch=4, dtype=torch.float64, seed=1, side=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, net.in_channels, side, side, generator=generator, dtype=dtype)


def trained(name, dtype=torch.float64, batches=5):
    net = quantizer(name).to(dtype)
    for seed in range(batches):
        net(features(net, dtype=dtype, seed=seed))
    return net


@EVERY
def test_latents_are_their_codes(name):
    """To the bit, and whatever the dtype."""
    for dtype in (torch.float32, torch.float64):
        net = trained(name, dtype).eval()
        bottled = net(features(net, dtype=dtype))
        decoded = net.decode_indices(bottled.indices)
        assert decoded.dtype == bottled.z.dtype == dtype
        assert torch.equal(decoded, bottled.z)


@EVERY
@pytest.mark.parametrize("training", [True, False])
def test_shapes_and_ranges(name, training):
    net = trained(name).train(training)
    bottled = net(features(net))
    assert bottled.indices.dtype == torch.int64
    assert bottled.z.shape == (4, net.out_channels, 4, 4)
    assert bottled.loss.shape == ()
    assert bottled.indices.ndim == (3 if net.num_quantizers == 1 else 4)
    assert 0 <= bottled.indices.min() <= bottled.indices.max() < net.codebook_size


@EVERY
def test_logs_are_finite_scalars_without_gradients(name):
    net = trained(name)
    bottled = net(features(net))
    assert {"usage", "perplexity"} <= bottled.logs.keys()
    for key, value in bottled.logs.items():
        assert value.shape == (), key
        assert not value.requires_grad, key
        assert torch.isfinite(value), key
    assert 0 < net.usage <= 1
    assert 1 <= net.perplexity <= net.codebook_size


@EVERY
def test_only_training_with_gradients_moves_anything(name):
    net = trained(name)
    before = weights(net)
    with torch.no_grad():
        net(features(net, seed=9))
    net.eval()(features(net, seed=9))
    assert same(before, weights(net))
    net.train()(features(net, seed=9))
    assert not same(before, weights(net))


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "two levels"])
def test_autocast_computes_in_full_precision(name):
    """The convolutions between two levels are meant to run in bfloat16."""
    net = trained(name, torch.float32).eval()
    x = features(net, dtype=torch.float32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x)
    exact = net(x.float())
    assert rough.z.dtype == rough.loss.dtype == torch.float32
    assert torch.equal(rough.z, exact.z)
    assert torch.equal(rough.indices, exact.indices)
    assert torch.equal(rough.loss, exact.loss)


@EVERY
def test_autocast_trains(name):
    net = quantizer(name)
    decoder = torch.nn.Conv2d(net.out_channels, 1, 1)
    x = features(net, dtype=torch.float32).requires_grad_()
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            bottled = net(x)
            loss = decoder(bottled.z).square().mean() + bottled.loss
        loss.backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


@EVERY
def test_a_state_dict_carries_everything(name, tmp_path):
    """The next batches, restarts and counts included, are those of the quantizer that was saved."""
    net, other = trained(name), quantizer(name, seed=1).double()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    for seed in (10, 11):
        first, second = net(features(net, seed=seed)), other(features(net, seed=seed))
        assert torch.equal(first.z, second.z)
        assert torch.equal(first.loss, second.loss)
    assert same(weights(net), weights(other))


@EVERY
def test_a_resumed_run_is_the_same_to_the_bit(name, tmp_path):
    whole, _ = fit(name, tmp_path, steps=20)
    _, half = fit(name, tmp_path, steps=16)  # an epoch
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = QuantizedAutoencoder(name, seed=1).double()
    settings = {"max_steps": 20, "max_epochs": -1, "precision": "64-true"}
    trainer(tmp_path, **settings).fit(resumed, datamodule=Joined(), ckpt_path=tmp_path / "half.ckpt")
    assert same(weights(whole), weights(resumed))


@EVERY
def test_every_parameter_gets_a_finite_gradient(name):
    net = QuantizedAutoencoder(name).double()
    images = torch.linspace(-1, 1, 8 * 16, dtype=torch.float64).view(8, 1, 4, 4)
    net.loss(images).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert net.encoder.weight.grad.abs().sum() > 0


@EVERY
def test_features_that_are_not_finite_spoil_nothing(name):
    """The step is refused by its gradient; the codebook does not move by it either, dead codes included."""
    net = trained(name)
    x = features(net)
    x[0, 0, 0, 0] = torch.nan
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(x)
    counted = ("updates", "counts")  # of batches and of choices, whatever the features
    for key, value in net.state_dict().items():
        assert torch.isfinite(value).all(), key
        assert torch.equal(value, before[key]) or key.endswith(counted), key


@EVERY
def test_wrong_input_is_told(name):
    net = quantizer(name)
    assert isinstance(net, Quantizer)
    with pytest.raises(ValueError, match="out_channels"):
        net(torch.zeros(2, net.in_channels + 1, 4, 4))
    codes = net(features(net, dtype=torch.float32)).indices
    with pytest.raises(ValueError, match="int64"):
        net.decode_indices(codes.float())
    with pytest.raises(ValueError, match="shape"):
        net.decode_indices(codes[0])
    with pytest.raises(ValueError, match="given were"):
        net.decode_indices(codes + net.codebook_size)


# ---------------------------------------------------------------------- counts


def test_counts_by_hand():
    counts = CodeCounts(4, num_quantizers=2)
    assert counts.usage.tolist() == [0, 0]
    assert counts.perplexity.tolist() == [1, 1]
    counts.count(torch.tensor([[[0, 3], [1, 3]], [[0, -1], [0, 3]]]))
    assert counts.usage.tolist() == [0.5, 0.25]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(counts.perplexity, [np.exp(entropy), 1], rtol=1e-6)
    counts.count(torch.tensor([[2, 0], [3, 1], [3, 2]]))
    assert counts.counts[0].tolist() == [[3, 1, 1, 2], [1, 1, 1, 3]]
    assert counts.usage.tolist() == [1, 1]


def test_counts_forget_what_is_two_blocks_old():
    counts = CodeCounts(3)
    for batch in range(3 * WINDOW):
        counts.count(torch.tensor([min(batch // WINDOW, 1)]))
        # code 0 is counted in the first block alone, and known of until the second is full
        assert counts.counts.sum(0).tolist()[0][0] == (
            batch + 1 if batch < WINDOW else WINDOW if batch < 2 * WINDOW else 0
        )
    assert counts.counts.tolist() == [[[0, WINDOW, 0]], [[0, WINDOW, 0]]]


def test_counts_stay_integers_in_every_precision():
    net = VectorQuantizer(3, 8).double()
    assert net.counts.counts.dtype == torch.int64


def test_a_dead_codebook_is_told_of_once():
    net = VectorQuantizer(2, 40, ema_decay=0.99)
    x = torch.ones(1, 2, 2, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2 * WINDOW - 1):
            net(x)
        assert not caught
        for _ in range(3 * WINDOW):
            net(x)
    (warning,) = caught
    for told in ("2.5% of 40 codes", "restart_below", "codebook_size"):
        assert told in str(warning.message)


def test_a_codebook_in_use_is_not_told_of():
    net = VectorQuantizer(2, 8, ema_decay=0.99, restart_below=0.1)
    for seed in range(3 * WINDOW):
        net(features(net, dtype=torch.float32, seed=seed))
    assert net.usage == 1
