"""What `test` logs is in results.json, beside the scores of the same model alone."""

import json

import pytest
from tiny import TinyData, tiny_autoencoder, trainer

from lightning_gen.callbacks import HeldOutResults


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
    }
    assert content["model"] == "Autoencoder"
    assert content["scores"] == {}


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
