"""TarFlow against its own Jacobian, its order, and a plain way back without a cache."""

import itertools
import math

import pytest
import torch

from lightning_gen.networks import FlowNetwork, TarFlow
from lightning_gen.networks.causal import Cache, CausalAttention, CausalLayer

SHAPE = (2, 4, 6)
ARGUMENTS = {"image_shape": SHAPE, "patch_size": 2, "width": 8, "blocks": 3, "layers": 2, "heads": 2}


def flow(seed=0, dtype=torch.float64, scale=0.3, **arguments):
    """A flow with weights that do something: at the start the last layers are zero."""
    torch.manual_seed(seed)
    net = TarFlow(**(ARGUMENTS | arguments)).to(dtype).eval()
    with torch.no_grad():
        for block in net.blocks:
            block.last.weight.normal_(std=scale)
            block.last.bias.normal_(std=scale)
    return net


def images(n=3, dtype=torch.float64, seed=1, shape=SHAPE):
    return torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


KINDS = {
    "plain": ({}, None),
    "one block": ({"blocks": 1}, None),
    "pixels": ({"patch_size": 1, "image_shape": (2, 4, 4)}, None),
    "one patch": ({"patch_size": 4, "image_shape": (1, 4, 4)}, None),
    "classes": ({"num_classes": 3}, [0, 2, 3]),
    "classes without none": ({"num_classes": 3, "null_class": False}, [0, 2, 1]),
}


@pytest.fixture(params=KINDS, ids=KINDS)
def case(request):
    arguments, label = KINDS[request.param]
    net = flow(**arguments)
    return net, images(shape=net.image_shape), None if label is None else torch.tensor(label)


def test_the_way_back_is_the_inverse(case):
    net, x, label = case
    z, _ = net(x, label)
    assert z.shape == x.shape
    assert net.image_shape[1:] == (net.patch_size, net.patch_size) or not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(net.inverse(z, label), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(net(net.inverse(x, label), label)[0], x, rtol=0, atol=1e-10)


def test_the_logarithm_of_the_determinant_is_the_jacobians(case):
    net, x, label = case
    _, logdet = net(x, label)
    for i in range(len(x)):
        own = None if label is None else label[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda one, own=own: net(one[None], own)[0].flatten(), x[i])
        expected = torch.linalg.slogdet(jacobian.flatten(1))[1]
        torch.testing.assert_close(logdet[i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("reverse", [False, True])
def test_a_patch_moves_nothing_before_it(place, reverse):
    """Of one block: exactly, to the last bit."""
    block = flow(blocks=2).blocks[int(reverse)]
    tokens = torch.randn(2, 6, 8, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, place] += 3.0
    first, second = block(tokens, None)[0], block(changed, None)[0]
    before = slice(place + 1, None) if reverse else slice(0, place)
    behind = slice(0, place) if reverse else slice(place + 1, None)
    assert torch.equal(first[:, before], second[:, before])
    assert (first[:, behind] != second[:, behind]).all()
    assert (first[:, place] != second[:, place]).all()


def test_a_block_moves_a_patch_by_those_before_it_alone():
    """z_i = (x_i - mu) exp(-alpha), neither of them a function of x_i: the Jacobian of a patch is diagonal."""
    block = flow().blocks[0]
    tokens = torch.randn(1, 6, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x, None)[0][0, 3], tokens)[:, 0, 3]
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    assert torch.equal(block(tokens, None)[0][:, 0], tokens[:, 0])


def test_attention_is_a_softmax_over_the_tokens_so_far():
    """Of the products of queries and keys over sqrt(d), multiplied by the sharpness."""
    torch.manual_seed(0)
    layer = CausalAttention(8, 2).double()
    x, sharpness = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([1.0, 0.25], dtype=torch.float64)
    q, k, v = layer.qkv(x).view(2, 5, 3, 2, 4).unbind(2)
    expected = torch.zeros(2, 5, 2, 4, dtype=torch.float64)
    for b, i, head in itertools.product(range(2), range(5), range(2)):
        logits = k[b, : i + 1, head] @ q[b, i, head] / 2 * sharpness[b]
        shares = logits.exp() / logits.exp().sum()
        expected[b, i, head] = shares @ v[b, : i + 1, head]
    torch.testing.assert_close(layer(x, sharpness=sharpness), layer.out(expected.flatten(2)), rtol=0, atol=1e-13)


def test_a_cache_gives_what_the_whole_pass_gives():
    torch.manual_seed(0)
    layers = [CausalLayer(8, 2).double() for _ in range(2)]
    tokens = torch.randn(3, 7, 8, dtype=torch.float64)
    sharpness = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    whole, caches, parts = tokens, [Cache(), Cache()], []
    for layer in layers:
        whole = layer(whole, sharpness=sharpness)
    for place in range(7):
        hidden = tokens[:, place : place + 1]
        for layer, cache in zip(layers, caches, strict=True):
            hidden = layer(hidden, cache, sharpness)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-13)


def slow_inverse(net, z, label=None, guidance=1.0, temperature=1.0, none=None):
    """The way back with whole passes of both predictions for every patch, and no cache."""

    def predict(block, x, label, sharp):
        sharpness = torch.full((len(x),), sharp, dtype=x.dtype)
        hidden = block.embedding(x) + block.positions
        if block.classes is not None:
            hidden = hidden + block.classes(label)[:, None]
        for layer in block.layers:
            hidden = layer(hidden, sharpness=sharpness)
        return block.last(block.last_norm(hidden)).chunk(2, dim=-1)

    tokens = net._patches(z)
    for block in list(net.blocks)[::-1]:
        z = tokens.flip(1) if block.reverse else tokens
        x = z.clone()
        for i in range(1, z.shape[1]):
            own = predict(block, x, label, 1.0)
            weak = predict(block, x, none if none is not None else label, 1 / temperature)
            w = (guidance - 1) * i / (z.shape[1] - 1)
            shift, log_scale = ((1 + w) * a[:, i - 1] - w * b[:, i - 1] for a, b in zip(own, weak, strict=True))
            x[:, i] = z[:, i] * log_scale.exp() + shift
        tokens = x.flip(1) if block.reverse else x
    return net._image(tokens)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.5, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("classes", [None, 3])
def test_guidance_is_the_papers(guidance, temperature, classes):
    """(1 + w_i) mu_i(c) - w_i mu_i(none), w_i = w i / (N - 1), of mu and of alpha, in every block."""
    if classes is None and temperature == 1 and guidance != 1:
        pytest.skip("nothing to guide away from")
    net, z = flow(num_classes=classes, scale=0.1), images()
    label = None if classes is None else torch.tensor([0, 1, 2])
    none = None if classes is None else torch.full_like(label, classes)
    expected = slow_inverse(net, z, label, guidance, temperature, none)
    torch.testing.assert_close(net.inverse(z, label, guidance, temperature), expected, rtol=0, atol=1e-10)
    if guidance != 1:
        assert not torch.allclose(expected, net.inverse(z, label), atol=1e-3)


def test_guidance_of_scale_0_by_classes_is_the_class_none_at_the_last_patch_only():
    net, z, label = flow(num_classes=3, blocks=1), images(), torch.tensor([0, 1, 2])
    unguided, guided = (net._patches(net.inverse(z, label, s)) for s in (1.0, 0.0))
    assert torch.equal(unguided[:, 0], guided[:, 0])
    assert (unguided[:, 1:] != guided[:, 1:]).any(dim=-1).all()


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_leaves_the_noise_and_the_network_as_they_are(guidance):
    net, z, label = flow(num_classes=3), images(), torch.tensor([0, 1, 2])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in net.named_modules()}
    given, given_label = z.clone(), label.clone()
    first = net.inverse(z, label, guidance)
    assert torch.equal(z, given)
    assert torch.equal(label, given_label)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {name: set(vars(part)) for name, part in net.named_modules()} == attributes
    assert torch.equal(net.inverse(z, label, guidance), first)
    net.inverse(images(5), torch.arange(5) % 3, 1.7)
    assert torch.equal(net.inverse(z, label, guidance), first)


def test_an_untrained_flow_is_the_identity():
    net = TarFlow(SHAPE, 2, 8, 2, 1, 2)
    x = images(dtype=torch.float32)
    z, logdet = net(x)
    assert torch.equal(z, x)
    assert torch.equal(logdet, torch.zeros(3))
    assert torch.equal(net.inverse(x), x)


@pytest.mark.parametrize("seed", [0, 1])
def test_its_density_integrates_to_one(seed):
    """On a plane of two pixels, in which the density is neither normal nor symmetric."""
    net = flow(seed, image_shape=(1, 1, 2), patch_size=1, blocks=3, scale=0.15)
    points = torch.linspace(-12, 12, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(points, points).view(-1, 1, 1, 2)
    with torch.no_grad():
        z, logdet = net(grid)
    density = torch.exp(-0.5 * z.square().flatten(1).sum(1) - math.log(2 * math.pi) + logdet)
    cell = float(points[1] - points[0]) ** 2
    assert float(density.sum()) * cell == pytest.approx(1, abs=1e-5)
    mean = (density[:, None] * grid.flatten(1)).sum(0) * cell
    assert mean.abs().max() > 0.02


def test_checkpointing_changes_no_gradient():
    x = images()
    gradients = []
    for checkpointing in (False, True):
        net = flow(checkpointing=checkpointing)
        z, logdet = net(x)
        (z.square().sum() - logdet.sum()).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_it_runs_in_half_precision():
    net, x = flow(dtype=torch.float32, scale=0.1), images(dtype=torch.float32)
    expected, logdet = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        z, change = net(x)
        back = net.inverse(z)
    assert z.dtype == change.dtype == back.dtype == torch.float32
    torch.testing.assert_close(z, expected, rtol=0.05, atol=0.1)
    torch.testing.assert_close(change, logdet, rtol=0.05, atol=0.2)
    torch.testing.assert_close(back, x, rtol=0.05, atol=0.1)
    whole = flow(dtype=torch.bfloat16)
    assert whole(x.bfloat16())[1].dtype == torch.float32


def test_it_is_a_flow_network_of_the_size_it_says():
    net = TarFlow((1, 8, 8), 2, 96, 4, 2, 4, num_classes=10)
    assert isinstance(net, FlowNetwork)
    assert net.label_rows == 11
    layer = 12 * 96**2 + 13 * 96
    block = 2 * layer + (4 + 1) * 96 + 2 * 96 + 16 * 96 + 11 * 96 + (96 + 1) * 8
    assert sum(parameter.numel() for parameter in net.parameters()) == 4 * block


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"patch_size": 4}, "do not fill"),
        ({"patch_size": 0}, "patch_size"),
        ({"width": 9}, "multiple"),
        ({"blocks": 0}, "blocks"),
        ({"image_shape": (4, 6)}, "channels, height, width"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_bad_sizes_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        TarFlow(**(ARGUMENTS | arguments))


@pytest.mark.parametrize(
    ("classes", "call", "told"),
    [
        (None, lambda net: net(images()[:, :1]), "image_shape"),
        (None, lambda net: net(images(), torch.tensor([0, 0, 0])), "unconditional"),
        (3, lambda net: net(images()), "no label"),
        (3, lambda net: net(images(), torch.tensor([0, 1, 4])), r"\[0, 3\]"),
        (None, lambda net: net.inverse(images(), guidance=2.0), "weak_temperature"),
        (None, lambda net: net.inverse(images(), weak_temperature=0.0), "above 0"),
        (None, lambda net: net.inverse(images()[:, :1]), "image_shape"),
    ],
)
def test_bad_input_is_refused(classes, call, told):
    with pytest.raises(ValueError, match=told):
        call(flow(num_classes=classes))
