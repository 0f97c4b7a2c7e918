"""Iterations are counted once, gradients accumulate and clip as the Trainer's would, scalers are separate."""

import copy
import csv

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from noiseless import FixedNoise
from tiny import TinyData, same, tiny_gan, trainer, weights

from lightning_gen.gan.losses import NonSaturating
from lightning_gen.stepping import evaluating, frozen, tracking_layers, untracked_statistics


class Record(Callback):
    """Write down what the trainer counts, and when the networks move."""

    def __init__(self):
        self.batches, self.moved_g, self.moved_d, self.x_axis = 0, 0, 0, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = weights(module.generator), weights(module.discriminator)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches += 1
        self.moved_g += not same(self.before[0], weights(module.generator))
        self.moved_d += not same(self.before[1], weights(module.discriminator))


@pytest.mark.parametrize("n_dis", [1, 5])
def test_max_steps_counts_iterations(tmp_path, n_dis):
    record = Record()
    fit = trainer(tmp_path, max_steps=10, max_epochs=-1, callbacks=[record])
    fit.fit(tiny_gan(n_dis=n_dis), datamodule=TinyData())
    assert fit.global_step == 10
    assert record.moved_g == 10
    assert record.batches == record.moved_d == 10 * n_dis


@pytest.mark.parametrize("n_dis", [1, 5])
def test_checkpoints_are_saved_every_n_iterations(tmp_path, n_dis):
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit = trainer(tmp_path, max_steps=10, max_epochs=-1, callbacks=[saver], enable_checkpointing=True)
    fit.fit(tiny_gan(n_dis=n_dis), datamodule=TinyData())
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=3.ckpt", "step=6.ckpt", "step=9.ckpt"]


@pytest.mark.parametrize("n_dis", [1, 5])
def test_loggers_count_iterations(tmp_path, n_dis):
    logger = CSVLogger(tmp_path, name="", version="")
    fit = trainer(tmp_path, max_steps=12, max_epochs=-1, logger=logger, log_every_n_steps=4)
    fit.fit(tiny_gan(n_dis=n_dis), datamodule=TinyData())
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    assert all(row["loss_g"] and row["loss_d"] for row in rows)


def test_checkpoints_may_watch_a_training_loss(tmp_path):
    """Values logged at one iteration are there for those that look later."""
    saver = ModelCheckpoint(dirpath=tmp_path, monitor="loss_g", every_n_train_steps=3, filename="best")
    fit = trainer(tmp_path, max_steps=9, log_every_n_steps=4, callbacks=[saver], enable_checkpointing=True)
    fit.fit(tiny_gan(), datamodule=TinyData(n=128))
    assert (tmp_path / "best.ckpt").exists()
    assert saver.best_model_score == saver.current_score == fit.callback_metrics["loss_g"]


@pytest.mark.parametrize("n_dis", [1, 5])
def test_schedules_step_once_an_iteration(tmp_path, n_dis):
    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))

    module = tiny_gan(n_dis=n_dis, scheduler_g=schedule, scheduler_d=schedule)
    trainer(tmp_path, max_steps=9, max_epochs=-1).fit(module, datamodule=TinyData())
    for optimizer in module.optimizers():
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4 / 10, rel=1e-12)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
@pytest.mark.parametrize("n_dis", [1, 5])
def test_a_resumed_run_counts_on(tmp_path, n_dis):
    """Ten iterations at once, and six and four: the same weights, count, rates and averages."""

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=10)

    def make():
        return tiny_gan(n_dis=n_dis, scheduler_g=schedule, scheduler_d=schedule, ema_half_lives=[50])

    data = TinyData(n=8 * n_dis * 20)  # one epoch, in order
    straight = make()
    trainer(tmp_path, max_steps=10, max_epochs=-1).fit(straight, datamodule=data)
    first = trainer(tmp_path, max_steps=6, max_epochs=-1)
    first.fit(make(), datamodule=data)
    first.save_checkpoint(tmp_path / "six.ckpt")

    class Skip(TinyData):
        """The data that the first part has not seen."""

        def split(self, name):
            images = super().split(name)
            images.images = images.images[8 * n_dis * 6 :]
            return images

    resumed = make()
    second = trainer(tmp_path, max_steps=10, max_epochs=-1)
    second.fit(resumed, datamodule=Skip(n=data.n), ckpt_path=tmp_path / "six.ckpt")
    assert second.global_step == 10
    assert resumed.images_seen == straight.images_seen == 80
    assert same(weights(resumed), weights(straight))
    for one, other in zip(resumed.optimizers(), straight.optimizers(), strict=True):
        assert one.param_groups[0]["lr"] == other.param_groups[0]["lr"]


def test_accumulation_equals_the_large_batch(tmp_path):
    """Two batches of 8 in a step move D and G as one batch of 16 does, to rounding."""
    small = tiny_gan(accumulate=2, loss="relativistic_pairing", cls=FixedNoise, n_dis=2).double()
    large = copy.deepcopy(small)
    large.accumulate = 1
    for module, size in ((small, 8), (large, 16)):
        fit = trainer(tmp_path, max_steps=3, max_epochs=-1, precision="64-true")
        fit.fit(module, datamodule=TinyData(n=192, batch_size=size))
    for name, value in weights(small).items():
        torch.testing.assert_close(value, weights(large)[name], rtol=0, atol=1e-12)


def test_gradients_are_clipped_after_unscaling(tmp_path):
    """float16 training scales the loss by 65,536; the bound holds for the gradient without that factor."""
    norms = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norms.append(torch.nn.utils.get_total_norm(grads).item())

    def run(bound):
        norms.clear()
        module = tiny_gan(gradient_clip_val=bound)
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        trainer(tmp_path, max_steps=2, plugins=[precision], callbacks=[Watch()]).fit(module, datamodule=TinyData())
        return list(norms)

    free, bounded = run(None), run(1e-3)
    assert min(free) > 1e-2  # the bound is at work
    # callbacks come before the module's hook, so what they see of a step is unscaled and not yet clipped
    assert bounded[:2] == pytest.approx(free[:2], rel=1e-3)


def test_the_clipped_step_has_the_length_of_the_bound(tmp_path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1.0)

    module = tiny_gan(gradient_clip_val=1e-2, optimizer_g=sgd, optimizer_d=sgd)
    before = weights(module)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer(tmp_path, max_steps=1, plugins=[precision]).fit(module, datamodule=TinyData())
    for network in ("generator", "discriminator"):
        moved = [weights(module)[k] - v for k, v in before.items() if k.startswith(network + ".")]
        assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")
def test_each_optimizer_has_a_scaler_of_its_own(tmp_path):
    """An overflow in D's loss halves D's scale and leaves G's; both scales are in the checkpoint."""

    class Overflow(NonSaturating):
        def discriminator(self, real, fake):
            return super().discriminator(real, fake) * float("inf")

    module = tiny_gan(loss=Overflow())
    before = weights(module.discriminator)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fit = trainer(tmp_path, max_steps=3, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    fit.fit(module, datamodule=TinyData())
    assert scaler.get_scale() == 1024.0  # G's
    assert module.steps.state_dict()[1]["scale"] == 128.0  # D's, halved three times
    assert same(weights(module.discriminator), before)  # steps that overflow are left out
    fit.save_checkpoint(tmp_path / "scaled.ckpt")
    kept = torch.load(tmp_path / "scaled.ckpt", weights_only=True)
    assert kept["lightning_gen"]["scalers"][1]["scale"] == 128.0
    resumed = tiny_gan()
    fit = trainer(
        tmp_path, max_steps=4, plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 1024.0))]
    )
    fit.fit(resumed, datamodule=TinyData(), ckpt_path=tmp_path / "scaled.ckpt")
    assert resumed.steps.state_dict()[1]["scale"] == 128.0


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_short_way_is_taken_without_hooks_and_changes_nothing(tmp_path, clip):
    """Lightning's own way, which a hook between backward and step asks for, gives the same bits."""
    calls = []

    class Hook(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            calls.append(trainer.global_step)

    trained = []
    for callbacks in ([], [Hook()]):
        module = tiny_gan(gradient_clip_val=clip, n_dis=2, ema_half_lives=[20])
        module._seed = 3
        trainer(tmp_path, max_steps=5, max_epochs=-1, callbacks=callbacks).fit(module, datamodule=TinyData())
        assert module.steps._direct == (not callbacks)
        trained.append(weights(module))
    assert same(*trained)
    assert len(calls) == 3 * 5


def test_contexts_put_everything_back_after_an_error():
    module = tiny_gan(norm=True)
    module.generator.norm.eval()
    with pytest.raises(ZeroDivisionError), frozen(module.discriminator):
        _ = 1 / sum(p.requires_grad for p in module.discriminator.parameters())
    assert all(p.requires_grad for p in module.discriminator.parameters())
    with pytest.raises(ZeroDivisionError), untracked_statistics(tracking_layers(module.generator)):
        _ = 1 / module.generator.norm.track_running_stats
    assert module.generator.norm.track_running_stats
    with pytest.raises(ZeroDivisionError), evaluating(module.generator):
        _ = 1 / module.generator.training
    assert module.generator.training
    assert not module.generator.norm.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"accumulate": 0}, "accumulate"), ({"gradient_clip_val": -1.0}, "gradient_clip_val")],
)
def test_impossible_settings_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1).fit(tiny_gan(**arguments), datamodule=TinyData())
