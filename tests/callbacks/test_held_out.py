"""What `test` logs is in results.json, beside the scores of the same model alone."""

import json

import pytest
from tiny import SHAPE, TinyData, tiny_autoencoder, tiny_diffusion, tiny_vae, trainer

from lightning_gen.autoencoder import IWAE
from lightning_gen.callbacks import HeldOutResults
from lightning_gen.metrics import reconstruction_protocol


def test_means_of_the_test_split(tmp_path):
    run = trainer(tmp_path, callbacks=[HeldOutResults()])
    module = tiny_autoencoder(ema_half_lives=[50])
    (told,) = run.test(module, datamodule=TinyData(), verbose=False)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["held_out"]["values"] == pytest.approx(told)
    assert content["held_out"]["protocol"] == {
        "weights": "ema-50",
        "dataset": "tiny",
        "split": "test",
        "num_images": 64,
        "measured": {
            "test/reconstruction": "mean absolute difference over an image's dimensions, range 2",
            **{f"test/{name}": how for name, how in reconstruction_protocol(SHAPE).items()},
        },
    }
    assert set(content["held_out"]["protocol"]["measured"]) < set(told)
    assert content["model"] == "Autoencoder"
    assert content["scores"] == {}


@pytest.mark.parametrize(
    ("module", "name", "how"),
    [
        (
            lambda: tiny_vae(binarize="static", objective=IWAE(3), test_samples=7),
            "test/log_likelihood",
            "nats of an image, Bernoulli, the mass of 2 values, images binarized once by their own hash; by importance"
            " sampling with 7 draws an image",
        ),
        (lambda: tiny_vae(test_samples=0), "test/elbo", "nats of an image, Bernoulli, the mass of 2 values; draws: 1"),
        (lambda: tiny_diffusion(likelihood_steps=3), "test/bits_per_dim", "probability-flow ODE in 3 steps"),
    ],
)
def test_it_is_said_how_means_are_measured(module, name, how, tmp_path):
    run = trainer(tmp_path, callbacks=[HeldOutResults()], limit_test_batches=1)
    (told,) = run.test(module(), datamodule=TinyData(), verbose=False)
    measured = json.loads((tmp_path / "results.json").read_text())["held_out"]["protocol"]["measured"]
    assert how in measured[name]
    assert set(measured) <= set(told)


def test_a_part_of_the_split_is_told_as_such(tmp_path):
    run = trainer(tmp_path, callbacks=[HeldOutResults()], limit_test_batches=3)
    run.test(tiny_autoencoder(), datamodule=TinyData(), verbose=False)
    assert json.loads((tmp_path / "results.json").read_text())["held_out"]["protocol"]["num_images"] == 24


@pytest.mark.parametrize("iterations", [0, 7])
def test_scores_of_this_model_are_kept_and_of_another_not(tmp_path, iterations):
    before = {"scores": {"fid": {"value": 1.0}}, "model": "Autoencoder", "iterations": iterations}
    (tmp_path / "results.json").write_text(json.dumps(before))
    trainer(tmp_path, callbacks=[HeldOutResults()]).test(tiny_autoencoder(), datamodule=TinyData(), verbose=False)
    content = json.loads((tmp_path / "results.json").read_text())
    assert bool(content["scores"]) == (iterations == 0)
    assert "test/psnr" in content["held_out"]["values"]
