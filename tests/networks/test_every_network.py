"""One sweep over every network and every way of conditioning, at tiny widths."""

import copy

import pytest
import torch

from lightning_gen.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    Discriminator,
    DiscriminatorOutput,
    Generator,
    LeNetDiscriminator,
    MLPDiscriminator,
    MLPGenerator,
    ResNetDiscriminator,
    ResNetGenerator,
    mixes_samples,
)

B, K, LATENT = 3, 4, 5


def conditionings(*names):
    return [(None, "none"), *((K, name) for name in names)]


def side(channels, pixels):
    return (channels, pixels, pixels)


GENERATORS = {
    "mlp": lambda: MLPGenerator(LATENT, [6], side(1, 8)),
    "mlp-concat": lambda: MLPGenerator(LATENT, [6], (2, 3, 5), K, "gelu", batch_norm=True),
}
DISCRIMINATORS = {
    "mlp": lambda: MLPDiscriminator([6], side(1, 8), spectral_norm=True),
    "mlp-concat": lambda: MLPDiscriminator([6], (2, 3, 5), K, "silu"),
}
for classes, how in conditionings("concat", "cbn"):
    for pixels in (8, 16, 28, 32, 64, 128):
        GENERATORS[f"dcgan-{pixels}-{how}"] = lambda c=classes, h=how, p=pixels: DCGANGenerator(
            LATENT, 2, side(3 if p > 28 else 1, p), c, h
        )
    for pixels in (28, 32, 64):
        GENERATORS[f"resnet-{pixels}-{how}"] = lambda c=classes, h=how, p=pixels: ResNetGenerator(
            LATENT, 16 if p == 64 else 2, side(3 if p > 28 else 1, p), c, h
        )
for norm in ("none", "group", "layer", "instance"):
    GENERATORS[f"dcgan-16-{norm}"] = lambda n=norm: DCGANGenerator(LATENT, 2, side(1, 16), norm=n)
for classes, how in conditionings("concat", "projection", "auxiliary"):
    for pixels in (8, 16, 28, 32, 64, 128):
        DISCRIMINATORS[f"dcgan-{pixels}-{how}"] = lambda c=classes, h=how, p=pixels: DCGANDiscriminator(
            2, side(3 if p > 28 else 1, p), c, h
        )
    for pixels in (28, 32, 64):
        DISCRIMINATORS[f"resnet-{pixels}-{how}"] = lambda c=classes, h=how, p=pixels: ResNetDiscriminator(
            16 if p == 64 else 2, side(3 if p > 28 else 1, p), c, h
        )
    for pixels in (28, 32):
        DISCRIMINATORS[f"lenet-{pixels}-{how}"] = lambda c=classes, h=how, p=pixels: LeNetDiscriminator(
            side(1, p), c, h, spectral_norm=p == 32
        )
    DISCRIMINATORS[f"resnet-28-{how}-wgan"] = lambda c=classes, h=how: ResNetDiscriminator(
        2, side(1, 28), c, h, spectral_norm=False, pooling="mean"
    )
    DISCRIMINATORS[f"dcgan-16-{how}-sn"] = lambda c=classes, h=how: DCGANDiscriminator(
        2, side(1, 16), c, h, norm="none", spectral_norm=True
    )
for norm in ("group", "layer", "instance"):
    DISCRIMINATORS[f"dcgan-16-{norm}"] = lambda n=norm: DCGANDiscriminator(2, side(1, 16), norm=n)
ALL = {f"G-{name}": build for name, build in GENERATORS.items()}
ALL |= {f"D-{name}": build for name, build in DISCRIMINATORS.items()}
# One of each kind and conditioning: sides do not matter to what is tested with these.
FEW = {
    name: build
    for name, build in ALL.items()
    if not any(f"-{pixels}-" in name for pixels in (8, 32, 64, 128)) or "lenet-32-none" in name
}
# Tracing takes a second; pooling and the kind of group norm do not change it.
COMPILED = {
    name: build
    for name, build in FEW.items()
    if not name.endswith(("-wgan", "-group", "-layer", "-instance")) or name == "D-resnet-28-none-wgan"
}


def make(build):
    torch.manual_seed(0)
    return build()


def inputs(net, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shape = (net.latent_dim,) if isinstance(net, Generator) else net.image_shape
    x = torch.randn(B, *shape, generator=generator, dtype=dtype)
    return x, None if net.num_classes is None else torch.tensor([3, 0, 1])


def flat(output):
    return torch.cat([part.flatten() for part in output]) if isinstance(output, tuple) else output.flatten()


@pytest.mark.parametrize("build", GENERATORS.values(), ids=GENERATORS)
def test_generators_make_images_in_range(build):
    net = make(build)
    assert isinstance(net, Generator)
    z, label = inputs(net)
    images = net(100 * z, label)
    assert images.shape == (B, *net.image_shape)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1


@pytest.mark.parametrize("build", DISCRIMINATORS.values(), ids=DISCRIMINATORS)
def test_discriminators_give_one_logit_an_image(build):
    net = make(build)
    assert isinstance(net, Discriminator)
    output = net(*inputs(net))
    assert isinstance(output, DiscriminatorOutput) == net.auxiliary
    if isinstance(output, DiscriminatorOutput):
        assert output.class_logits.shape == (B, K)
        output = output.logits
    assert output.shape == (B,)


@pytest.mark.parametrize("build", ALL.values(), ids=ALL)
def test_every_parameter_gets_a_finite_gradient(build):
    net = make(build).double()
    output = flat(net(*inputs(net, torch.float64)))
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert sum(parameter.grad.abs().sum() for parameter in net.parameters()) > 0


@pytest.mark.parametrize("build", FEW.values(), ids=FEW)
def test_the_label_matters_where_there_is_one(build):
    net = make(build).double().eval()
    x, label = inputs(net, torch.float64)
    if label is None or getattr(net, "auxiliary", False):
        return
    for sample in range(B):
        changed = label.clone()
        changed[sample] = 2
        differs = (net(x, label) != net(x, changed)).flatten(1 if isinstance(net, Generator) else 0)
        differs = differs.any(1) if isinstance(net, Generator) else differs
        assert differs.tolist() == [index == sample for index in range(B)]


@pytest.mark.parametrize("build", FEW.values(), ids=FEW)
def test_without_batch_norm_samples_do_not_touch_each_other(build):
    net = make(build).double()
    x, label = inputs(net, torch.float64)
    x.requires_grad_()
    output = net(x, label)
    if isinstance(output, DiscriminatorOutput):
        output = output.logits + output.class_logits.sum(1)
    logits = output.flatten(1).sum(1) if isinstance(net, Generator) else output
    (slope,) = torch.autograd.grad(logits[0], x)
    assert slope[0].abs().sum() > 0
    assert bool(slope[1:].any()) == mixes_samples(net)


@pytest.mark.parametrize("build", FEW.values(), ids=FEW)
def test_autocast_runs_close_to_full_precision(build):
    net = make(build)
    x, label = inputs(net)
    exact = flat(copy.deepcopy(net)(x, label))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = flat(net(x, label))
    assert torch.isfinite(rough).all()
    # bf16 has 8 bits: errors of a percent or two of the largest output
    assert (rough.float() - exact).abs().max() <= 0.05 * exact.abs().max() + 0.01


@pytest.mark.parametrize("build", COMPILED.values(), ids=COMPILED)
def test_compiles_without_a_graph_break(build):
    torch._dynamo.reset()
    eager = make(build)
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="eager", fullgraph=True)
    x, label = inputs(eager)
    for _ in range(2):
        torch.testing.assert_close(flat(compiled(x, label)), flat(eager(x, label)), rtol=0, atol=0)
    for name, value in eager.state_dict().items():
        assert torch.equal(value, compiled.state_dict()[name]), name


@pytest.mark.parametrize("build", FEW.values(), ids=FEW)
def test_a_state_dict_carries_everything(build, tmp_path):
    net, other = make(build), build()
    x, label = inputs(net)
    net(x, label)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    torch.testing.assert_close(flat(other.eval()(x, label)), flat(net.eval()(x, label)), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_spectral_norm_stays_exact_under_autocast_on_cuda(dtype):
    torch.manual_seed(0)
    net = ResNetDiscriminator(32).cuda()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype):
        for _ in range(500):
            net(x)
    with torch.autocast("cuda", dtype=dtype):
        weight = net.blocks[1].conv1.weight
    sigma = torch.linalg.svdvals(weight.double().flatten(1))[0].item()
    assert sigma == pytest.approx(1, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_on_cuda_are_not_waited_for():
    net = MLPGenerator(num_classes=K).cuda()
    z, label = torch.randn(B, 100, device="cuda"), torch.tensor([3, 0, 1], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(z, label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
