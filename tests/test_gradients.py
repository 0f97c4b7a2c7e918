"""A gradient that is NaN or infinite: no weight moves by it, and no checkpoint holds what came of it."""

import math

import pytest
import torch
from tiny import SHAPE, TinyData, TinyDenoiser, TinyDiscriminator, same, tiny_gan, trainer, weights

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.errors import RunError
from lightning_gen.gan.module import GAN
from lightning_gen.nonfinite import FiniteGradients

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_bad_entry_is_found(bad):
    good = [torch.ones(3), torch.zeros(2, 2)]
    broken = [torch.ones(3), torch.tensor([0.0, bad])]
    stop, skip = FiniteGradients("stop"), FiniteGradients("skip")
    assert stop.accepts(good, lambda: "x")
    with pytest.raises(RunError, match="gradient of x is NaN or infinite"):
        stop.accepts(broken, lambda: "x")
    assert skip.accepts(good, lambda: "x")
    assert not skip.accepts(broken, lambda: "x")
    assert skip.skipped == 1
    assert stop.accepts([], lambda: "x")


def test_what_has_waited_is_told_later():
    """As on a GPU: the answer is looked at with the next step, or before a checkpoint."""
    guard = FiniteGradients("stop")
    guard._waiting = torch.tensor(True), "the third step"
    guard.settle()
    guard._waiting = torch.tensor(False), "the third step"
    with pytest.raises(RunError, match="the third step"):
        guard.accepts([torch.ones(1)], lambda: "the fourth step")
    guard.settle()


class Steep(torch.autograd.Function):
    """The identity, whose gradient is NaN in chosen calls."""

    @staticmethod
    def forward(ctx, x, broken):
        ctx.broken = broken
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return (torch.full_like(grad, NAN) if ctx.broken else grad), None


class SteepDiscriminator(TinyDiscriminator):
    """D, whose gradient is NaN in the passes of one iteration."""

    broken_at = -1
    calls = 0

    def forward(self, x, label=None):
        logits = super().forward(x, label)
        if torch.is_grad_enabled():
            self.calls += 1
        # two passes in the step of D, one in that of G
        return Steep.apply(logits, (self.calls - 1) // 3 == self.broken_at)


def steep_gan(broken_at, **arguments):
    module = tiny_gan(ema_half_lives=[100], **arguments)
    steep = SteepDiscriminator()
    steep.load_state_dict(module.discriminator.state_dict())
    steep.broken_at = broken_at
    module.discriminator = steep
    return module


def test_a_gan_stops_before_it_has_moved_and_says_where(tmp_path):
    saver = LastCheckpoint(every_n_steps=1, dirpath=str(tmp_path))
    module = steep_gan(10)
    run = trainer(tmp_path, max_epochs=5, callbacks=[saver], enable_checkpointing=True)
    with pytest.raises(RunError, match=r"iteration 10 for optimizer 1 \(batch 2 of epoch 1\)"):
        run.fit(module, datamodule=TinyData())
    assert all(torch.isfinite(value).all() for value in weights(module).values())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 10
    assert same(kept["state_dict"], weights(module))


def test_a_gan_that_leaves_the_step_out_goes_on(tmp_path):
    module = steep_gan(2, on_nonfinite="skip")
    trainer(tmp_path, max_steps=8, max_epochs=-1).fit(module, datamodule=TinyData())
    # D's and G's step of one iteration
    assert module.skipped_steps == 2
    assert all(torch.isfinite(value).all() for value in weights(module).values())
    assert module.images_seen == 8 * 8
    assert module.trainer.fit_loop.epoch_loop.total_batch_idx == 8  # nine batches


class SteepDenoiser(TinyDenoiser):
    """A network whose gradient alone is infinite in its third pass."""

    calls = 0

    def forward(self, x, noise_label, cond=None, second_label=None):
        out = super().forward(x, noise_label, cond, second_label)
        self.calls += 1
        return Steep.apply(out, self.calls == 3)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_diffusion_does_the_same(policy, tmp_path):
    torch.manual_seed(0)
    module = Diffusion(SteepDenoiser(), sampling_steps=2, on_nonfinite=policy)
    run = trainer(tmp_path, max_steps=4, max_epochs=-1)
    if policy == "stop":
        with pytest.raises(RunError, match=r"iteration 2 \(batch 2 of epoch 0\)"):
            run.fit(module, datamodule=TinyData())
        assert run.global_step == 2
    else:
        run.fit(module, datamodule=TinyData())
        assert module.skipped_batches == 1
        assert module.images_seen == 4 * 8
    assert all(torch.isfinite(value).all() for value in weights(module).values())
    assert tuple(module.sample_shape) == SHAPE


def test_a_policy_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="'stop' or 'skip'"):
        tiny_gan(cls=GAN, on_nonfinite="ignore")
