"""Averages of weights: closed form, half-life, warm-up, buffers, several at once."""

import numpy as np
import pytest
import torch
from tiny import TinyData, TinyGenerator, same, tiny_gan, trainer, weights
from torch import nn

from lightning_gen.ema import EMA, Averages, PowerEMA
from lightning_gen.ema_profiles import WIDEST, exponent_of, overlaps, power_decay, width_of


def test_the_average_starts_as_a_copy_and_follows_the_closed_form():
    """Weights 1, 2, 3, ... n: the average is a sum of powers of beta."""
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    ema = EMA(network, half_life=100, warmup=None)
    beta = 0.5 ** (10 / 100)
    for step in range(1, 8):
        nn.init.constant_(network.weight, float(step))
        ema.update(network, batch=10, images=10 * step)
    expected = sum((1 - beta) * beta ** (7 - step) * step for step in range(1, 8))
    assert ema.network.weight.item() == pytest.approx(expected, rel=1e-12)


def test_a_share_halves_in_the_half_life_whatever_the_batch():
    for batch in (1, 10, 50):
        network = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(network.weight)
        ema = EMA(network, half_life=100, warmup=None)
        nn.init.zeros_(network.weight)
        for _ in range(100 // batch):
            ema.update(network, batch, images=0)
        assert ema.network.weight.item() == pytest.approx(0.5, rel=1e-12)


def test_warm_up_shortens_the_half_life():
    ema = EMA(nn.Linear(1, 1), half_life=1000, warmup=0.05)
    assert ema.decay(batch=10, images=400) == pytest.approx(0.5 ** (10 / 20))
    assert ema.decay(batch=10, images=10**9) == pytest.approx(0.5 ** (10 / 1000))


def test_buffers_are_copied_floats_and_counters_alike():
    network = TinyGenerator(norm=True)
    averages = Averages(network, [10, 1000])
    for _ in range(3):
        network(torch.randn(8, 3))
        averages.update(network, 8, 8)
    for average in averages.averages.values():
        assert average.network.norm.num_batches_tracked == 3
        assert torch.equal(average.network.norm.running_mean, network.norm.running_mean)
        assert torch.equal(average.network.norm.running_var, network.norm.running_var)


def test_it_is_never_trained():
    module = tiny_gan(norm=True, ema_half_lives=[100])
    module.train()
    assert not any(part.training for part in module.generator_ema.averages["ema-100"].modules())
    assert not any(p.requires_grad for p in module.generator_ema.parameters())
    averaged = {id(p) for p in module.generator_ema.parameters()}
    for config in module.configure_optimizers():
        trained = {id(p) for group in config["optimizer"].param_groups for p in group["params"]}
        assert not averaged & trained


def test_several_decays_in_one_run_and_in_the_checkpoint(tmp_path):
    """Each average is what a run with that decay alone makes."""
    both = tiny_gan(norm=True, ema_half_lives=[20, 500], ema_warmup=None)
    run = trainer(tmp_path, max_steps=6)
    run.fit(both, datamodule=TinyData())
    for half_life in (20, 500):
        alone = tiny_gan(norm=True, ema_half_lives=[half_life], ema_warmup=None)
        trainer(tmp_path, max_steps=6).fit(alone, datamodule=TinyData())
        name = f"ema-{half_life}"
        assert same(weights(alone.generator_ema.averages[name]), weights(both.generator_ema.averages[name]))
    run.save_checkpoint(tmp_path / "both.ckpt")
    loaded = tiny_gan(seed=1, norm=True, ema_half_lives=[20, 500])
    loaded.load_state_dict(torch.load(tmp_path / "both.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(loaded.sample(4, seed=0, weights="ema-500"), both.sample(4, seed=0, weights="ema-500"))


def test_sampling_says_which_weights_it_uses():
    module = tiny_gan(ema_half_lives=[20, 500])
    nn.init.zeros_(module.generator_ema.averages["ema-20"].network.outer.weight)
    nn.init.zeros_(module.generator_ema.averages["ema-20"].network.outer.bias)
    assert module.weights_used() == module.weights_used(weights="ema") == "ema-20"
    assert module.sample(3).abs().max() == 0
    assert module.sample(3, weights="ema-500").abs().max() > 0
    assert module.weights_used(weights="raw") == "raw"
    assert tiny_gan().weights_used() == "raw"
    with pytest.raises(ValueError, match=r"raw, ema, ema-20, ema-500.*Did you mean 'ema-500'"):
        module.sample(3, weights="ema-5000")
    with pytest.raises(ValueError, match="this model has raw"):
        tiny_gan().sample(3, weights="ema")


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="half-life"):
        EMA(nn.Linear(1, 1), 0)
    with pytest.raises(ValueError, match="averaged once"):
        Averages(nn.Linear(1, 1), [5, 5])


# ---------------------------------------------------------------------- power-function profiles


def scalar(value=0.0):
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, value)
    return network


def tracked(values, sigma_rel, batch=10):
    """The average of a weight that takes these values after each iteration."""
    network = scalar(-7.0)
    ema = PowerEMA(network, sigma_rel)
    for step, value in enumerate(values, start=1):
        nn.init.constant_(network.weight, value)
        ema.update(network, batch, step * batch)
    return ema.network.weight.item()


def test_widths_of_the_paper():
    # the two that the paper stores, with the exponents that it gives them
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.005)
    # the root of the cubic, found by another method
    for width in (0.01, 0.05, 0.1, 0.15, 0.25):
        roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
        assert exponent_of(width) == pytest.approx(max(roots.real), rel=1e-10)
        assert width_of(exponent_of(width)) == pytest.approx(width, rel=1e-14)
    # the plain mean of the past
    assert exponent_of(WIDEST) == exponent_of(0.2887) == 0


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_mean_and_standard_deviation_of_the_profile(sigma_rel):
    """On a ramp the average is the mean of the time, on its square the second moment; both to O(1 / steps)."""
    n, gamma = 20_000, exponent_of(sigma_rel)
    weights = np.ones(n)
    for step in range(1, n + 1):
        beta = power_decay(gamma, 10, 10 * step)
        weights[: step - 1] *= beta
        weights[step - 1] = 1 - beta
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    # the weight of a step stands for the piece of time that it took: its middle
    time = (np.arange(n) + 0.5) / n
    mean = (weights * time).sum()
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-6)
    assert np.sqrt((weights * (time - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-6)


def test_a_power_average_is_a_sum_of_powers():
    values = [3.0, -1.0, 2.0, 0.5, 4.0, 1.0]
    gamma = exponent_of(0.1)
    ends = [(k / len(values)) ** (gamma + 1) for k in range(len(values) + 1)]
    expected = sum((ends[k + 1] - ends[k]) * value for k, value in enumerate(values))
    assert tracked(values, 0.1) == pytest.approx(expected, rel=1e-12)
    # the widest profile is the plain mean
    assert tracked(values, WIDEST) == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_the_first_update_of_a_power_average_copies():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = PowerEMA(network, 0.05)
    nn.init.normal_(network.weight)
    ema.update(network, 8, 8)
    assert same(weights(ema.network), weights(network))


def test_the_batch_size_changes_nothing_where_the_weights_stand_still():
    fine = [float(k // 4) for k in range(40)]
    coarse = [float(k) for k in range(10)]
    assert tracked(fine, 0.1, batch=5) == pytest.approx(tracked(coarse, 0.1, batch=20), rel=1e-12)


def test_overlaps_are_the_integrals():
    images = torch.tensor([1.0, 0.4, 1.0, 3.0], dtype=torch.float64)
    gammas = torch.tensor([3.0, 2.5, 7.0, 16.97], dtype=torch.float64)
    products = overlaps(images, gammas)
    assert torch.equal(products, products.T)
    n = 200_000
    for i in range(4):
        for j in range(4):
            end = min(images[i], images[j]).item()
            time = (np.arange(n) + 0.5) / n * end
            parts = [(images[k].item(), gammas[k].item()) for k in (i, j)]
            profiles = [(gamma + 1) / length ** (gamma + 1) * time**gamma for length, gamma in parts]
            assert products[i, j].item() == pytest.approx((profiles[0] * profiles[1]).mean() * end, rel=1e-7)


def test_both_kinds_of_average_side_by_side():
    network = TinyGenerator()
    averages = Averages(network, [20], sigma_rels=[0.05, 0.1])
    assert averages.names == ("ema-20", "power-0.050", "power-0.100")
    assert averages.resolve("ema") == averages.resolve(None) == "ema-20"
    assert averages.resolve("power-0.050") == "power-0.050"
    assert averages.pick(network, "power-0.100") is averages["power-0.100"].network
    assert averages["power-0.100"].sigma_rel == 0.1
    with pytest.raises(ValueError, match=r"power-0.050, power-0.100.*Did you mean 'power-0.050'"):
        averages.resolve("power-0.05")
    only = Averages(network, [], sigma_rels=[0.1, 0.05])
    assert only.resolve("ema") == only.resolve(None) == "power-0.100"
    assert not any(p.requires_grad for p in averages.parameters())
    loaded = Averages(TinyGenerator(), [20], sigma_rels=[0.05, 0.1])
    loaded.load_state_dict(averages.state_dict())
    assert same(weights(loaded), weights(averages))


def test_averages_start_again_from_other_weights():
    torch.manual_seed(0)
    network, other = TinyGenerator(norm=True), TinyGenerator(norm=True)
    other(torch.randn(8, 3))
    averages = Averages(network, [20], sigma_rels=[0.1])
    averages.restart(other)
    for name in averages.names:
        assert same(weights(averages[name].network), weights(other))


def test_impossible_widths_are_refused():
    for width in (0.0, -0.1, 0.29, float("nan")):
        with pytest.raises(ValueError, match=r"above 0 and at most 0.2887"):
            PowerEMA(nn.Linear(1, 1), width)
    with pytest.raises(ValueError, match="to three digits"):
        Averages(nn.Linear(1, 1), [], sigma_rels=[0.1, 0.1001])
