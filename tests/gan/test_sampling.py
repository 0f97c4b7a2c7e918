"""What `sample` promises of a GAN: seeds, classes, truncation."""

import pytest
import torch
from tiny import TinyData, tiny_gan, trainer

from lightning_gen.gan.latents import draw_latents
from lightning_gen.seeding import SampleStreams


def test_truncated_latents_have_the_truncated_normal_distribution():
    """Against the density phi(z) / (Phi(t) - Phi(-t)) on [-t, t]: moments in closed form."""
    bound = 0.7
    z = draw_latents(SampleStreams(0, 0, 4000, dtype=torch.float64), 50, truncation=bound)
    normal = torch.distributions.Normal(0.0, 1.0)
    phi = normal.log_prob(torch.tensor(bound)).exp()
    mass = 2 * normal.cdf(torch.tensor(bound)) - 1
    variance = (1 - 2 * bound * phi / mass).item()
    assert z.abs().max() <= bound
    error = (2 / z.numel()) ** 0.5 * variance  # of a sample variance, bounded by a normal's
    assert z.var().item() == pytest.approx(variance, abs=5 * error)
    assert z.mean().abs().item() < 5 * (variance / z.numel()) ** 0.5


def test_a_wide_truncation_is_none():
    wide = draw_latents(SampleStreams(0, 0, 500, dtype=torch.float64), 50, truncation=30.0)
    assert wide.var().item() == pytest.approx(1.0, abs=0.05)


def test_truncation_is_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        tiny_gan().sample(2, truncation=0.0)


def test_the_class_given_is_the_class_made():
    module = tiny_gan(num_classes=4)
    all_three = module.sample(6, cond=3, seed=0)
    assert torch.equal(all_three, module.sample(6, cond=[3] * 6, seed=0))
    assert torch.equal(all_three, module.sample(6, cond=torch.full((6,), 3), seed=0))
    assert not torch.equal(all_three, module.sample(6, cond=2, seed=0))
    mixed = module.sample(6, cond=[0, 3, 1, 3, 2, 3], seed=0)
    assert torch.allclose(mixed[1::2], all_three[1::2], atol=1e-6)


@pytest.mark.parametrize(
    ("cond", "message"),
    [(4, "0 to 3"), (-1, "0 to 3"), ([0, 1], "one class or 3"), (1.5, "integers"), ([[0], [1], [2]], "one class or 3")],
)
def test_classes_that_do_not_exist_are_refused(cond, message):
    with pytest.raises(ValueError, match=message):
        tiny_gan(num_classes=4).sample(3, cond=cond)


def test_a_class_asked_of_a_model_without_classes_is_refused():
    with pytest.raises(ValueError, match="no classes"):
        tiny_gan().sample(2, cond=1)


def test_other_misuse_is_refused():
    with pytest.raises(ValueError, match="1 or more"):
        tiny_gan().sample(0)
    with pytest.raises(ValueError, match="both were given"):
        tiny_gan().sample(1, seed=0, generator=torch.Generator())


def test_sampling_changes_nothing():
    module = tiny_gan(norm=True).train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    module.sample(5, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.generator.norm.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_predict_draws_the_samples_of_the_indices(tmp_path):
    module = tiny_gan()
    run = trainer(tmp_path)
    batches = run.predict(module, datamodule=TinyData(n=20, batch_size=8))
    whole = module.sample(20, seed=module.seed)
    assert torch.allclose(torch.cat(batches), whole, atol=1e-6)
