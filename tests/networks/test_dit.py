"""The diffusion transformer against an implementation of its own, written layer by layer from the papers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from lightning_gen.networks.denoiser import Condition
from lightning_gen.networks.dit import SIZES, DiT
from lightning_gen.networks.dit_blocks import Attention, RMSNorm, TimeEmbedding, attend
from lightning_gen.networks.positions import rotary_positions, rotate, sincos_positions

K, B = 5, 3
SMALL = {"width": 24, "depth": 2, "heads": 3}
EVERYTHING = {
    "num_classes": K,
    "vector_dim": 4,
    "token_dim": 7,
    "image_channels": 2,
    "augment_dim": 6,
    "two_times": True,
    "learned_variance": True,
}
OPTIONS = {
    "published": {},
    "biasless": {"qkv_bias": False},
    "qk norm": {"qk_norm": True},
    "rope": {"positions": "rope"},
    "both positions": {"positions": "both"},
    "swiglu": {"mlp": "swiglu"},
    "rms": {"norm": "rms"},
    "eps": {"norm_eps": 0.1, "mlp_norm_eps": 0.3},
    "math": {"attention": "math"},
    "ratio": {"mlp_ratio": 2.5},
    "shift": {"freq_shift": 1},
    "patch": {"patch_size": 4},
    "modern": {"positions": "rope", "mlp": "swiglu", "norm": "rms", "qk_norm": True, **EVERYTHING},
    "everything": EVERYTHING,
}


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return net


def inputs(net, batch=B, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    label = torch.randint(net.num_classes + 1, (batch,), generator=generator) if net.num_classes else None
    cond = Condition(
        label=label,
        vector=draw(batch, net.vector_dim) if net.vector_dim else None,
        tokens=draw(batch, 4, net.token_dim) if net.token_dim else None,
        mask=torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()[:batch] if net.token_dim else None,
        image=draw(batch, net.image_channels, *net.image_shape[1:]) if net.image_channels else None,
        augment=draw(batch, net.augment_dim) if net.augment_dim else None,
    )
    second = draw(batch).abs() * 9 if net.two_times else None
    return draw(batch, *net.image_shape), draw(batch).abs() * 9, cond, second


def time_reference(part, label, shift):
    n = 128
    frequencies = torch.tensor([10000 ** (-i / (n - shift)) for i in range(n)], dtype=torch.float64)
    angle = label[:, None] * frequencies
    hidden = torch.cat([torch.cos(angle), torch.sin(angle)], 1) @ part.hidden.weight.T + part.hidden.bias
    return (hidden / (1 + (-hidden).exp())) @ part.out.weight.T + part.out.bias


def norm_reference(x, kind, eps):
    if kind == "rms":
        return x / (x**2).mean(-1, keepdim=True).add(eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt()


def attention_reference(q, k, v, part, angles, mask):
    """One head at a time; pairs of entries are complex numbers that are multiplied by exp(i angle)."""
    width, out = q.shape[-1] // part.heads, []
    for head in range(part.heads):
        a, b, c = (t[..., head * width : (head + 1) * width] for t in (q, k, v))
        if not isinstance(part.q_norm, torch.nn.Identity):
            a, b = (
                norm_reference(a, "rms", 1e-6) * part.q_norm.weight,
                norm_reference(b, "rms", 1e-6) * part.k_norm.weight,
            )
        if angles is None:
            scores = torch.einsum("bnd,bmd->bnm", a, b)
        else:
            # kept in float32
            turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
            turned = [torch.complex(*t.chunk(2, -1)) * turn for t in (a, b)]
            scores = torch.einsum("bnd,bmd->bnm", turned[0], turned[1].conj()).real
        weights = (scores / math.sqrt(width)).exp()
        if mask is not None:
            weights = weights * mask[:, None]
        out.append(weights / weights.sum(-1, keepdim=True) @ c)
    return torch.cat(out, -1) @ part.out.weight.T + part.out.bias


def mlp_reference(x, part, kind):
    hidden = x @ part.hidden.weight.T + part.hidden.bias
    if kind == "swiglu":
        gate, value = hidden.chunk(2, -1)
        hidden = gate / (1 + (-gate).exp()) * value
    else:
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ part.out.weight.T + part.out.bias


def positions_reference(rows, columns, width):
    n = width // 4
    table = torch.empty(rows * columns, width, dtype=torch.float64)
    for r in range(rows):
        for c in range(columns):
            for i in range(n):
                f = 10000 ** (-i / n)
                for j, value in enumerate((math.sin(f * c), math.cos(f * c), math.sin(f * r), math.cos(f * r))):
                    table[r * columns + c, j * n + i] = value
    return table


def angles_reference(rows, columns, width):
    n = width // 4
    return torch.tensor(
        [
            [10000 ** (-i / n) * index for index in (r, c) for i in range(n)]
            for r in range(rows)
            for c in range(columns)
        ],
        dtype=torch.float64,
    )


def reference(net, x, noise_label, cond, second):
    p, width, (_, height, breadth) = net.patch_size, net.width, net.image_shape
    shift = net.time.embed.freq_shift
    x = x if cond.image is None else torch.cat([x, cond.image], 1)
    kernel = net.patch_embedding.weight.reshape(width, -1, p, p)
    h = F.conv2d(x, kernel, net.patch_embedding.bias, stride=p).flatten(2).mT
    rows, columns = height // p, breadth // p
    if net.positions != "rope":
        h = h + positions_reference(rows, columns, width).float()
    angles = None if net.positions == "sincos" else angles_reference(rows, columns, width // net.heads)
    c = time_reference(net.time, noise_label, shift)
    if second is not None:
        c = c + time_reference(net.second_time, second, shift)
    if cond.label is not None:
        c = c + net.classes.weight[cond.label]
    if cond.vector is not None:
        c = c + cond.vector @ net.vector.weight.T
    if cond.augment is not None:
        c = c + cond.augment @ net.augment.weight.T
    c = c / (1 + (-c).exp())
    table = (c @ net.modulation.weight.T + net.modulation.bias)[:, None]
    for i, block in enumerate(net.blocks):
        b1, s1, g1, b2, s2, g2 = (table[..., (6 * i + j) * width : (6 * i + j + 1) * width] for j in range(6))
        inner = norm_reference(h, net.norm_name, net.norm_eps) * (1 + s1) + b1
        qkv = inner @ block.attention.qkv.weight.T
        qkv = qkv if block.attention.qkv.bias is None else qkv + block.attention.qkv.bias
        h = h + g1 * attention_reference(*qkv.chunk(3, -1), block.attention, angles, None)
        if cond.tokens is not None:
            q = norm_reference(h, net.norm_name, net.norm_eps) @ block.cross.q.weight.T + block.cross.q.bias
            kv = cond.tokens @ block.cross.kv.weight.T + block.cross.kv.bias
            h = h + attention_reference(q, *kv.chunk(2, -1), block.cross, None, cond.mask.double())
        h = h + g2 * mlp_reference(
            norm_reference(h, net.norm_name, net.mlp_norm_eps) * (1 + s2) + b2, block.mlp, net.mlp_name
        )
    b, s = (c @ net.final_modulation.weight.T + net.final_modulation.bias)[:, None].chunk(2, -1)
    h = (norm_reference(h, net.norm_name, net.norm_eps) * (1 + s) + b) @ net.final.weight.T + net.final.bias
    # fold wants the channel first within a patch, the layer has it last
    channels = net.final.out_features // p**2
    h = h.unflatten(2, (p * p, channels)).mT.flatten(2)
    return F.fold(h.mT, (height, breadth), p, stride=p)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_the_network_of_the_papers(options):
    net = randomized(DiT((3, 8, 16), **SMALL, **options))
    x, t, cond, second = inputs(net)
    out = net(x, t, cond, second)
    assert out.shape == (B, 6 if net.learned_variance else 3, 8, 16)
    torch.testing.assert_close(out, reference(net, x, t, cond, second), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_parameter_matters(options):
    net = randomized(DiT((3, 8, 16), **SMALL, **options))
    net(*inputs(net)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def parameters_of(width, depth, patch, channels, out_channels, rows, hidden):
    """Count by the paper's description: every linear layer has (in + 1) out parameters."""

    def linear(a, b):
        return (a + 1) * b

    block = linear(width, 3 * width) + linear(width, width) + linear(width, 6 * width)
    block += linear(width, hidden) + linear(hidden, width)
    ends = linear(patch**2 * channels, width) + linear(width, 2 * width) + linear(width, patch**2 * out_channels)
    return depth * block + ends + linear(256, width) + linear(width, width) + rows * width


def test_xl_2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = DiT((4, 32, 32), "XL", 2, num_classes=1000, learned_variance=True)
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == parameters_of(1152, 28, 2, 4, 8, 1001, 4608) == 674_834_720


@pytest.mark.parametrize(("size", "patch", "millions"), [("S", 2, 33), ("B", 4, 130), ("L", 2, 458)])
def test_sizes_are_the_published_ones(size, patch, millions):
    with torch.device("meta"):
        net = DiT((4, 32, 32), size, patch, num_classes=1000, learned_variance=True)
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, abs=1.5)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_fits_every_kind_of_positions(size):
    with torch.device("meta"):
        net = DiT((1, 28, 28), size, 4, positions="both", mlp="swiglu")
        assert net(torch.zeros(2, 1, 28, 28, device="meta"), torch.zeros(2, device="meta")).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(("width", "hidden"), [(1152, 3072), (1024, 2736), (384, 1024)])
def test_swiglu_has_about_as_many_parameters_as_gelu(width, hidden):
    with torch.device("meta"):
        net = DiT((4, 32, 32), width=width, depth=1, heads=1, mlp="swiglu")
    assert net.blocks[0].mlp.out.in_features == hidden
    assert hidden * 3 == pytest.approx(8 * width, rel=5e-3)


def test_untrained_it_returns_zeros_and_its_blocks_are_the_identity():
    net = DiT((3, 8, 8), **SMALL, **EVERYTHING)
    x, t, cond, second = inputs(net, dtype=torch.float32)
    assert torch.equal(net(x, t, cond, second), torch.zeros(B, 6, 8, 8))
    tokens = torch.randn(B, 16, 24)
    modulation = net.modulation(torch.randn(B, 24)).view(B, 2, 6, 24)
    for block, each in zip(net.blocks, modulation.unbind(1), strict=True):
        assert torch.equal(block(tokens, each, cond.tokens, cond.mask), tokens)


def test_initial_weights_are_the_published_ones():
    net = DiT((4, 16, 16), "S", 2, num_classes=1000, two_times=True, token_dim=32)
    block = net.blocks[3]
    for layer in (net.patch_embedding, block.attention.qkv, block.attention.out, block.mlp.hidden, block.cross.kv):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for layer in (net.classes, net.time.hidden, net.time.out, net.second_time.hidden):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
    for name, parameter in net.named_parameters():
        if name.endswith("bias") or name.startswith(("modulation", "final")) or name.endswith("cross.out.weight"):
            assert not parameter.any(), name
        else:
            assert parameter.any(), name


def test_fixed_positions_are_those_of_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    expected = embeddings.get_2d_sincos_pos_embed(24, (4, 4), base_size=4)
    torch.testing.assert_close(sincos_positions(4, 4, 24), expected.float(), rtol=0, atol=1e-7)


def test_rotated_products_depend_on_the_difference_of_positions_alone():
    rows, columns, width = 5, 6, 16
    rotation = tuple(t.double() for t in rotary_positions(rows, columns, width))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, width, dtype=torch.float64, generator=generator)
    place = [q.expand(1, 1, rows * columns, width), k.expand(1, 1, rows * columns, width)]
    scores = (rotate(place[0], rotation) @ rotate(place[1], rotation).mT).view(rows, columns, rows, columns)
    by_difference = {}
    for a in range(rows):
        for b in range(columns):
            for c in range(rows):
                for d in range(columns):
                    by_difference.setdefault((c - a, d - b), []).append(scores[a, b, c, d].item())
    assert all(max(values) - min(values) < 1e-5 for values in by_difference.values())
    assert by_difference[0, 0][0] == pytest.approx((q * k).sum().item(), abs=1e-6)
    # and does depend on it: every difference has a score of its own
    assert len({round(values[0], 4) for values in by_difference.values()}) == len(by_difference)


def test_fused_and_plain_attention_agree():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 2, 3, 7, 8, dtype=torch.float64, generator=generator)
    mask = torch.rand(2, 1, 1, 7, generator=generator) > 0.3
    for allowed in (None, mask):
        torch.testing.assert_close(attend(q, k, v, allowed), attend(q, k, v, allowed, "math"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"positions": "rope", "qk_norm": True, "norm": "rms", "mlp": "swiglu"}])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_mode_derivatives_go_through(options, checkpointing):
    net = randomized(DiT((3, 8, 8), **SMALL, **EVERYTHING, **options, checkpointing=checkpointing))
    x, t, cond, second = inputs(net)
    tangents = torch.randn(x.shape, dtype=torch.float64), torch.ones_like(t), torch.full_like(t, -0.5)

    def run(x, t, second):
        return net(x, t, cond, second)

    out, tangent = torch.func.jvp(run, (x, t, second), tangents)
    torch.testing.assert_close(out, run(x, t, second), rtol=1e-12, atol=1e-12)
    # <w, J v> = <J^T w, v>, the right side by the backward pass, which takes the fused kernels
    weights = torch.randn(out.shape, dtype=torch.float64)
    leaves = [value.clone().requires_grad_() for value in (x, t, second)]
    grads = torch.autograd.grad((weights * run(*leaves)).sum(), leaves)
    expected = sum((grad * d).sum() for grad, d in zip(grads, tangents, strict=True))
    torch.testing.assert_close((weights * tangent).sum(), expected, rtol=1e-11, atol=1e-11)


def test_weights_have_gradients_beside_a_forward_mode_derivative():
    grads = []
    for attention in ("sdpa", "math"):
        net = randomized(DiT((3, 8, 8), **SMALL, two_times=True, attention=attention))
        x, t, _, second = inputs(net)

        def run(x, t, second, net=net):
            return net(x, t, None, second)

        out, tangent = torch.func.jvp(run, (x, t, second), (x, torch.ones_like(t), torch.zeros_like(t)))
        (out - 0.1 * tangent.detach()).square().mean().backward()
        grads.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-14)
    assert all(grad.abs().sum() > 0 for grad in grads[0])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_computes_the_same_twice(dropout):
    results = []
    for checkpointing in (False, True):
        net = randomized(DiT((3, 8, 8), **SMALL, **EVERYTHING, dropout=dropout, checkpointing=checkpointing)).train()
        calls = []
        net.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        out = net(*inputs(net))
        out.square().mean().backward()
        results.append([out.detach(), *(parameter.grad for parameter in net.parameters())])
        assert len(calls) == 1 + checkpointing
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_without_gradients_nothing_is_checkpointed():
    net = randomized(DiT((3, 8, 8), **SMALL, checkpointing=True))
    with torch.no_grad():
        assert not net(*inputs(net)).requires_grad


def test_dropout_is_for_training():
    net = randomized(DiT((3, 8, 8), **SMALL, dropout=0.5))
    given = inputs(net)
    assert torch.equal(net(*given), net(*given))
    net.train()
    assert not torch.equal(net(*given), net(*given))


@pytest.mark.parametrize("options", [{}, OPTIONS["modern"]], ids=["published", "modern"])
def test_it_compiles_whole_and_only_once(options):
    torch._dynamo.reset()
    eager = randomized(DiT((3, 8, 8), **SMALL, **options))
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            given = inputs(eager, seed=seed)
            torch.testing.assert_close(compiled(*given), eager(*given), rtol=1e-13, atol=1e-13)


def test_with_plain_attention_a_compiled_derivative_is_the_eager_one():
    torch._dynamo.reset()
    net = randomized(DiT((3, 8, 8), **SMALL, attention="math"))
    x, t, _, _ = inputs(net)

    def derivative(x, t):
        return torch.func.jvp(net, (x, t), (x, torch.ones_like(t)))

    compiled = torch.compile(derivative, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), derivative(x, t), rtol=1e-12, atol=1e-12)


def test_tokens_that_are_masked_do_not_matter():
    net = randomized(DiT((3, 8, 8), **SMALL, token_dim=7))
    x, t, cond, _ = inputs(net)
    out = net(x, t, cond)
    noisy = torch.where(cond.mask[:, :, None], cond.tokens, torch.full_like(cond.tokens, 1e3))
    torch.testing.assert_close(net(x, t, cond._replace(tokens=noisy)), out, rtol=0, atol=0)
    # the same as leaving them out
    alone = Condition(tokens=cond.tokens[1:2, cond.mask[1]])
    torch.testing.assert_close(net(x[1:2], t[1:2], alone), out[1:2], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(net(x, t, cond._replace(mask=None)), out)


def test_a_sample_without_tokens_is_one_whose_tokens_are_zeros():
    net = randomized(DiT((3, 8, 8), **SMALL, token_dim=7))
    x, t, cond, _ = inputs(net)
    out = net(x, t, cond._replace(mask=torch.zeros_like(cond.mask)))
    dropped = cond._replace(mask=None).dropped(torch.ones(B, dtype=torch.bool), None)
    torch.testing.assert_close(out, net(x, t, dropped), rtol=1e-12, atol=1e-12)


def test_zeros_and_nothing_say_the_same():
    net = randomized(DiT((3, 8, 8), **SMALL, vector_dim=4, augment_dim=6))
    plain = randomized(DiT((3, 8, 8), **SMALL))
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k not in ("vector.weight", "augment.weight")})
    x, t, _, _ = inputs(net)
    zeros = torch.zeros(B, 4, dtype=torch.float64)
    for augment in (None, torch.zeros(B, 6, dtype=torch.float64)):
        assert torch.equal(net(x, t, Condition(vector=zeros, augment=augment)), plain(x, t))


@pytest.mark.parametrize("options", [{}, OPTIONS["modern"]], ids=["published", "modern"])
def test_samples_do_not_see_each_other(options):
    net = randomized(DiT((3, 8, 8), **SMALL, **options))
    x, t, cond, second = inputs(net)
    out = net(x, t, cond, second)
    for i in range(B):
        one = net(
            x[i : i + 1],
            t[i : i + 1],
            cond.map(lambda v, i=i: v[i : i + 1]),
            None if second is None else second[i : i + 1],
        )
        torch.testing.assert_close(one, out[i : i + 1], rtol=1e-12, atol=1e-12)


def test_times_are_told_apart_in_half_precision():
    embedding = TimeEmbedding(32)
    labels = torch.arange(1000.0)
    exact = embedding(labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedding(labels), exact)
    half = embedding.bfloat16()(labels)
    assert half.dtype == torch.bfloat16
    assert len(half.float().unique(dim=0)) == 1000


def test_it_runs_in_bfloat16_and_under_autocast():
    net = DiT((3, 8, 8), **SMALL, **OPTIONS["modern"])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x, t, cond, second = inputs(net, dtype=torch.float32)
    exact = net(x, t, cond, second)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net(x, t, cond, second).float(), exact, rtol=0.1, atol=0.02)
    half = net.bfloat16()
    floats = cond.map(lambda v: v.bfloat16() if v.is_floating_point() else v)
    out = half(x.bfloat16(), t, floats, second)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.02)


def test_rms_norm_has_unit_mean_square():
    x = torch.randn(4, 8, dtype=torch.float64) * 5
    torch.testing.assert_close(RMSNorm(8, eps=0.0)(x).square().mean(-1), torch.ones(4, dtype=torch.float64))


def test_positions_are_not_in_the_state_dict_and_weights_are():
    net, other = (randomized(DiT((3, 8, 8), **SMALL, positions="both"), seed) for seed in (0, 1))
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    given = inputs(net)
    assert not torch.equal(net(*given), other(*given))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(*given), other(*given))
    assert torch.equal(copy.deepcopy(net)(*given), net(*given))


def test_an_empty_batch_is_no_error():
    net = DiT((3, 8, 8), **SMALL)
    assert net(torch.zeros(0, 3, 8, 8), torch.zeros(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "XXL"}, "no size of DiT 'XXL'"),
        ({"patch_size": 3}, "patches of 3 x 3, which do not fill"),
        ({"patch_size": 0}, "positive integer as patch_size"),
        ({"heads": 5}, "multiple of 5"),
        ({"width": 18, "heads": 3}, "multiple of 3 and of 4, not 18"),
        ({"width": 36, "heads": 6, "positions": "rope"}, "multiple of 24"),
        ({"positions": "learned"}, "no kind of positions 'learned'"),
        ({"mlp": "relu"}, "no MLP 'relu'"),
        ({"norm": "batch"}, "no normalization of tokens 'batch'"),
        ({"attention": "flash"}, "no way of attention 'flash'"),
        ({"depth": 0}, "positive integer as depth"),
        ({"token_dim": -1}, "token_dim is 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiT((3, 8, 8), **{**SMALL, **options})


def test_cross_attention_needs_no_square_shapes():
    part = Attention(24, 3, context_width=7)
    assert part(torch.randn(2, 5, 24), torch.randn(2, 9, 7)).shape == (2, 5, 24)
