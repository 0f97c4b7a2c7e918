"""What every module is put through: the contract of GenerativeModule. A new module is one more line in MODULES."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule
from tiny import (
    TinyData,
    tiny_autoencoder,
    tiny_diffusion,
    tiny_flow,
    tiny_gan,
    tiny_latent_diffusion,
    tiny_vae,
    trainer,
    weights,
)

from lightning_gen.autoencoder import (
    ELBO,
    IWAE,
    BetaTC,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gaussian,
    InfoVAE,
    VampPrior,
)
from lightning_gen.diffusion import (
    EDM,
    VE,
    Clip,
    Consistency,
    ConsistencySteps,
    CosineVP,
    DiscreteVP,
    Importance,
    LearnedUncertainty,
    MeanFlow,
    MinibatchOT,
    MinSNR,
    NonLeakyAugmentation,
    Uniform,
    Velocity,
)
from lightning_gen.ema import Averages
from lightning_gen.gan import ADA, R1, WGANGP, DiffAugment
from lightning_gen.module import GenerativeModule

# name -> (makes the module, number of classes of its data)
MODULES = {
    "gan": (lambda: tiny_gan(), None),
    "gan, averaged": (lambda: tiny_gan(ema_half_lives=[50, 500]), None),
    "gan, batch norm": (lambda: tiny_gan(norm=True, norm_d=True, joint_batch=True), None),
    "gan, conditional": (lambda: tiny_gan(num_classes=4), 4),
    "gan, wgan-gp": (lambda: tiny_gan(loss="wasserstein", penalties=[WGANGP()], n_dis=3), None),
    "gan, wgan": (lambda: tiny_gan(loss="wasserstein", weight_clip=0.01, n_dis=2), None),
    "gan, r3": (lambda: tiny_gan(loss="relativistic_pairing", penalties=[R1(0.1)]), None),
    "gan, diffaugment": (lambda: tiny_gan(loss="hinge", augmentation=DiffAugment()), None),
    "gan, ada": (lambda: tiny_gan(augmentation=ADA(p=0.5)), None),
    "diffusion": (lambda: tiny_diffusion(), None),
    "diffusion, averaged": (lambda: tiny_diffusion(ema_half_lives=[50], ema_sigma_rels=[0.1]), None),
    "diffusion, conditional": (lambda: tiny_diffusion(num_classes=4, path=EDM(), sampling_steps=4), 4),
    "diffusion, ddpm": (
        lambda: tiny_diffusion(path=DiscreteVP(20), times=Importance(buckets=20), threshold=Clip()),
        None,
    ),
    "diffusion, learned variance": (
        lambda: tiny_diffusion(path=DiscreteVP(20, "cosine"), net={"learned_variance": True}, weighting=MinSNR()),
        None,
    ),
    "diffusion, v": (
        lambda: tiny_diffusion(path=CosineVP(), coupling=MinibatchOT(), times=Uniform(stratified=True)),
        None,
    ),
    "diffusion, uncertainty": (lambda: tiny_diffusion(path=VE(), weighting=LearnedUncertainty()), None),
    "diffusion, augmented": (
        lambda: tiny_diffusion(
            net={"augment_dim": NonLeakyAugmentation().augment_dim}, augmentation=NonLeakyAugmentation()
        ),
        None,
    ),
    "diffusion, consistency": (
        lambda: tiny_diffusion(path=EDM(), objective=Consistency(), solver=ConsistencySteps(), sampling_steps=2),
        None,
    ),
    "diffusion, mean flow": (
        lambda: tiny_diffusion(
            net={"two_times": True}, parameterization=Velocity(1.0), objective=MeanFlow(), sampling_steps=1
        ),
        None,
    ),
    "diffusion, accumulated": (lambda: tiny_diffusion(accumulate=2, gradient_clip_val=1.0), None),
    "diffusion, latent": (lambda: tiny_latent_diffusion(ema_half_lives=[50]), None),
    "autoencoder": (lambda: tiny_autoencoder(ema_half_lives=[50]), None),
    "autoencoder, adversarial": (lambda: tiny_autoencoder(adversarial=True, distance="l2"), None),
    "autoencoder, relativistic": (
        lambda: tiny_autoencoder(adversarial="relativistic_pairing", accumulate=2, gradient_clip_val=1.0),
        None,
    ),
    "flow": (lambda: tiny_flow(ema_half_lives=[50]), None),
    "flow, conditional": (lambda: tiny_flow(num_classes=4, guidance=1.5), 4),
    "flow, noisy": (lambda: tiny_flow(noise_std=0.1, accumulate=2, gradient_clip_val=1.0), None),
    "vae": (lambda: tiny_vae(), None),
    "vae, averaged": (lambda: tiny_vae(ema_half_lives=[50], binarize="dynamic"), None),
    "vae, conditional": (lambda: tiny_vae(num_classes=4, binarize="static", accumulate=2, gradient_clip_val=1.0), 4),
    "vae, iwae": (lambda: tiny_vae(objective=IWAE(3), likelihood=DiscretizedLogistic()), None),
    "vae, beta-tc": (lambda: tiny_vae(objective=BetaTC(), likelihood=Gaussian(0.5, "scalar")), None),
    "vae, info": (lambda: tiny_vae(objective=InfoVAE(), likelihood=Gaussian(0.5, "pixel")), None),
    "vae, vamp": (lambda: tiny_vae(prior=VampPrior(3, 5), likelihood=DiscretizedLogisticMixture(2)), None),
    "vae, ladder": (
        lambda: tiny_vae(ladder=([3, 2], [8, 6], "tanh"), objective=ELBO(free_bits=0.1, free_bits_of="layer")),
        None,
    ),
    "gan, accumulated": (lambda: tiny_gan(loss="least_squares", accumulate=2, gradient_clip_val=1.0), None),
}

pytestmark = pytest.mark.parametrize("name", MODULES)


@pytest.fixture
def module(name):
    return MODULES[name][0]()


@pytest.fixture
def data(name):
    return TinyData(num_classes=MODULES[name][1])


def test_samples_have_the_shape_range_and_device_promised(module):
    samples = module.sample(5, seed=0)
    assert samples.shape == (5, *module.sample_shape)
    assert samples.device == module.device
    assert not samples.requires_grad
    if samples.is_floating_point():
        assert samples.dtype == torch.float32
        assert samples.abs().max() <= 1
    else:
        assert samples.dtype == torch.int64


def test_a_seed_fixes_every_sample_whatever_the_batch(module):
    whole = module.sample(7, seed=3)
    assert torch.equal(whole, module.sample(7, seed=3))
    assert not torch.equal(whole, module.sample(7, seed=4))
    # kernels of other batch sizes round otherwise: by parts of the largest state, the noise that sampling starts from
    atol = 1e-6 * (module.path.noise_scale() if hasattr(module, "path") else 1)
    pieces = torch.cat([module.sample(3, seed=3), module.sample(4, seed=3, offset=3)])
    torch.testing.assert_close(pieces, whole, rtol=0, atol=atol)
    torch.testing.assert_close(module.sample(2, seed=3, offset=[6, 1]), whole[[6, 1]], rtol=0, atol=atol)


def test_a_generator_fixes_samples_too(module):
    first = module.sample(4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, module.sample(4, generator=torch.Generator().manual_seed(1)))


def test_training_moves_what_is_trainable_and_nothing_else(module, data, tmp_path):
    """Gradients are finite, all that is trained has one, all that is frozen has none."""
    before = weights(module)
    run = trainer(tmp_path, max_steps=3, max_epochs=-1, log_every_n_steps=1)
    run.fit(module, datamodule=data)
    assert run.global_step == 3
    owned = {id(p) for config in run.optimizers for group in config.param_groups for p in group["params"]}
    for parameter_name, parameter in module.named_parameters():
        assert (id(parameter) in owned) == parameter.requires_grad
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all()
            if parameter.ndim > 1:  # some losses are blind to the bias of the last layer
                assert not torch.equal(parameter, before[parameter_name]), parameter_name
        else:
            assert parameter.grad is None
    assert all(math.isfinite(value) for value in run.callback_metrics.values())
    assert module.iterations == 3
    assert module.images_seen == 3 * 8 * module.accumulate


def test_the_same_seed_trains_the_same_weights(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    trained = []
    for _ in range(2):
        module = MODULES[name][0]()
        torch.rand(17)  # whatever was drawn before
        trainer(tmp_path, max_steps=2, max_epochs=-1).fit(module, datamodule=TinyData(num_classes=MODULES[name][1]))
        trained.append(weights(module))
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


def test_a_checkpoint_gives_the_same_samples(name, module, data, tmp_path):
    run = trainer(tmp_path, max_steps=2, max_epochs=-1)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "run.ckpt")
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert not any("inception" in key or "lenet" in key.lower() for key in kept["state_dict"])
    loaded = MODULES[name][0]()
    loaded.load_state_dict(kept["state_dict"])
    assert torch.equal(loaded.sample(4, seed=0), module.sample(4, seed=0))


def test_validation_and_test_run_and_change_nothing(module, data, tmp_path):
    before = weights(module)
    run = trainer(tmp_path, limit_val_batches=2, limit_test_batches=2)
    run.validate(module, datamodule=data, verbose=False)
    run.test(module, datamodule=data, verbose=False)
    after = weights(module)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_it_says_what_it_is(module):
    assert isinstance(module, GenerativeModule)
    assert isinstance(module, LightningModule)
    assert module.automatic_optimization is False
    averages = [name for part in module.children() if isinstance(part, Averages) for name in part.names]
    assert module.weights_used() == (averages[0] if averages else "raw")
