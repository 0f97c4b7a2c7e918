"""Iterations are counted once, gradients accumulate and clip as the Trainer's would, scalers are separate."""

import copy
import csv
import os

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from noiseless import FixedNoise
from ranks import run_ranks
from tiny import SHAPE, TinyData, same, tiny_diffusion, tiny_gan, trainer, weights
from torch import nn
from torch.utils.data import DataLoader, Subset

from lightning_gen.gan.losses import NonSaturating
from lightning_gen.images import from_uint8
from lightning_gen.module import GenerativeModule
from lightning_gen.optimizers import DiffusionAdamW
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


# ---------------------------------------------------------------------- micro-batches that are left out


class Leaving(GenerativeModule):
    """A linear map that learns to halve its input, and leaves out the batches of these numbers."""

    def __init__(self, left_out=(), accumulate=1):
        super().__init__()
        self.left_out, self.accumulate = set(left_out), accumulate
        self.matrix = nn.Parameter(torch.eye(16, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.moved = []

    @property
    def sample_shape(self):
        return SHAPE

    def draw(self, stream, n, cond=None, **how):
        return stream.normal(*SHAPE)

    def loss(self, images):
        x = images.flatten(1).double()
        return (x @ self.matrix - 0.5 * x).square().mean()

    def training_step(self, batch, batch_idx):
        micro = self.batch_number % self.accumulate
        if self.batch_number in self.left_out:
            self.moved.append(self.steps.skip(micro=micro))
        else:
            self.moved.append(self.steps(self.loss(batch["image"]), micro=micro))

    def validation_step(self, batch, batch_idx):
        """Have nothing to validate: Lightning warns where data for it is not used."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches_by_hand(n, size=8):
    images = TinyData(n=n * size).split("train").images
    return [from_uint8(images[i * size : (i + 1) * size]) for i in range(n)]


def trained_by_hand(batches, left_out, accumulate):
    """Plain torch: mean gradients with zeros for what is left out, no step where there is nothing else."""
    module = Leaving()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    steps = 0
    for start in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        kept = [i for i in range(start, start + accumulate) if i not in left_out]
        for i in kept:
            (module.loss(batches[i]) / accumulate).backward()
        if kept:
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + steps)
            optimizer.step()
            steps += 1
    return module, steps


class Hook(Callback):
    """Asks for Lightning's own way through a step."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        pass


@pytest.mark.parametrize("callbacks", [[], [Hook()]])
@pytest.mark.parametrize(
    ("accumulate", "left_out"),
    [(1, {0}), (1, {2, 3}), (3, {0}), (3, {4}), (3, {5}), (3, {0, 1}), (3, {4, 5}), (3, {3, 5}), (3, {3, 4, 5})],
)
def test_what_is_left_out_has_no_gradient(tmp_path, accumulate, left_out, callbacks):
    module = Leaving(left_out, accumulate)
    n = 4 * accumulate
    fit = trainer(tmp_path, max_epochs=1, callbacks=callbacks)
    fit.fit(module, datamodule=TinyData(n=8 * n))
    assert module.steps._direct == (not callbacks)
    byhand, steps = trained_by_hand(batches_by_hand(n), left_out, accumulate)
    torch.testing.assert_close(module.matrix, byhand.matrix, rtol=0, atol=1e-13)
    assert torch.equal(module.unused, torch.ones(3))
    assert fit.global_step == module.iterations == steps
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.05 / (1 + steps), rel=1e-12)
    # the optimizer moves at the last micro-batch of a step, left out or not, if any was not
    expected = [
        i % accumulate == accumulate - 1 and not set(range(i - accumulate + 1, i + 1)) <= left_out for i in range(n)
    ]
    assert module.moved == expected


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_that_is_left_out_moves_nothing(tmp_path, accumulate):
    """Weights and Adam's moments, to the last bit, and the count of its steps."""
    states = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            optimizer = module.optimizers().optimizer
            states.append((weights(module), copy.deepcopy(optimizer.state_dict()), trainer.global_step))

    left_out = set(range(2 * accumulate, 3 * accumulate))
    module = Leaving(left_out, accumulate)
    fit = trainer(tmp_path, max_epochs=1, callbacks=[Watch()])
    fit.fit(module, datamodule=TinyData(n=8 * 4 * accumulate))
    before, after, end = (states[k * accumulate - 1] for k in (2, 3, 4))
    assert same(before[0], after[0])
    assert before[1]["state"].keys() == after[1]["state"].keys() == {0}
    for name, value in before[1]["state"][0].items():
        assert torch.equal(value, after[1]["state"][0][name])
    assert before[1]["param_groups"] == after[1]["param_groups"]
    assert (before[2], after[2], end[2]) == (2, 2, 3)
    assert not same(after[0], end[0])


def test_a_scaled_gradient_is_unscaled_where_the_last_micro_batch_is_left_out(tmp_path):
    module = Leaving({1}, accumulate=2)
    plain = copy.deepcopy(module)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    trainer(tmp_path, max_epochs=1, plugins=[scaled]).fit(module, datamodule=TinyData(n=32))
    trainer(tmp_path, max_epochs=1).fit(plain, datamodule=TinyData(n=32))
    torch.testing.assert_close(module.matrix, plain.matrix, rtol=0, atol=2e-3)  # float16 products
    assert not torch.equal(module.matrix, torch.eye(16))


# of the first step the last, of the second both, of the third the first, of the fourth none
LEFT_OUT = {1, 2, 3, 4}


class Halves(TinyData):
    """Each of two processes gets its half of every batch of 8."""

    def __init__(self, rank):
        super().__init__(n=64, batch_size=8)
        self.rank = rank

    def train_dataloader(self):
        images = self.split("train")
        return DataLoader(Subset(images, [i for i in range(64) if (i % 8) // 4 == self.rank]), batch_size=4)


def leave_out(rank, folder):
    module = Leaving(LEFT_OUT, accumulate=2)
    settings = {"max_epochs": 1, "devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    fit = trainer(folder, plugins=[TorchElasticEnvironment()], **settings)
    fit.fit(module, datamodule=Halves(rank))
    torch.save((weights(module), fit.global_step), os.path.join(folder, f"{rank}.pt"))


@pytest.mark.slow
def test_processes_stay_together_where_a_micro_batch_is_left_out(tmp_path):
    """The last one would have exchanged the gradients of the others."""
    run_ranks(leave_out, 2, str(tmp_path))
    (first, steps), (second, others_steps) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert same(first, second)
    byhand, steps_by_hand = trained_by_hand(batches_by_hand(8), LEFT_OUT, 2)
    assert steps == others_steps == steps_by_hand == 3
    torch.testing.assert_close(first["matrix"], byhand.matrix.detach(), rtol=0, atol=1e-13)
    assert torch.equal(first["unused"], torch.ones(3, dtype=torch.float64))


def test_a_fused_optimizer_clips_under_bfloat16(tmp_path):
    """Lightning refuses it, though nothing is scaled there: the same weights as without fusing, to float32 rounding."""
    trained = []
    for fused in (True, False):
        module = tiny_diffusion(gradient_clip_val=0.01, optimizer=lambda p, f=fused: DiffusionAdamW(p, fused=f))
        before = weights(module)
        trainer(tmp_path, max_steps=2, max_epochs=-1, precision="bf16-mixed").fit(module, datamodule=TinyData())
        trained.append(weights(module))
    assert not torch.equal(trained[0]["net.inner.weight"], before["net.inner.weight"])
    for key, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][key], rtol=0, atol=1e-6)
