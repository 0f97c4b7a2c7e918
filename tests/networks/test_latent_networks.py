"""Encoders and decoders of vector latents: shapes, classes, gradients, and what they refuse."""

import copy

import pytest
import torch

from lightning_gen.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

B, K, OUT, LATENT = 3, 4, 7, 5
SHAPE, RGB = (1, 8, 8), (3, 8, 12)


def built(kind, *arguments, **settings):
    torch.manual_seed(0)
    net = kind(*arguments, **settings)
    if kind in (MLPEncoder, ConvEncoder):
        net.build(OUT)
    else:
        net.build(LATENT, 2 * net.image_shape[0])
    return net.double()


NETWORKS = {
    "mlp": lambda: [built(kind, [6], SHAPE) for kind in (MLPEncoder, MLPDecoder)],
    "mlp, tanh": lambda: [built(kind, [6, 5], RGB, K, "tanh") for kind in (MLPEncoder, MLPDecoder)],
    "linear": lambda: [built(kind, [], RGB, K) for kind in (MLPEncoder, MLPDecoder)],
    "conv": lambda: [built(kind, 2, 2, 6, SHAPE) for kind in (ConvEncoder, ConvDecoder)],
    "conv, classes": lambda: [built(kind, 2, 1, 6, RGB, K, "silu") for kind in (ConvEncoder, ConvDecoder)],
}


def inputs(encoder, decoder):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(B, *encoder.image_shape, generator=generator, dtype=torch.float64) * 2 - 1
    z = torch.randn(B, decoder.latent_dim, generator=generator, dtype=torch.float64)
    return x, z, None if encoder.num_classes is None else torch.tensor([3, 0, 1])


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_gradients(name):
    encoder, decoder = NETWORKS[name]()
    x, z, label = inputs(encoder, decoder)
    features, params = encoder(x, label), decoder(z, label)
    assert features.shape == (B, OUT)
    assert params.shape == (B, 2 * x.shape[1], *x.shape[2:])
    (features.square().sum() + params.square().sum()).backward()
    for net in (encoder, decoder):
        for parameter_name, parameter in net.named_parameters():
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name]()[0].num_classes])
def test_the_label_matters(name):
    encoder, decoder = NETWORKS[name]()
    x, z, label = inputs(encoder, decoder)
    other = torch.tensor([3, 2, 1])
    for net, given in ((encoder, x), (decoder, z)):
        differs = (net(given, label) != net(given, other)).flatten(1).any(1)
        assert differs.tolist() == [False, True, False]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_pixel_matters_and_samples_are_apart(name):
    encoder, decoder = NETWORKS[name]()
    x, z, label = inputs(encoder, decoder)
    (slope,) = torch.autograd.grad(encoder(x.requires_grad_(), label)[0].sum(), x)
    assert slope[0].count_nonzero() == slope[0].numel() or "tanh" not in name
    assert not slope[1:].any()
    (slope,) = torch.autograd.grad(decoder(z.requires_grad_(), label)[0].square().sum(), z)
    assert slope[0].abs().min() > 0
    assert not slope[1:].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_states_load_and_graphs_compile(name):
    for net, other in zip(NETWORKS[name](), NETWORKS[name](), strict=True):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        other.load_state_dict(net.state_dict())
        x, z, label = inputs(*NETWORKS[name]())
        given = x if hasattr(net, "outputs") else z
        torch._dynamo.reset()
        compiled = copy.deepcopy(net)
        compiled.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(given, label), net(given, label), rtol=0, atol=0)
        assert torch.equal(other(given, label), net(given, label))


def test_building_again_changes_nothing_and_otherwise_is_refused():
    encoder, decoder = NETWORKS["mlp"]()
    before = encoder.head.weight
    encoder.build(OUT)
    decoder.build(LATENT, 2)
    assert encoder.head.weight is before
    with pytest.raises(ValueError, match="was built for 7 outputs and is asked for 8"):
        encoder.build(8)
    with pytest.raises(ValueError, match="was built for latents of length 5 and 2 output channels"):
        decoder.build(LATENT, 3)


@pytest.mark.parametrize("kind", [ConvEncoder, ConvDecoder])
def test_sides_that_cannot_be_halved_are_refused(kind):
    with pytest.raises(ValueError, match=r"8 does not divide 28 x 28: resize or crop the data to 32 x 32"):
        kind(halvings=3)
    with pytest.raises(ValueError, match="positive integer as halvings"):
        kind(halvings=0)
    with pytest.raises(ValueError, match="positive integer as channels"):
        kind(channels=0)


def test_wrong_inputs_are_refused():
    encoder, decoder = NETWORKS["mlp"]()
    with pytest.raises(ValueError, match=r"takes images of shape \(B, 1, 8, 8\)"):
        encoder(torch.zeros(2, 3, 8, 8).double())
    with pytest.raises(ValueError, match=r"takes latents of shape \(N, 5\)"):
        decoder(torch.zeros(2, 4).double())
    with pytest.raises(ValueError, match="is unconditional and was given a label"):
        encoder(torch.zeros(2, 1, 8, 8).double(), torch.tensor([0, 1]))
    conditional = NETWORKS["mlp, tanh"]()[1]
    with pytest.raises(ValueError, match="was given no label"):
        conditional(torch.zeros(2, 5).double())
