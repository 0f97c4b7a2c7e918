"""The adversarial step, against a loop written by hand and the policies that the module states."""

import copy

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from noiseless import FixedNoise, FixedWGANGP
from tiny import TinyData, TinyDiscriminator, TinyGenerator, TinyImages, same, tiny_gan, trainer, weights
from torch import nn
from torch.nn import functional as F

from lightning_gen.gan import ADA, R1, R2, WGANGP, DiffAugment
from lightning_gen.gan.module import GAN
from lightning_gen.images import from_uint8
from lightning_gen.networks.base import DiscriminatorOutput


class EachBatch(Callback):
    """Keep what the networks were before and after every batch, and the batch."""

    def __init__(self):
        self.before, self.after, self.images = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before.append((weights(module.generator), weights(module.discriminator)))
        self.images.append(batch["image"].clone())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.after.append((weights(module.generator), weights(module.discriminator)))


def run(tmp_path, module, steps=3, data=None, **arguments):
    trainer(tmp_path, max_steps=steps, max_epochs=-1, **arguments).fit(module, datamodule=data or TinyData())
    return module


@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "wasserstein"])
def test_three_iterations_equal_a_loop_written_by_hand(tmp_path, loss):
    """Two D steps on two batches, then a G step, with WGAN-GP, in float64."""
    module = tiny_gan(cls=FixedNoise, loss=loss, n_dis=2, penalties=[FixedWGANGP(weight=10.0)]).double()
    generator, discriminator = copy.deepcopy(module.generator), copy.deepcopy(module.discriminator)
    run(tmp_path, module, precision="64-true")

    adam_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d_losses = {
        "non_saturating": lambda r, f: -(r.sigmoid().log().mean() + (1 - f.sigmoid()).log().mean()),
        "hinge": lambda r, f: (1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean(),
        "wasserstein": lambda r, f: f.mean() - r.mean(),
    }
    g_losses = {
        "non_saturating": lambda f: -f.sigmoid().log().mean(),
        "hinge": lambda f: -f.mean(),
        "wasserstein": lambda f: -f.mean(),
    }
    images = from_uint8(TinyImages(64).images).double()

    def latents(x, shift):
        mixing = torch.linspace(-1, 1, 16 * 3, dtype=torch.float64).view(16, 3).sin()
        return x.flatten(1) @ mixing + shift

    for step in range(6):
        x = images[8 * step : 8 * step + 8]
        fake = generator(latents(x, 0.0)).detach()
        alpha = x.flatten(1).mean(1).sigmoid().view(-1, 1, 1, 1)
        mixed = (alpha * x + (1 - alpha) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
        penalty = 10 * ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
        adam_d.zero_grad()
        (d_losses[loss](discriminator(x), discriminator(fake)) + penalty).backward()
        adam_d.step()
        if step % 2:
            adam_g.zero_grad()
            g_losses[loss](discriminator(generator(latents(x, 0.5)))).backward()
            adam_g.step()
    for ours, theirs in ((module.generator, generator), (module.discriminator, discriminator)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_a_step_of_d_leaves_g_and_its_statistics_bit_identical(tmp_path):
    record = EachBatch()
    run(tmp_path, tiny_gan(norm=True, n_dis=3), steps=2, callbacks=[record])
    for batch in (0, 1, 3, 4):  # D alone
        assert same(record.before[batch][0], record.after[batch][0])
        assert not same(record.before[batch][1], record.after[batch][1])
    assert not same(record.before[2][0], record.after[2][0])
    assert record.after[5][0]["norm.num_batches_tracked"] == 2  # one forward pass of training an iteration


def test_a_step_of_g_leaves_d_and_its_gradients_alone(tmp_path):
    seen = {}

    class Watch(GAN):
        def _step_generator(self):
            before = weights(self.discriminator)
            grads = [p.grad.clone() for p in self.discriminator.parameters()]
            logs = super()._step_generator()
            seen["weights"] = same(before, weights(self.discriminator))
            seen["gradients"] = all(
                torch.equal(p.grad, g) for p, g in zip(self.discriminator.parameters(), grads, strict=True)
            )
            seen["trainable"] = all(p.requires_grad for p in self.discriminator.parameters())
            return logs

        def _step_discriminator(self, batch, micro):
            logs = super()._step_discriminator(batch, micro)
            seen.setdefault("no gradient for g", all(p.grad is None for p in self.generator.parameters()))
            return logs

    run(tmp_path, tiny_gan(cls=Watch), steps=1)
    assert seen == {"weights": True, "gradients": True, "trainable": True, "no gradient for g": True}


def test_n_dis_steps_use_distinct_batches_and_fresh_latents(tmp_path):
    record, latents = EachBatch(), []

    class Watch(GAN):
        def _fakes(self, batch):
            fake, label = super()._fakes(batch)
            latents.append(fake.detach().clone())
            return fake, label

    run(tmp_path, tiny_gan(cls=Watch, n_dis=4), steps=1, callbacks=[record])
    assert len(record.images) == 4
    assert len({image.numpy().tobytes() for image in record.images}) == 4
    assert len(latents) == 5
    assert len({fake.numpy().tobytes() for fake in latents}) == 5


@pytest.mark.parametrize("penalty", [R1(1.0), R2(1.0), WGANGP()])
def test_a_penalty_through_batch_norm_is_refused(penalty):
    with pytest.raises(ValueError, match=r"norm.*without batch normalization"):
        tiny_gan(norm_d=True, penalties=[penalty])


def test_joint_and_separate_passes(tmp_path):
    """Without batch norm they are one; with it they are not, which is why the policy is stated."""

    def trained(joint, norm_d):
        module = tiny_gan(cls=FixedNoise, joint_batch=joint, norm_d=norm_d).double()
        return weights(run(tmp_path, module, precision="64-true"))

    for name, value in trained(True, False).items():
        torch.testing.assert_close(value, trained(False, False)[name], rtol=0, atol=1e-14)
    assert not torch.allclose(
        trained(True, True)["discriminator.inner.weight"], trained(False, True)["discriminator.inner.weight"], atol=1e-6
    )


def test_lazy_penalties_are_due_every_kth_step_and_multiplied(tmp_path):
    calls = []

    class Watch(R1):
        def scaled(self, judge, real, fake):
            value = super().scaled(judge, real, fake)
            calls.append((value / self(judge, real, fake)).item())
            return value

    run(tmp_path, tiny_gan(penalties=[Watch(1.0, every=4)], n_dis=2), steps=6)  # 12 steps of D: 0, 4, 8
    assert calls == pytest.approx([4.0] * 3)


def test_weights_are_clipped_after_every_step_of_d(tmp_path):
    module = run(tmp_path, tiny_gan(loss="wasserstein", weight_clip=0.01, n_dis=2))
    assert max(p.detach().abs().max() for p in module.discriminator.parameters()) == pytest.approx(0.01)
    assert max(p.detach().abs().max() for p in module.generator.parameters()) > 0.1


class Classifying(TinyDiscriminator):
    def __init__(self, num_classes):
        super().__init__(None)
        self.num_classes = num_classes
        self.classes = nn.Linear(8, num_classes)

    def forward(self, x, label=None):
        h = torch.tanh(self.inner(x.flatten(1)))
        return DiscriminatorOutput(self.outer(h).squeeze(1), self.classes(h))


@pytest.mark.parametrize("classify_fakes", [True, False])
def test_the_auxiliary_classifier_learns_as_published(tmp_path, classify_fakes):
    """D: adversarial + w (CE real + CE fake); G: adversarial + w CE fake. One step, by SGD, by hand."""
    torch.manual_seed(0)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    module = FixedNoise(
        TinyGenerator(num_classes=3),
        Classifying(3),
        class_weight=0.7,
        classify_fakes=classify_fakes,
        optimizer_g=sgd,
        optimizer_d=sgd,
    ).double()
    g, d = copy.deepcopy(module.generator), copy.deepcopy(module.discriminator)
    data = TinyData(num_classes=3)
    run(tmp_path, module, steps=1, data=data, precision="64-true")
    x, y = from_uint8(data.split("train").images[:8]).double(), data.split("train").labels[:8]
    z = x.flatten(1) @ torch.linspace(-1, 1, 48, dtype=torch.float64).view(16, 3).sin()

    real, fake = d(x), d(g(z, y).detach())
    ce = F.cross_entropy(real.class_logits, y) + classify_fakes * F.cross_entropy(fake.class_logits, y)
    (F.softplus(-real.logits).mean() + F.softplus(fake.logits).mean() + 0.7 * ce).backward()
    torch.optim.SGD(d.parameters(), lr=0.1).step()
    fake = d(g(z + 0.5, y))
    (F.softplus(-fake.logits).mean() + 0.7 * F.cross_entropy(fake.class_logits, y)).backward()
    torch.optim.SGD(g.parameters(), lr=0.1).step()
    for ours, theirs in ((module.generator, g), (module.discriminator, d)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_d_is_given_the_label_that_g_was(tmp_path):
    seen = []

    class Watch(GAN):
        def _fakes(self, batch):
            fake, label = super()._fakes(batch)
            seen.append(("made", fake.detach().clone(), label.clone()))
            return fake, label

        def _judge(self, images, label):
            seen.append(("judged", images.detach().clone(), label.clone()))
            return super()._judge(images, label)

    run(tmp_path, tiny_gan(num_classes=4, cls=Watch), steps=1, data=TinyData(num_classes=4))
    judged = [entry[1:] for entry in seen if entry[0] == "judged"]
    for _, fake, label in [entry for entry in seen if entry[0] == "made"]:
        assert any(torch.equal(image, fake) and torch.equal(given, label) for image, given in judged)


@pytest.mark.parametrize(("prior", "expected"), [("data", [0.75, 0.25]), ("uniform", [0.5, 0.5])])
def test_classes_are_drawn_from_the_prior_asked_for(tmp_path, prior, expected):
    data = TinyData(num_classes=2)
    data.class_counts = torch.tensor([30, 10])
    module = run(tmp_path, tiny_gan(num_classes=2, label_prior=prior), steps=1, data=data)
    assert module.class_prior.probabilities.tolist() == expected
    assert module.state_dict()["class_prior.probabilities"].tolist() == expected


@pytest.mark.parametrize("arguments", [{"loss": "relativistic_pairing"}, {"penalties": [WGANGP()]}])
def test_pairs_share_their_class(tmp_path, arguments):
    class Watch(GAN):
        def _fakes(self, batch):
            fake, label = super()._fakes(batch)
            assert torch.equal(label, batch["label"])
            return fake, label

    run(tmp_path, tiny_gan(num_classes=4, cls=Watch, **arguments), data=TinyData(num_classes=4))


def test_augmentation_precedes_every_judgement(tmp_path):
    """Real and fake images, in D's and in G's step, and inside the penalty."""
    seen = []

    class Watch(DiffAugment):
        def forward(self, x):
            seen.append(x.requires_grad)
            return super().forward(x)

    run(tmp_path, tiny_gan(augmentation=Watch("translation"), penalties=[R1(1.0)]), steps=1)
    # D: real and fake; the penalty, through the augmentation; G: fake, with a gradient
    assert sorted(seen) == [False, False, True, True]


def test_adaptive_augmentation_is_in_the_checkpoint(tmp_path):
    ada = ADA(images=100, every=2, p=0.4)
    module = tiny_gan(augmentation=ada)
    nn.init.constant_(module.discriminator.outer.bias, 50.0)  # D is certain of every real image: p must rise
    run = trainer(tmp_path, max_steps=4, max_epochs=-1)
    run.fit(module, datamodule=TinyData())
    # two adjustments of (1 - 0.6 > 0) x 2 batches of 8 in 100 images
    assert module.augmentation.p.item() == pytest.approx(0.4 + 2 * 16 / 100)
    run.save_checkpoint(tmp_path / "ada.ckpt")
    kept = torch.load(tmp_path / "ada.ckpt", weights_only=True)["state_dict"]
    assert kept["augmentation.p"].item() == pytest.approx(0.72)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_and_leaves_the_penalty_in_full_precision(tmp_path, precision):
    dtypes = []

    class Watch(R1):
        def __call__(self, judge, real, fake):
            value = super().__call__(judge, real, fake)
            dtypes.append(value.dtype)
            return value

    scaler = torch.amp.GradScaler("cpu") if precision == "16-mixed" else None
    plugin = MixedPrecision(precision, "cpu", scaler)
    module = run(tmp_path, tiny_gan(penalties=[Watch(1.0)], ema_half_lives=[50]), plugins=[plugin])
    assert dtypes == [torch.float32] * 3
    assert all(value.isfinite().all() for value in weights(module).values())
    assert module.sample(4, seed=0).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # asked by the compiler itself
def test_compiled_networks_train_as_eager_ones_do(tmp_path):
    """Through the compiler's double-backward limit: the penalty runs on the same weights, uncompiled."""

    def trained(compiled):
        module = tiny_gan(cls=FixedNoise, penalties=[R1(1.0, every=2)], compile_networks=compiled)
        return run(tmp_path, module, steps=4)

    eager, compiled = trained(False), trained(True)
    assert compiled.generator._compiled_call_impl is not None
    assert weights(compiled).keys() == weights(eager).keys()
    for name, value in weights(compiled).items():
        torch.testing.assert_close(value, weights(eager)[name], rtol=0, atol=1e-5)


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="n_dis"):
        tiny_gan(n_dis=0)
    with pytest.raises(ValueError, match=r"non_saturating.*Did you mean 'hinge'"):
        tiny_gan(loss="hinges")
    with pytest.raises(ValueError, match=r"num_classes=3.*num_classes=None"):
        GAN(TinyGenerator(num_classes=3), TinyDiscriminator())


def test_data_that_does_not_fit_is_refused_before_training(tmp_path):
    wide = TinyData()
    wide.shape = (1, 5, 5)
    with pytest.raises(MisconfigurationException, match=r"\(1, 4, 4\).*\(1, 5, 5\)"):
        run(tmp_path, tiny_gan(), data=wide)
    with pytest.raises(MisconfigurationException, match="2 classes, the data 7"):
        run(tmp_path, tiny_gan(num_classes=2), data=TinyData(num_classes=7))
    unlabelled = TinyData(num_classes=None)
    for prior in ("data", "uniform"):
        with pytest.raises(ValueError, match=r"its data has no labels.*num_classes=null"):
            run(tmp_path, tiny_gan(num_classes=2, label_prior=prior), data=unlabelled)
    # a data module of someone else's, which may have labels and does not count them
    uncounted = TinyData(num_classes=2)
    del uncounted.class_counts
    with pytest.raises(ValueError, match=r"class counts are not known.*label_prior='uniform'"):
        run(tmp_path, tiny_gan(num_classes=2), data=uncounted)


def test_a_schedule_that_waits_for_a_metric_is_refused(tmp_path):
    module = tiny_gan(scheduler_g=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o))
    with pytest.raises(MisconfigurationException, match="ReduceLROnPlateau"):
        run(tmp_path, module)


def test_frozen_layers_stay_as_they_are(tmp_path):
    module = tiny_gan()
    module.discriminator.inner.requires_grad_(False)
    before = weights(module.discriminator.inner)
    run(tmp_path, module)
    assert same(before, weights(module.discriminator.inner))
    assert not module.discriminator.inner.weight.requires_grad
    module.generator.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="frozen"):
        run(tmp_path, module)
