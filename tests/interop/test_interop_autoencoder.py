"""Against diffusers' own classes, with every weight random, in float64 and in both directions."""

import json

import pytest
import torch

from lightning_gen.interop.diffusers_autoencoder import autoencoder_parts, autoencoder_to_diffusers
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
KL_CONFIGS = {
    "f4": SMALL,
    "attention": {**SMALL, **ATTENTION},
    "no attention in the middle": {**SMALL, "mid_block_add_attention": False},
    "without 1x1": {**SMALL, "use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16},
    "1x1 at one end": {**SMALL, "use_post_quant_conv": False},
    "gray, not square": {**SMALL, "in_channels": 1, "out_channels": 1, "sample_size": (8, 12)},
    "other channels out": {**SMALL, "in_channels": 4},
    "one level": {
        **SMALL,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "block_out_channels": (12,),
        "layers_per_block": 1,
    },
    # Winograd's convolutions from this width on
    "wide": {**SMALL, "block_out_channels": (128, 128, 128), "layers_per_block": 1, "norm_num_groups": 32},
}
VQ_CONFIGS = {
    "vq": {**SMALL, "num_vq_embeddings": 11},
    "vq, narrow codes": {**SMALL, **ATTENTION, "num_vq_embeddings": 11, "latent_channels": 6, "vq_embed_dim": 2},
}
CONFIGS = {name: (diffusers.AutoencoderKL, config) for name, config in KL_CONFIGS.items()}
CONFIGS |= {name: (diffusers.VQModel, config) for name, config in VQ_CONFIGS.items()}
SD = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 9
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return net.double().eval()


def theirs(kind, config):
    return randomized(kind(**config))


def ours(reference, **how):
    parts = autoencoder_parts(json.loads(reference.to_json_string()), reference.state_dict())
    made = []
    for kind, arguments, state in (
        (ConvolutionalEncoder, parts.encoder, parts.encoder_state),
        (ConvolutionalDecoder, parts.decoder, parts.decoder_state),
    ):
        net = kind(**json.loads(json.dumps(arguments)), **how).double().eval()
        net.load_state_dict(state, strict=True)
        made.append(net)
    return parts, *made


@torch.no_grad()
def told(reference, images, latents):
    """Return what the encoder says before anything is drawn or quantized, and the image."""
    if isinstance(reference, diffusers.VQModel):
        return reference.encode(images).latents, reference.decode(latents, force_not_quantize=True).sample
    return reference.encode(images).latent_dist.parameters, reference.decode(latents).sample


def inputs(encoder, decoder, scale=1):
    generator = torch.Generator().manual_seed(1)
    channels, height, width = encoder.image_shape
    images = torch.randn(2, channels, scale * height, scale * width, generator=generator, dtype=torch.float64)
    size = (scale * side for side in encoder.grid)
    return images, torch.randn(2, decoder.in_channels, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("channels_last", [False, True], ids=["plain", "channels last"])
@pytest.mark.parametrize(("kind", "config"), CONFIGS.values(), ids=CONFIGS)
def test_the_same_function(kind, config, channels_last):
    reference = theirs(kind, config)
    _, encoder, decoder = ours(reference, channels_last=channels_last)
    images, latents = inputs(encoder, decoder)
    expected = told(reference, images, latents)
    with torch.no_grad():
        made = encoder(images), decoder(latents)
    for output, wanted in zip(made, expected, strict=True):
        assert output.shape == wanted.shape
        assert wanted.std() > 0.02
        assert (output - wanted).abs().max() < 1e-10


def test_the_same_function_at_another_size():
    reference = theirs(*CONFIGS["attention"])
    _, encoder, decoder = ours(reference)
    images, latents = inputs(encoder, decoder, scale=3)
    expected = told(reference, images, latents)
    with torch.no_grad():
        assert (encoder(images) - expected[0]).abs().max() < 1e-10
        assert (decoder(latents) - expected[1]).abs().max() < 1e-10


def test_the_same_gradients():
    reference = theirs(*CONFIGS["attention"])
    _, encoder, decoder = ours(reference)
    images, latents = inputs(encoder, decoder)
    (reference.encode(images).latent_dist.parameters.square().sum() + reference.decode(latents).sample.sum()).backward()
    (encoder(images).square().sum() + decoder(latents).sum()).backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    parts = autoencoder_parts(json.loads(reference.to_json_string()), gradients)
    for net, wanted in ((encoder, parts.encoder_state), (decoder, parts.decoder_state)):
        for name, parameter in net.named_parameters():
            assert (parameter.grad - wanted[name]).abs().max() < 1e-9 * (1 + wanted[name].abs().max()), name


@pytest.mark.parametrize(("kind", "config"), CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_without_a_difference(kind, config):
    reference = theirs(kind, config)
    parts, encoder, decoder = ours(reference)
    exported, state = autoencoder_to_diffusers(encoder, decoder, parts.codebook, parts.mean, parts.std)
    exported = json.loads(json.dumps(exported))
    again = kind.from_config(exported).double().eval()
    again.load_state_dict(state, strict=True)
    for (name, value), other in zip(reference.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert autoencoder_parts(exported, state).std == pytest.approx(parts.std, rel=1e-15)
    same = {key: reference.config[key] for key in exported if key not in ("_class_name", "scaling_factor")}
    if kind is diffusers.VQModel:
        same["vq_embed_dim"] = exported["vq_embed_dim"]
    assert {key: exported[key] for key in same} == json.loads(json.dumps(same))


def test_a_folder_of_ours_is_one_of_theirs(tmp_path):
    torch.manual_seed(0)
    how = {"channels": 8, "channel_multipliers": (1, 2), "blocks": 1, "norm_groups": 4, "attention_levels": (-1,)}
    encoder, decoder = ConvolutionalEncoder((3, 8, 8), 8, **how), ConvolutionalDecoder((3, 8, 8), 4, **how)
    config, state = autoencoder_to_diffusers(encoder, decoder, mean=[0.5], std=[2.0])
    made = diffusers.AutoencoderKL.from_config(config)
    made.load_state_dict(state, strict=True)
    made.save_pretrained(tmp_path)
    loaded = diffusers.AutoencoderKL.from_pretrained(tmp_path).double()
    assert (loaded.config.scaling_factor, loaded.config.shift_factor) == (0.5, 0.5)
    images, latents = inputs(encoder, decoder)
    expected = told(loaded, images, latents)
    with torch.no_grad():
        assert (encoder.double()(images) - expected[0]).abs().max() < 1e-10
        assert (decoder.double()(latents) - expected[1]).abs().max() < 1e-10


def test_the_autoencoder_of_stable_diffusion_has_its_83_653_863_parameters():
    with torch.device("meta"):
        reference = diffusers.AutoencoderKL.from_config(SD)
        parts = autoencoder_parts(SD, reference.state_dict())
        nets = ConvolutionalEncoder(**parts.encoder), ConvolutionalDecoder(**parts.decoder)
    assert sum(parameter.numel() for parameter in reference.parameters()) == 83_653_863
    assert sum(parameter.numel() for net in nets for parameter in net.parameters()) == 83_653_863
    assert (parts.encoder["image_shape"], nets[0].grid) == ([3, 512, 512], (64, 64))
    assert parts.bottleneck == {"channels": 4}
    assert (parts.scaling_factor, parts.shift_factor) == (0.18215, 0.0)
    config, _ = autoencoder_to_diffusers(*nets, mean=parts.mean, std=parts.std)
    assert {key: config[key] for key in SD if key[0] != "_"} == {key: SD[key] for key in SD if key[0] != "_"}
    assert config["scaling_factor"] == pytest.approx(0.18215, rel=1e-15)


def test_the_names_and_shapes_of_attention_before_their_time():
    reference = theirs(*CONFIGS["f4"])
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = dict(reference.state_dict())
    for name in list(state):
        for new, before in old.items():
            if f".{new}." in name:
                value = state.pop(name)
                state[name.replace(f".{new}.", f".{before}.")] = value[:, :, None, None] if value.dim() == 2 else value
    config = json.loads(reference.to_json_string())
    expected, made = autoencoder_parts(config, reference.state_dict()), autoencoder_parts(config, state)
    assert any(".query." in name for name in state)
    for ours_again, wanted in (
        (made.encoder_state, expected.encoder_state),
        (made.decoder_state, expected.decoder_state),
    ):
        assert ours_again.keys() == wanted.keys()
        assert all(torch.equal(ours_again[name], wanted[name]) for name in wanted)


# ---------------------------------------------------------------------- whitening


def whitened(**config):
    reference = theirs(diffusers.AutoencoderKL, SMALL)
    return autoencoder_parts({**SMALL, **config}, reference.state_dict())


def test_latents_are_whitened_as_their_pipelines_do():
    parts = whitened(scaling_factor=0.5, shift_factor=0.25)
    z = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in (parts.mean, parts.std))
    assert ((z - mean) / std - (z - 0.25) * 0.5).abs().max() < 1e-15
    by_channel = whitened(scaling_factor=0.5, latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8])
    assert (by_channel.mean, by_channel.std) == ([1, 2, 3, 4], [2, 4, 8, 16])


def test_whitening_by_channel_goes_out_and_comes_back():
    _, encoder, decoder = ours(theirs(diffusers.AutoencoderKL, SMALL))
    mean, std = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 8.0]
    config, state = autoencoder_to_diffusers(encoder, decoder, mean=mean, std=std)
    assert config["scaling_factor"] == 1
    parts = autoencoder_parts(config, state)
    assert (parts.mean, parts.std) == (mean, std)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "relu"),
        ("norm_num_groups", 5),
        ("norm_num_groups", None),
        ("down_block_types", ("DownEncoderBlock2D", "SkipDownBlock2D", "DownEncoderBlock2D")),
        ("up_block_types", ("UpDecoderBlock2D",)),
        ("scaling_factor", 0.0),
        ("latents_mean", [1.0]),
        ("something_new", 1),
        ("num_vq_embeddings", 4),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(key, value):
    state = theirs(diffusers.AutoencoderKL, SMALL).state_dict()
    with pytest.raises(ValueError, match=key):
        autoencoder_parts({**SMALL, key: value}, state)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"_class_name": "VQModel", "norm_type": "spatial"}, "norm_type"),
        ({"shift_factor": 0.1, "latents_mean": [0.0] * 4}, "shift_factor"),
        ({"sample_size": 10}, "8 x 8"),
    ],
)
def test_other_configs_are_refused(config, what):
    with pytest.raises(ValueError, match=what):
        autoencoder_parts({**SMALL, **config}, theirs(diffusers.AutoencoderKL, SMALL).state_dict())


def test_a_size_may_be_given():
    state = theirs(diffusers.AutoencoderKL, SMALL).state_dict()
    parts = autoencoder_parts({**SMALL, "sample_size": 10}, state, image_size=(8, 12))
    assert parts.encoder["image_shape"] == [3, 8, 12]


def test_a_state_of_another_network_is_refused():
    state = theirs(diffusers.VQModel, VQ_CONFIGS["vq"]).state_dict()
    config = {"_class_name": "VQModel", **VQ_CONFIGS["vq"]}
    for name in ("quant_conv.bias", "quantize.embedding.weight"):
        with pytest.raises(ValueError, match=f"{name} missing"):
            autoencoder_parts(config, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=r"other\.weight left over"):
        autoencoder_parts(config, {**state, "other.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        autoencoder_parts(config, {**state, "encoder.conv_in.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match="the config says"):
        autoencoder_parts({**config, "num_vq_embeddings": 3}, state)


@pytest.mark.parametrize(
    ("encoder", "decoder", "what"),
    [
        ({"blocks": 1}, {}, "blocks"),
        ({"channel_multipliers": (1, 2)}, {}, "widths"),
        ({}, {"middle_attention": False}, "middle_attention"),
        ({"norm_groups": 3}, {}, "groups"),
        ({"norm_eps": 1e-5}, {"norm_eps": 1e-5}, "norm_eps"),
        ({"out_channels": 6}, {}, "6 channels"),
        ({"quant_channels": 6}, {}, "quant_channels"),
    ],
)
def test_what_they_lack_is_refused_by_name(encoder, decoder, what):
    common = {"channels": 8, "channel_multipliers": (1, 2, 2), "norm_groups": 4}
    nets = (
        ConvolutionalEncoder((3, 16, 16), **{"out_channels": 8} | common | encoder),
        ConvolutionalDecoder((3, 16, 16), **{"in_channels": 4} | common | decoder),
    )
    with pytest.raises(ValueError, match=what):
        autoencoder_to_diffusers(*nets)


@pytest.mark.parametrize(
    ("encoder", "how", "what"),
    [
        ({"out_channels": 4, "quant_channels": 6}, {}, "quant_channels"),
        ({"out_channels": 4}, {"codebook": torch.zeros(5, 3)}, "length 3"),
        ({"out_channels": 4}, {"mean": [0.5]}, "no mean"),
        ({"out_channels": 4}, {"std": [0.5, 0.5]}, "2 numbers"),
    ],
)
def test_what_a_vq_model_lacks_is_refused_by_name(encoder, how, what):
    common = {"channels": 8, "channel_multipliers": (1, 2), "norm_groups": 4}
    nets = ConvolutionalEncoder((3, 8, 8), **encoder, **common), ConvolutionalDecoder((3, 8, 8), 4, **common)
    with pytest.raises(ValueError, match=what):
        autoencoder_to_diffusers(*nets, **{"codebook": torch.zeros(5, 4)} | how)
