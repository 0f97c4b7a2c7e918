"""Averages of weights: closed form, half-life, warm-up, buffers, several at once."""

import pytest
import torch
from tiny import TinyData, TinyGenerator, same, tiny_gan, trainer, weights
from torch import nn

from lightning_gen.ema import EMA, Averages


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
