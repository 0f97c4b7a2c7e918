"""Scores during training: the engine's numbers, under names that tell their protocol, and what may go wrong."""

import json

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tiny import TinyData, tiny_gan, trainer, weights

from lightning_gen.callbacks import Fidelity
from lightning_gen.callbacks.fidelity import measure
from lightning_gen.images import to_uint8
from lightning_gen.metrics import Evaluator, LeNet5, frechet_distance

KEY = f"fd-{LeNet5().name}_32_val"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))


def fit(tmp_path, *callbacks, module=None, data=None, **arguments):
    run = trainer(
        tmp_path,
        limit_val_batches=1.0,
        num_sanity_val_steps=2,
        callbacks=list(callbacks),
        **({"max_epochs": 2} | arguments),
    )
    module = module or tiny_gan()
    run.fit(module, datamodule=data or TinyData())
    return run, module


def test_the_score_is_the_engines(tmp_path):
    """Against means and covariances taken by hand from the same samples and the validation split."""
    run, module = fit(tmp_path, Fidelity(["fd-lenet5"], n=32, batch_size=8))
    lenet = LeNet5()

    def moments(images):
        features = lenet(images).features.double()
        return features.mean(0), features.T.cov()

    ours = moments(to_uint8(module.sample(32, seed=0)))
    expected = frechet_distance(*ours, *moments(TinyData().split("val").images))
    assert run.callback_metrics[KEY].item() == pytest.approx(expected, rel=1e-4)


def test_training_is_the_same_with_and_without(tmp_path):
    """Neither the draws nor the weights of training know of it."""
    torch.manual_seed(0)
    _, plain = fit(tmp_path, module=tiny_gan(norm=True))
    torch.manual_seed(0)
    _, measured = fit(tmp_path, Fidelity(["fd-lenet5"], n=16), module=tiny_gan(norm=True))
    assert all(torch.equal(value, weights(plain)[key]) for key, value in weights(measured).items())


def test_the_test_may_take_more_samples(tmp_path):
    run, module = fit(tmp_path, Fidelity(["fd-lenet5"], n=32, test_n=48, batch_size=8))
    assert KEY in run.callback_metrics
    run.test(module, datamodule=TinyData(), verbose=False)
    assert f"fd-{LeNet5().name}_48_test" in run.callback_metrics


def test_checkpoints_and_early_stopping_watch_it(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor=KEY, filename="best")
    stop = EarlyStopping(KEY, patience=1, min_delta=1e9)
    run, _ = fit(tmp_path, Fidelity(["fd-lenet5"], n=32), best, stop, max_epochs=9, enable_checkpointing=True)
    assert (tmp_path / "best.ckpt").exists()
    assert run.current_epoch == 2  # one validation without the impossible improvement, and no third
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert not any(key.startswith(("extractor", "fidelity")) or "conv" in key for key in kept["state_dict"])


def test_it_is_not_measured_in_the_sanity_check(tmp_path, monkeypatch):
    calls = []
    callback = Fidelity(["fd-lenet5"], n=8)
    monkeypatch.setattr(callback, "_measure", lambda *args: calls.append(args[0].sanity_checking) or [])
    fit(tmp_path, callback, max_epochs=1)
    assert calls == [False]


def test_a_test_writes_results_with_their_protocol(tmp_path):
    callback = Fidelity(["fd-lenet5", "class-accuracy"], n=40, seed=7)
    run, module = fit(
        tmp_path, callback, module=tiny_gan(num_classes=4, ema_half_lives=[30]), data=TinyData(num_classes=4)
    )
    run.test(module, datamodule=TinyData(num_classes=4), verbose=False)
    content = json.loads((tmp_path / "results.json").read_text())
    lenet = LeNet5().name
    assert set(content["scores"]) == {f"fd-{lenet}_40_test", f"class-accuracy-{lenet}_40"}
    protocol = content["scores"][f"fd-{lenet}_40_test"]["protocol"]
    assert protocol["num_samples"] == 40
    assert protocol["num_reference"] == 64
    assert protocol["seed"] == 7
    assert protocol["weights"] == "ema-30"
    assert protocol["dataset"] == "tiny"
    assert content["iterations"] == 16
    assert content["images_seen"] == 128
    assert content["environment"]["torch"] == torch.__version__


def test_class_accuracy_asks_for_every_class_in_turn(tmp_path):
    """A generator that draws what it is asked for scores 1, one that draws another class 0."""
    digits = torch.stack([TinyData(num_classes=10).split("train").images[i] for i in range(10)])
    lenet = LeNet5()
    seen_as = lenet(digits).logits.argmax(1)
    module = tiny_gan(num_classes=10)
    wanted = []

    def draw(stream, n, cond=None, **how):
        wanted.append(cond)
        return digits[cond].float() / 127.5 - 1

    module.draw = draw
    evaluator = Evaluator(["class-accuracy"], batch_size=8)
    (score,) = measure(module, evaluator, 20)
    assert torch.cat(wanted).tolist() == [i % 10 for i in range(20)]
    assert score.value == pytest.approx((seen_as == torch.arange(10)).float().mean().item())


def test_class_accuracy_of_a_model_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this model has none"):
        measure(tiny_gan(), Evaluator(["class-accuracy"]), 8)


def test_a_reference_is_needed_before_training(tmp_path):
    class Bare(TinyData):
        split = property()

        def train_dataloader(self):
            return []

    with pytest.raises(MisconfigurationException, match="data module"):
        fit(tmp_path, Fidelity(["fd-lenet5"], n=8), data=Bare())


def test_a_trial_run_measures_nothing(tmp_path):
    callback = Fidelity(["fid"], n=50_000)  # would load or download Inception
    fit(tmp_path, callback, fast_dev_run=1)
    assert not callback._evaluators
