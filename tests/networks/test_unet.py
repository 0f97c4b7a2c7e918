import copy
import math

import pytest
import torch
import torch.nn.functional as F

from lightning_gen.networks import winograd
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.embeddings import PositionalEmbedding, RandomFourierEmbedding
from lightning_gen.networks.unet import UNet
from lightning_gen.networks.unet_blocks import doubled_conv
from lightning_gen.networks.winograd import Conv3x3

TINY = {"image_shape": (2, 8, 8), "channels": 8, "channel_multipliers": (1, 2), "blocks": 1}
EVERYTHING = {
    "num_classes": 3,
    "vector_dim": 5,
    "token_dim": 6,
    "image_channels": 2,
    "augment_dim": 4,
    "two_times": True,
    "learned_variance": True,
}
ARCHITECTURES = {
    "ddpm": {"resampling": "conv_asymmetric"},
    "ddpm++": {
        "resampling": "block",
        "resample_projection": True,
        "skip_scale": math.sqrt(0.5),
        "class_embedding": "one_hot",
        "decoder_attention": "last",
    },
    "adm": {"resampling": "block", "modulation": "scale_shift", "head_dim": 4, "embedding_order": "cos_sin"},
    "pool": {"resampling": "pool", "embedding": "fourier", "attention_levels": (0, 1), "middle_attention": False},
}
ARCHITECTURES["patches"] = {"patch_size": 2, "channel_multipliers": (1, 1)}
CASES = {name: TINY | how for name, how in ARCHITECTURES.items()}
CASES |= {f"{name}, all conditions": TINY | how | EVERYTHING for name, how in ARCHITECTURES.items()}


def randomized(net, seed=0):
    """Nothing zero, nothing one: what starts as zero would hide what is behind it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 9
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan))
    return net.double().eval()


def inputs(net, batch=3, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(batch, *shape, generator=generator, dtype=dtype)

    channels, height, width = net.image_shape
    cond = Condition(
        label=torch.arange(batch) % (net.num_classes + net.null_class) if net.num_classes else None,
        vector=draw(net.vector_dim) if net.vector_dim else None,
        tokens=draw(7, net.token_dim) if net.token_dim else None,
        mask=torch.rand(batch, 7, generator=generator) < 0.7 if net.token_dim else None,
        image=draw(net.image_channels, height, width) if net.image_channels else None,
        augment=draw(net.augment_dim) if net.augment_dim else None,
    )
    second = (1000 * draw().abs() if net.two_times else None,)
    return draw(channels, height, width), 1000 * draw().abs(), cond, *second


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def on_meta(name, **changes):
    with torch.device("meta"):
        return UNet.preset(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("ddpm_cifar10", {}, 35_746_307),
        ("edm_cifar10", {}, 55_732_739),
        ("edm_cifar10", {"augment_dim": 9}, 55_733_891),
        ("edm_cifar10", {"augment_dim": 9, "num_classes": 10}, 55_733_891 + 10 * 128 + 128),
        ("adm_imagenet64", {}, 295_899_267),
    ],
)
def test_the_published_networks_have_the_published_numbers_of_parameters(name, changes, expected):
    assert count(on_meta(name, **changes)) == expected


@pytest.mark.parametrize("name", ["small_28", "small_32"])
def test_the_small_ones_are_small(name):
    assert 1e6 < count(on_meta(name)) < 2.6e6


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="ddpm_cifar10"):
        UNet.preset("ddpm_cifar")


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_shape_and_gradients(how):
    net = randomized(UNet(**how))
    assert isinstance(net, DenoisingNetwork)
    output = net(*inputs(net))
    assert output.shape == (3, net.out_channels, 8, 8)
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_no_sample_sees_another(how):
    net = randomized(UNet(**how))
    x, label, cond, second = inputs(net)
    with torch.no_grad():
        together = net(x, label, cond, second)
        for index in range(3):
            one = [None if part is None else part[index : index + 1] for part in (x, label, second)]
            alone = net(one[0], one[1], cond.map(lambda part, at=index: part[at : at + 1]), one[2])
            assert (alone - together[index : index + 1]).abs().max() < 1e-12


@pytest.mark.parametrize("entry", ["label", "vector", "tokens", "mask", "image", "augment"])
def test_every_condition_matters_to_its_own_sample_alone(entry):
    net = randomized(UNet(**CASES["ddpm, all conditions"]))
    x, label, cond, second = inputs(net)
    value = getattr(cond, entry).clone()
    value[1] = ~value[1] if value.dtype == torch.bool else (value[1] + 1) % 4 if entry == "label" else value[1] + 1
    with torch.no_grad():
        moved = net(x, label, cond._replace(**{entry: value}), second) - net(x, label, cond, second)
    assert moved.abs().amax(dim=(1, 2, 3)).gt(1e-12).tolist() == [False, True, False]


def test_both_times_matter():
    net = randomized(UNet(**TINY, two_times=True))
    x, label, _, second = inputs(net)
    with torch.no_grad():
        output = net(x, label, None, second)
        assert (net(x, label + 1, None, second) - output).abs().max() > 1e-6
        assert (net(x, label, None, second + 1) - output).abs().max() > 1e-6


def test_what_the_mask_hides_does_not_matter_and_no_token_is_zeros():
    net = randomized(UNet(**TINY, token_dim=6))
    x, label, cond, _ = inputs(net)
    mask = cond.mask.clone()
    mask[0] = False
    hidden = torch.where(mask[:, :, None], cond.tokens, 1e3)
    with torch.no_grad():
        plain = net(x, label, cond._replace(mask=mask))
        assert torch.equal(net(x, label, cond._replace(tokens=hidden, mask=mask)), plain)
        none = net(x, label, Condition(tokens=torch.zeros_like(cond.tokens)))
        assert (plain[0] - none[0]).abs().max() < 1e-12


def test_the_class_none_of_the_one_hot_embedding_adds_the_bias_alone():
    net = randomized(UNet(**TINY, num_classes=3, class_embedding="one_hot"))
    x, label, _, _ = inputs(net)
    with torch.no_grad():
        none = net(x, label, Condition(label=torch.full((3,), 3)))
        first = net(x, label, Condition(label=torch.zeros(3, dtype=torch.int64)))
        net.embedding.classes.weight.zero_()
        assert torch.equal(net(x, label, Condition(label=torch.zeros(3, dtype=torch.int64))), none)
    assert (none - first).abs().max() > 1e-6


def test_at_the_start_the_output_is_zero_as_published():
    net = UNet(**TINY)
    assert net(*inputs(net, dtype=torch.float32)[:2]).abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20), (2, 4, 8)], ids=str)
def test_any_sides_that_halve(shape):
    net = randomized(UNet(shape, channels=8, channel_multipliers=(1, 1.5, 2), blocks=1))
    assert net(*inputs(net)[:2]).shape == (3, *shape)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"image_shape": (1, 28, 30), "channel_multipliers": (1, 1, 1)}, "divisible by 4, not 28 x 30"),
        ({"image_shape": (1, 14, 14), "patch_size": 2}, "divisible by 4, not 14 x 14"),
        ({"channel_multipliers": ()}, "no level"),
        ({"channel_multipliers": (1, 1.3)}, "whole"),
        ({"attention_levels": (2,)}, r"in \[-2, 1\]"),
        ({"head_dim": 3}, "head_dim=3"),
        ({"dropout": 1.0}, "dropout"),
        ({"channels": 0}, "channels"),
        ({"channels": 7}, "even"),
        ({"modulation": "scale"}, "scale_shift"),
        ({"resampling": "fir"}, "conv_asymmetric"),
        ({"embedding": "learned"}, "positional"),
        ({"vector_dim": -1}, "vector_dim"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(how, message):
    with pytest.raises(ValueError, match=message):
        UNet(**(TINY | how))


def test_what_it_does_not_take_is_refused():
    net = randomized(UNet(**TINY, num_classes=3))
    x, label, cond, _ = inputs(net)
    for given, message in (
        ((x[:, :1], label, cond), "image"),
        ((x, label, None), "label"),
        ((x, label, cond._replace(vector=x[:, 0, 0])), "vector"),
        ((x, label, cond, label), "two_times"),
    ):
        with pytest.raises(ValueError, match=message):
            net(*given)


@pytest.mark.parametrize("how", [CASES["ddpm, all conditions"], CASES["adm"]], ids=["ddpm", "adm"])
def test_checkpointing_changes_no_gradient(how):
    plain, again = (randomized(UNet(**how, checkpointing=flag)) for flag in (False, True))
    given = inputs(plain)
    outputs = [net(*given) for net in (plain, again)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for ours, theirs in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("how", CASES.values(), ids=CASES)
def test_the_memory_format_changes_nothing(how):
    plain = randomized(UNet(**how))
    last = UNet(**how, channels_last=True).double()
    last.load_state_dict(plain.state_dict())
    assert last.input.weight.is_contiguous(memory_format=torch.channels_last)
    given = inputs(plain)
    with torch.no_grad():
        difference = last(*given) - plain(*given)
    assert difference.abs().max() < 1e-12


def test_wide_networks_take_the_fast_convolutions_and_compute_the_same(monkeypatch):
    calls = []
    inner = winograd._convolved
    monkeypatch.setattr(winograd, "_convolved", lambda *given: calls.append(1) or inner(*given))
    monkeypatch.setattr(winograd, "_TILES", 1)
    how = TINY | {"channels": 128, "channel_multipliers": (1,), "num_classes": 3}
    plain, last = (randomized(UNet(**how, channels_last=flag)) for flag in (False, True))
    given = inputs(plain)
    outputs = [net(*given) for net in (plain, last)]
    assert len(calls) == 2 * 5
    assert (outputs[0] - outputs[1]).abs().max() < 1e-11
    for output in outputs:
        output.square().sum().backward()
    for (name, ours), theirs in zip(plain.named_parameters(), last.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-9 * ours.grad.abs().max().clamp(min=1), name


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 8)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["plain", "last"])
def test_doubling_and_convolving_at_once(size, memory_format):
    torch.manual_seed(0)
    conv = Conv3x3(3, 4).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    expected = F.conv2d(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), conv.weight, conv.bias, padding=1)
    output = doubled_conv(x, conv)
    assert (output - expected).abs().max() < 1e-14
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(y, (x, conv.weight, conv.bias), upstream) for y in (output, expected)), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-12


def test_dropout_acts_in_training_alone():
    net = randomized(UNet(**TINY, dropout=0.5))
    given = inputs(net)[:2]
    assert torch.equal(net(*given), net(*given))
    net.train()
    assert not torch.equal(net(*given), net(*given))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_one_graph_and_no_second_compilation_for_another_time(monkeypatch):
    calls = []
    for least in ("_CHANNELS", "_SIDE", "_TILES"):
        monkeypatch.setattr(winograd, least, 1)
    monkeypatch.setattr(winograd, "_convolved", lambda *given: calls.append(1))
    torch._dynamo.reset()
    frames = []

    def backend(graph, example):
        frames.append(graph)
        return graph.forward

    net = randomized(UNet(**TINY, num_classes=3, channels_last=True))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    x, label, cond, _ = inputs(net)
    with torch.no_grad():
        outputs = [compiled(x, at, cond) for at in (label, label + 1, label * 0.5)]
        assert not calls
        monkeypatch.undo()
        expected = [net(x, at, cond) for at in (label, label + 1, label * 0.5)]
    assert len(frames) == 1
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_half_precision_embeds_the_time_in_full():
    net = randomized(UNet(**CASES["pool"])).bfloat16()
    label = torch.tensor([998.0, 999.0, 1000.0])
    x = torch.zeros(3, 2, 8, 8)
    seen = []
    net.embedding.features.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.no_grad():
        output = net(x, label)
    assert output.dtype == torch.bfloat16
    assert seen[0].dtype == torch.float32
    assert torch.isfinite(output).all()
    assert not torch.equal(seen[0][0], seen[0][1])


def test_autocast_keeps_the_time_in_full_and_comes_close():
    net = randomized(UNet(**CASES["ddpm, all conditions"])).float()
    given = inputs(net, dtype=torch.float32)
    seen = []
    net.embedding.features.register_forward_hook(lambda module, given, output: seen.append(output))
    exact = net(*given)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(*given)
    output.float().square().sum().backward()
    assert seen[1].dtype == torch.float32
    assert (output - exact).abs().max() < 0.1 * exact.std()


def test_a_copy_and_its_weights():
    net = randomized(UNet(**TINY, channels_last=True))
    twin = copy.deepcopy(net)
    given = inputs(net)[:2]
    assert torch.equal(net(*given), twin(*given))


def test_positional_embedding_is_the_formula():
    label = torch.tensor([0.0, 0.5, 999.0], dtype=torch.float64)
    for shift in (0, 1):
        omega = [10000 ** (-i / (4 - shift)) for i in range(4)]
        sines = [[math.sin(value * w) for w in omega] for value in label.tolist()]
        cosines = [[math.cos(value * w) for w in omega] for value in label.tolist()]
        expected = torch.tensor([a + b for a, b in zip(sines, cosines, strict=True)], dtype=torch.float64)
        assert (PositionalEmbedding(8, freq_shift=shift)(label) - expected).abs().max() < 1e-12
        other = PositionalEmbedding(8, freq_shift=shift, order="cos_sin")(label)
        assert torch.equal(other.roll(4, dims=1), PositionalEmbedding(8, freq_shift=shift)(label))
        assert (PositionalEmbedding(8, freq_shift=shift)(label.bfloat16())).dtype == torch.float32


def test_fourier_features_are_the_formula_and_survive_half_precision():
    torch.manual_seed(0)
    features = RandomFourierEmbedding(8, scale=2.0)
    frequencies = features.frequencies.clone()
    label = torch.tensor([0.3, -1.5], dtype=torch.float64)
    angles = 2 * math.pi * label[:, None] * frequencies.double()
    assert (features(label) - torch.cat([angles.cos(), angles.sin()], dim=1)).abs().max() < 1e-12
    assert torch.equal(features.bfloat16().frequencies, frequencies)
    assert features.double().frequencies.dtype == torch.float64
    assert "frequencies" in features.state_dict()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PositionalEmbedding(7), "even"),
        (lambda: PositionalEmbedding(2, freq_shift=1), "freq_shift"),
        (lambda: PositionalEmbedding(8, max_period=0), "max_period"),
        (lambda: PositionalEmbedding(8, order="sin"), "sin_cos"),
        (lambda: RandomFourierEmbedding(8, scale=0), "scale"),
    ],
)
def test_embeddings_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
