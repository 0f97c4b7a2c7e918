"""The module: its step against a loop written by hand, its options, and what it refuses."""

import math
import re
import warnings

import pytest
import torch
from fixed_objective import Fixed
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from tiny import SHAPE, TinyData, TinyDenoiser, same, tiny_diffusion, trainer, weights

from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.data import DigitsDataModule
from lightning_gen.diffusion import (
    EDM,
    Autoguidance,
    ClassifierFree,
    CosineVP,
    DiscreteVP,
    EDMPreconditioning,
    Epsilon,
    Importance,
    InpaintingMask,
    RectifiedFlow,
    SuperResolution,
    Velocity,
)
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.errors import RunError
from lightning_gen.images import from_uint8
from lightning_gen.optimizers import DiffusionAdamW


def test_three_iterations_equal_a_loop_written_by_hand(tmp_path):
    """Rectified flow: |net(x_t, 1000 t) - (noise - x0)|^2, AdamW, one average, in float64."""
    module = tiny_diffusion(objective=Fixed(), ema_half_lives=[100], ema_warmup=None).double()
    by_hand = tiny_diffusion().double().net
    average = [p.detach().clone() for p in by_hand.parameters()]
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=2e-4, weight_decay=0.0)
    trainer(tmp_path, max_steps=3, max_epochs=-1, precision="64-true").fit(module, datamodule=TinyData())
    for batch, _ in zip(TinyData().train_dataloader(), range(3), strict=False):
        x0 = from_uint8(batch["image"]).double()
        noise, t = Fixed.noise(x0), Fixed.times(x0)
        x_t = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise
        loss = (by_hand(x_t, 1000 * t) - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for mean, now in zip(average, by_hand.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - 0.5 ** (8 / 100))
    for ours, theirs in zip(module.net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    for ours, theirs in zip(module.net_ema["ema-100"].network.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_accumulated_batches_equal_one_of_their_size(tmp_path):
    small = tiny_diffusion(objective=Fixed(), accumulate=2).double()
    large = tiny_diffusion(objective=Fixed()).double()
    settings = {"max_steps": 3, "max_epochs": -1, "precision": "64-true"}
    trainer(tmp_path, **settings).fit(small, datamodule=TinyData(batch_size=4))
    trainer(tmp_path, **settings).fit(large, datamodule=TinyData(batch_size=8))
    assert small.images_seen == large.images_seen == 24
    for a, b in zip(small.net.parameters(), large.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


class Kill(Callback):
    def __init__(self, iteration):
        self.iteration = iteration

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.iteration:
            raise InterruptedError


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(stop, tmp_path, monkeypatch):
    """In the middle of an epoch (5 batches of 250), at its end, and in the next one."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")

    warnings.filterwarnings("ignore", message="The dirpath has changed")

    def trained(name, kill_at=None, **arguments):
        module = tiny_diffusion(
            num_classes=10,
            net={"image_shape": (1, 8, 8), "dropout": 0.2},
            path=DiscreteVP(10),
            times=Importance(history=1, buckets=10),
            ema_half_lives=[500],
            ema_sigma_rels=[0.1],
        )
        callbacks = [LastCheckpoint(stop, dirpath=str(tmp_path / name)), Kill(kill_at)]
        run = trainer(tmp_path, max_steps=9, max_epochs=-1, enable_checkpointing=True, callbacks=callbacks)
        run.fit(module, datamodule=DigitsDataModule(batch_size=250), **arguments)
        return module

    whole = trained("whole")
    with pytest.raises(InterruptedError):
        trained("cut", kill_at=stop + 1)
    resumed = trained("resumed", ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert same(weights(whole), weights(resumed))
    assert resumed.images_seen == 9 * 250


# ---------------------------------------------------------------------- a loss that is NaN


class Poisoned(TinyDenoiser):
    """Gives NaN for two images of the third batch."""

    calls = 0

    def forward(self, x, noise_label, cond=None, second_label=None):
        out = super().forward(x, noise_label, cond, second_label)
        self.calls += 1
        if self.calls == 3:
            out = out.clone()
            out[[2, 5]] = math.nan
        return out


def poisoned(**arguments):
    torch.manual_seed(0)
    return Diffusion(Poisoned(), sampling_steps=2, **arguments)


def test_a_loss_that_is_nan_stops_before_a_weight_moves_and_names_the_samples(tmp_path):
    module = poisoned()
    run = trainer(tmp_path, max_steps=5, max_epochs=-1)
    with pytest.raises(RunError, match=r"iteration 2 is NaN or infinite \(samples \[2, 5\] of the batch, at t = \["):
        run.fit(module, datamodule=TinyData())
    healthy = tiny_diffusion()
    healthy.net.load_state_dict(tiny_diffusion().net.state_dict())
    trainer(tmp_path, max_steps=2, max_epochs=-1).fit(healthy, datamodule=TinyData())
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert run.global_step == 2


def test_a_loss_that_is_nan_may_be_left_out_and_is_counted(tmp_path):
    module = poisoned(on_nonfinite="skip")
    run = trainer(tmp_path, max_steps=5, max_epochs=-1)
    run.fit(module, datamodule=TinyData())
    assert run.global_step == 5
    assert module.skipped_batches == 1
    assert module.images_seen == 5 * 8
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert run.callback_metrics["skipped_batches"] == 1


def test_of_accumulated_batches_the_healthy_ones_are_learned_from_and_counted(tmp_path):
    """The third batch, first of the second step, is left out; the averages move with the other."""
    module = poisoned(on_nonfinite="skip", accumulate=2, ema_half_lives=[50])
    run = trainer(tmp_path, max_steps=2, max_epochs=-1)
    run.fit(module, datamodule=TinyData())
    assert run.global_step == 2
    assert module.images_seen == 8 + 8 + 8
    before = {key: value.clone() for key, value in module.net_ema["ema-50"].network.state_dict().items()}
    assert not same(before, tiny_diffusion().net.state_dict())
    assert all(torch.isfinite(value).all() for value in before.values())


# ---------------------------------------------------------------------- sampling


class Counting(TinyDenoiser):
    calls = 0

    def forward(self, x, noise_label, cond=None, second_label=None):
        self.calls += len(x)
        return super().forward(x, noise_label, cond, second_label)


def counting(num_classes=None, **arguments):
    torch.manual_seed(0)
    return Diffusion(Counting(num_classes=num_classes), sampling_steps=4, **arguments)


def test_steps_solver_and_guidance_of_a_call():
    module = counting(num_classes=4)
    for how, calls in (
        ({}, 4),
        ({"steps": 7}, 7),
        ({"steps": 6, "solver": "heun"}, 10),  # from pure noise and to the image the steps are of order one
        ({"guidance": 2.0}, 8),
        ({"guidance": 1.0}, 4),
    ):
        module.net.calls = 0
        module.sample(3, seed=0, cond=1, **how)
        assert module.net.calls == 3 * calls, how
    assert module.guidance.scale == 1


def test_outside_of_its_interval_guidance_costs_nothing():
    module = counting(num_classes=4, guidance=ClassifierFree(3.0, low=0.4, high=2.0))
    module.sample(2, seed=0, cond=1, steps=10)
    levels = [t / (1 - t) if t < 1 else math.inf for t in (1 - i / 10 for i in range(10))]
    guided = sum(0.4 < level <= 2 for level in levels)
    assert 0 < guided < 10
    assert module.net.calls == 2 * (10 + guided)


def test_autoguidance_is_the_formula_and_needs_its_guide():
    """On one Euler step x0 = D_weak + s (D - D_weak) is what is drawn."""
    strong, weak = tiny_diffusion(seed=0), tiny_diffusion(seed=1)
    guided = tiny_diffusion(seed=0, guidance=Autoguidance(2.0))
    # small enough that nothing is clipped
    for module in (strong, weak, guided):
        for parameter in module.net.parameters():
            parameter.data *= 0.1
        module.parameterization = EDMPreconditioning()
        module.path = EDM(sigma_max=1.0)
        module.solver, module.grid = tiny_diffusion(path=EDM()).solver, tiny_diffusion(path=EDM()).grid
    a, b = (module.sample(4, seed=0, steps=1) for module in (strong, weak))
    torch.testing.assert_close(guided.sample(4, seed=0, steps=1, guide=weak), b + 2 * (a - b), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="guide"):
        guided.sample(4, seed=0)


def test_classes_that_do_not_exist_are_refused_before_the_network_is_asked():
    module = counting(num_classes=4)
    for cond, message in ((4, "0 to 3"), ({"text": 1}, "'text'"), ({"vector": torch.ones(1, 3)}, "no 'vector'")):
        with pytest.raises(ValueError, match=re.escape(message)):
            module.sample(2, cond=cond)
    assert module.net.calls == 0


def test_conditions_of_every_kind_reach_the_network():
    module = tiny_diffusion(net={"vector_dim": 3})
    vector = torch.randn(1, 3)
    assert torch.equal(
        module.sample(4, seed=0, cond={"vector": vector}),
        module.sample(4, seed=0, cond={"vector": vector.expand(4, 3)}),
    )
    assert not torch.equal(
        module.sample(4, seed=0, cond={"vector": vector}), module.sample(4, seed=0, cond={"vector": -vector})
    )
    with pytest.raises(ValueError, match="needs cond="):
        module.sample(4, seed=0)


@pytest.mark.parametrize("resample", [1, 3])
def test_inpainting_keeps_what_is_known(resample):
    module = counting()
    image = torch.rand(1, *SHAPE) * 1.8 - 0.9
    mask = torch.zeros(1, 1, *SHAPE[1:])
    mask[..., :2] = 1
    drawn = module.sample(5, seed=0, image=image, mask=mask, resample=resample)
    torch.testing.assert_close(drawn[..., :2], image[..., :2].expand(5, -1, -1, -1), rtol=0, atol=1e-6)
    assert (drawn[..., 2:] - image[..., 2:]).abs().amax(dim=(1, 2, 3)).min() > 0.05
    assert module.net.calls == 5 * 4 * resample


def test_little_strength_stays_near_the_picture():
    module = counting()
    image = torch.rand(1, *SHAPE) - 0.5
    near = module.sample(3, seed=0, image=image, strength=0.02, steps=50)
    assert module.net.calls == 3
    assert (near - image).abs().max() < 0.2
    module.net.calls = 0
    module.sample(3, seed=0, image=image, strength=0.5, steps=50)
    assert module.net.calls == 3 * 25


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"image": torch.zeros(1, 1, 5, 5)}, "makes (2, 1, 4, 4)"),
        ({"image": torch.zeros(1, *SHAPE), "strength": 0.0}, "strength is above 0"),
        ({"image": torch.zeros(1, *SHAPE), "mask": torch.ones(1, 1, 2, 2)}, "The mask has the shape"),
        ({"mask": torch.ones(1, 1, 4, 4)}, "give the picture as image"),
        ({"picture": torch.zeros(1, *SHAPE)}, "takes no picture"),
        ({"solver": "hein"}, "Did you mean 'heun'"),
        ({"steps": 0}, "1"),
        ({"guidance": 2.0}, "no condition that could be left out"),
        ({"weights": "ema"}, "There are no weights 'ema'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_network_is_asked(how, message):
    module = counting()
    with pytest.raises(ValueError, match=re.escape(message)):
        module.sample(2, seed=0, **how)
    assert module.net.calls == 0


def test_pictures_beside_the_noise(tmp_path):
    for conditioner, channels, given in (
        (SuperResolution(2), 1, {"picture": torch.rand(1, 1, 2, 2)}),
        (InpaintingMask(), 2, {"picture": torch.rand(1, *SHAPE), "mask": torch.ones(1, 1, 4, 4)}),
    ):
        module = tiny_diffusion(net={"image_channels": channels}, conditioner=conditioner)
        trainer(tmp_path, max_steps=2, max_epochs=-1, limit_val_batches=1).fit(module, datamodule=TinyData())
        assert module.sample(3, seed=0, **given).shape == (3, *SHAPE)
        with pytest.raises(ValueError, match="give the picture as picture"):
            module.sample(3, seed=0)


def test_pictures_come_from_files_too(tmp_path):
    from lightning_gen.images import write_png

    module = tiny_diffusion()
    image = torch.randint(0, 256, (1, 4, 4), dtype=torch.uint8)
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[..., 1:] = 255
    write_png(tmp_path / "image.png", image)
    write_png(tmp_path / "mask.png", mask)
    by_files = module.sample(2, seed=0, image=str(tmp_path / "image.png"), mask=str(tmp_path / "mask.png"))
    by_tensors = module.sample(2, seed=0, image=from_uint8(image)[None], mask=(mask > 0)[None].float())
    assert torch.equal(by_files, by_tensors)


def test_a_watcher_sees_every_step():
    seen = []
    module = tiny_diffusion()
    drawn = module.sample(2, seed=0, steps=4, watch=lambda i, point, x, x0: seen.append((i, point.t, x, x0)))
    assert [i for i, *_ in seen] == [0, 1, 2, 3]
    assert [t for _, t, *_ in seen] == pytest.approx([0.75, 0.5, 0.25, 0])
    assert torch.equal(seen[-1][2].clamp(-1, 1), drawn)


def test_under_bf16_the_state_stays_in_float32(tmp_path):
    """Steps in bf16 would be off by 1e-2 after fifty of them."""
    module = tiny_diffusion()
    exact = module.sample(4, seed=0, steps=50)
    half = tiny_diffusion().to(torch.bfloat16)
    states = []
    drawn = half.sample(4, seed=0, steps=50, watch=lambda i, point, x, x0: states.append(x.dtype))
    assert set(states) == {torch.float32}
    assert drawn.dtype == torch.float32
    assert (drawn - exact).abs().mean() < 0.05


# ---------------------------------------------------------------------- weights, likelihood, refusals


def test_training_starts_from_the_average_of_a_checkpoint(tmp_path):
    first = tiny_diffusion(ema_half_lives=[100])
    run = trainer(tmp_path, max_steps=4, max_epochs=-1)
    run.fit(first, datamodule=TinyData())
    run.save_checkpoint(tmp_path / "first.ckpt")
    second = tiny_diffusion(
        seed=9,
        init_weights=str(tmp_path / "first.ckpt"),
        ema_half_lives=[7],
        optimizer=lambda p: DiffusionAdamW(p, lr=0.0),
    )
    trainer(tmp_path, max_steps=1, max_epochs=-1).fit(second, datamodule=TinyData())
    expected = first.net_ema["ema-100"].network.state_dict()
    assert same(second.net.state_dict(), expected)
    assert same(second.net_ema["ema-7"].network.state_dict(), expected)
    wrong = tiny_diffusion(net={"width": 5}, init_weights=str(tmp_path / "first.ckpt"))
    with pytest.raises((ValueError, RuntimeError), match=r"size mismatch|no weights"):
        trainer(tmp_path, max_steps=1, max_epochs=-1).fit(wrong, datamodule=TinyData())


class Ideal(TinyDenoiser):
    """The velocity of data N(m, s^2) on rectified flow, whatever its weights."""

    mean, std = 0.1, 0.3

    def forward(self, x, noise_label, cond=None, second_label=None):
        t = (noise_label / 1000).view(-1, 1, 1, 1).to(x.dtype)
        variance = (1 - t).square() * self.std**2 + t.square()
        centered = x - (1 - t) * self.mean
        # E[noise | x_t] - E[x_0 | x_t]
        return t * centered / variance - (self.mean + (1 - t) * self.std**2 * centered / variance)


def test_bits_per_dim_of_an_ideal_model_is_its_closed_form():
    """Dequantised images y of the ideal model: -log2 N(y; m, s^2) per dimension, plus log2(127.5) from bytes."""
    module = Diffusion(Ideal()).double()
    images = from_uint8(torch.randint(90, 170, (3, *SHAPE), dtype=torch.uint8)).double()
    from lightning_gen.dequantization import dequantize
    from lightning_gen.seeding import SampleStreams

    y = dequantize(images, SampleStreams(4, 0, 3, dtype=torch.float64))
    normal = torch.distributions.Normal(torch.tensor(0.1).double(), torch.tensor(0.3).double())
    expected = -normal.log_prob(y).flatten(1).mean(1) / math.log(2) + math.log2(127.5)
    torch.testing.assert_close(module.bits_per_dim(images, seed=4, steps=200), expected, rtol=0, atol=2e-4)


def test_samples_of_an_ideal_model_have_its_moments():
    module = Diffusion(Ideal())
    drawn = module.sample(2000, seed=0, steps=100)
    error = 0.3 / (2000 * 16) ** 0.5
    assert drawn.mean().item() == pytest.approx(0.1, abs=5 * error)
    assert drawn.std().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": CosineVP(), "parameterization": Epsilon()}, "zero terminal SNR"),
        ({"path": DiscreteVP(10, zero_terminal_snr=True), "parameterization": Epsilon()}, "V, X0 or Velocity"),
        ({"path": RectifiedFlow(), "parameterization": EDMPreconditioning()}, "infinite noise level"),
        ({"path": DiscreteVP(10), "sampling_steps": 11}, "10"),
        ({"sampling_steps": 0}, "1"),
        ({"guidance": ClassifierFree(2.0)}, "no condition that could be left out"),
        ({"num_classes": 4, "net": {"null_class": False}, "guidance": ClassifierFree(2.0)}, "no null class"),
        ({"net": {"learned_variance": True}}, "path DiscreteVP"),
        ({"net": {"two_times": True}}, "two_times"),
        ({"net": {"augment_dim": 2}}, "augment_dim"),
        ({"net": {"image_channels": 1}}, "image_channels of the network to 0"),
        ({"conditioner": SuperResolution(2)}, "image_channels of the network to 1"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"on_nonfinite": "ignore"}, "'stop' or 'skip'"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_trained(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_diffusion(**arguments)


def test_data_that_does_not_fit_is_refused_before_training(tmp_path):
    for module, data, message in (
        (Diffusion(TinyDenoiser(image_shape=(3, 4, 4))), TinyData(), "the data has (1, 4, 4)"),
        (tiny_diffusion(num_classes=2), TinyData(num_classes=4), "The model has 2 classes, the data 4"),
        (tiny_diffusion(num_classes=2), TinyData(), "no labels"),
    ):
        with pytest.raises((MisconfigurationException, ValueError), match=re.escape(message)):
            trainer(tmp_path, max_steps=1, max_epochs=-1).fit(module, datamodule=data)


def test_a_velocity_on_a_table_is_a_parameterization_too(tmp_path):
    """Nothing is tied to one path: every pair that is not refused trains."""
    module = tiny_diffusion(path=DiscreteVP(10), parameterization=Velocity(), sampling_steps=5)
    trainer(tmp_path, max_steps=2, max_epochs=-1).fit(module, datamodule=TinyData())
    assert torch.isfinite(module.sample(2, seed=0)).all()
