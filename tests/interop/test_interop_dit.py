"""Against diffusers' own class, with every weight random, in float64 and in both directions."""

import json
import math

import pytest
import torch

from lightning_gen.interop.diffusers_dit import dit_arguments, dit_config, dit_from_diffusers, dit_to_diffusers
from lightning_gen.networks.denoiser import Condition
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.embeddings import PositionalEmbedding

diffusers = pytest.importorskip("diffusers")

CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 7,
}
CONFIGS = {
    "learned variance": CONFIG,
    "fixed variance": {**CONFIG, "out_channels": 4},
    "same channels": {**CONFIG, "out_channels": None},
    "no bias": {**CONFIG, "attention_bias": False},
    "eps": {**CONFIG, "norm_eps": 0.2},
    "patches of 4": {**CONFIG, "patch_size": 4, "in_channels": 1, "out_channels": 1, "num_layers": 1},
}
ARGUMENTS = {
    "image_shape": (4, 8, 8),
    "width": 24,
    "depth": 3,
    "heads": 3,
    "num_classes": 7,
    "learned_variance": True,
    "freq_shift": 1,
    "mlp_norm_eps": 1e-5,
}


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.double().eval()


def theirs(config, seed=0):
    net = randomized(diffusers.DiTTransformer2DModel(**config), seed)
    # each block has embedders of its own, which a trained model keeps equal
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net


def inputs(config, seed=1):
    generator = torch.Generator().manual_seed(seed)
    side = config["sample_size"]
    x = torch.randn(4, config["in_channels"], side, side, dtype=torch.float64, generator=generator)
    return x, torch.tensor([0, 17, 500, 999]), torch.tensor([0, 3, 6, 7])


@pytest.fixture
def _exact_times(monkeypatch):
    """Diffusers computes the cosines and sines of the time in float32; the same in float64."""

    def embedding(timesteps, embedding_dim, flip_sin_to_cos, downscale_freq_shift, scale):
        assert flip_sin_to_cos
        assert (embedding_dim, downscale_freq_shift, scale) == (256, 1, 1)
        powers = torch.arange(128, dtype=torch.float64) / 127
        angles = timesteps[:, None].double() / 10000**powers
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    monkeypatch.setattr("diffusers.models.embeddings.get_timestep_embedding", embedding)


@pytest.mark.usefixtures("_exact_times")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_import_computes_the_same(config):
    peer = theirs(config)
    net = DiT(**dit_arguments(json.loads(peer.to_json_string()))).double().eval()
    net.load_state_dict(dit_from_diffusers(peer.state_dict(), net), strict=True)
    x, t, label = inputs(config)
    expected = peer(x, t, label).sample
    out = net(x, t.double(), Condition(label=label))
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("_exact_times")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_export_computes_the_same(config):
    net = randomized(DiT(**dit_arguments(config)), seed=3)
    given, state = dit_to_diffusers(net.state_dict(), net)
    assert json.loads(json.dumps(given)) == given
    peer = diffusers.DiTTransformer2DModel.from_config(given).double().eval()
    peer.load_state_dict(state, strict=True)
    x, t, label = inputs(config)
    torch.testing.assert_close(
        net(x, t.double(), Condition(label=label)), peer(x, t, label).sample, rtol=1e-10, atol=1e-10
    )


def test_frequencies_of_the_time_are_those_of_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0.0, 0.5, 3.0, 10.0])
    expected = get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=1)
    given = PositionalEmbedding(256, freq_shift=1, order="cos_sin")(t)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    # and not the published ones, at which the angle of the last frequency is another
    published = PositionalEmbedding(256, freq_shift=0, order="cos_sin")(t)
    assert (published - expected).abs().max() > 0.02


def test_a_saved_model_comes_back(tmp_path):
    """Through diffusers' own files: replicated weights may not share memory there."""
    net = randomized(DiT(**ARGUMENTS)).float()
    config, state = dit_to_diffusers(net.state_dict(), net)
    peer = diffusers.DiTTransformer2DModel.from_config(config)
    peer.load_state_dict(state, strict=True)
    peer.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    save_file(state, tmp_path / "ours.safetensors")
    arguments = dit_arguments(json.loads((tmp_path / "config.json").read_text()))
    other = DiT(**arguments)
    other.load_state_dict(
        dit_from_diffusers(load_file(tmp_path / "diffusion_pytorch_model.safetensors"), other), strict=True
    )
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_xl_2_has_the_numbers_of_parameters_of_both():
    with torch.device("meta"):
        net = DiT(**dit_arguments({"out_channels": 8}))
        _, state = dit_to_diffusers(net.state_dict(), net)
        back = dit_arguments(dit_config(net))
        peer = diffusers.DiTTransformer2DModel(out_channels=8)
    assert sum(value.numel() for value in net.state_dict().values()) == 674_834_720
    # 27 more embeddings of the time and the class
    more = 27 * (257 * 1152 + 1153 * 1152 + 1001 * 1152)
    assert sum(value.numel() for value in state.values()) == 674_834_720 + more == 749_826_464
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in peer.state_dict().items()
    }
    assert back == dit_arguments({"out_channels": 8})


def test_the_published_config_is_read():
    """The file of DiT-XL-2-256 as older versions of diffusers wrote it."""
    config = {
        "_class_name": "Transformer2DModel",
        "_diffusers_version": "0.12.0.dev0",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": 72,
        "cross_attention_dim": None,
        "dropout": 0.0,
        "in_channels": 4,
        "norm_elementwise_affine": False,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000,
        "num_layers": 28,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 32,
        "upcast_attention": False,
        "use_linear_projection": False,
    }
    arguments = dit_arguments(config)
    assert arguments == dit_arguments({"out_channels": 8})
    assert (arguments["width"], arguments["depth"], arguments["learned_variance"]) == (1152, 28, True)


def test_our_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        peer = diffusers.DiTTransformer2DModel()
    assert dit_arguments({}) == dit_arguments(peer.config)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
        ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
        ({"upcast_attention": True}, "upcast_attention=True"),
        ({"cross_attention_dim": 768}, "cross_attention_dim=768"),
        ({"num_vector_embeds": 16}, "num_vector_embeds=16"),
        ({"num_embeds_ada_norm": None}, "nothing of num_embeds_ada_norm"),
        ({"out_channels": 5}, "out_channels=5 and in_channels=4"),
        ({"_class_name": "SD3Transformer2DModel"}, "of a SD3Transformer2DModel"),
    ],
)
def test_configs_that_cannot_be_taken_are_refused_by_name(entries, message):
    with pytest.raises(ValueError, match=message):
        dit_arguments({**CONFIG, **entries})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mlp": "swiglu"}, "mlp='swiglu'"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0"),
        ({"norm": "rms"}, "norm='rms'"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"positions": "both", "width": 48}, "positions='both'"),
        ({"freq_shift": 0}, r"freq_shift=0 \(it has 1\)"),
        ({"null_class": False}, "null_class=False"),
        ({"num_classes": None}, "num_classes=None"),
        ({"vector_dim": 2}, "vector_dim=2"),
        ({"token_dim": 2}, "token_dim=2"),
        ({"image_channels": 2}, "image_channels=2"),
        ({"augment_dim": 2}, "augment_dim=2"),
        ({"two_times": True}, "two_times=True"),
        ({"image_shape": (4, 8, 16)}, r"image_shape=\(4, 8, 16\)"),
    ],
)
def test_networks_that_cannot_be_exported_are_refused_by_name(arguments, message):
    net = DiT(**{**ARGUMENTS, **arguments})
    with pytest.raises(ValueError, match=message):
        dit_to_diffusers(net.state_dict(), net)
    with pytest.raises(ValueError, match=message):
        dit_config(net)


@pytest.mark.parametrize(
    "name",
    [
        "timestep_embedder.linear_1.weight",
        "timestep_embedder.linear_2.bias",
        "class_embedder.embedding_table.weight",
    ],
)
def test_copies_that_differ_are_refused_by_name(name):
    net, state = DiT(**ARGUMENTS), theirs(CONFIG).state_dict()
    name = f"transformer_blocks.2.norm1.emb.{name}"
    state[name] = state[name].clone()
    state[name].flatten()[5] += 1e-9
    with pytest.raises(ValueError, match=f"'{name}' differs from 'transformer_blocks.0"):
        dit_from_diffusers(state, net)


def test_weights_that_do_not_fit_are_refused_by_name():
    net = DiT(**ARGUMENTS)
    state = dict(theirs(CONFIG).state_dict())
    with pytest.raises(ValueError, match=r"no place for the weights 'extra' and 1 more"):
        dit_from_diffusers({**state, "extra": torch.zeros(1), "more": torch.zeros(1)}, net)
    with pytest.raises(ValueError, match=r"has no 'proj_out_1\.bias'"):
        dit_from_diffusers({k: v for k, v in state.items() if k != "proj_out_1.bias"}, net)
    with pytest.raises(ValueError, match=r"'final.weight' has the shape \(3, 24\)"):
        dit_from_diffusers({**state, "proj_out_2.weight": torch.zeros(3, 24)}, net)
    deeper = DiT(**{**ARGUMENTS, "depth": 4})
    with pytest.raises(ValueError, match=r"has no 'transformer_blocks\.3"):
        dit_from_diffusers(state, deeper)
    with pytest.raises(ValueError, match=r"lacks 'blocks\.3"):
        dit_to_diffusers(net.state_dict(), deeper)
    shallow = DiT(**{**ARGUMENTS, "depth": 2})
    with pytest.raises(ValueError, match=r"no place for the weights 'transformer_blocks\.2"):
        dit_from_diffusers(state, shallow)
    with pytest.raises(ValueError, match=r"no place for 'blocks\.2"):
        dit_to_diffusers(net.state_dict(), shallow)


def test_half_precision_stays_half():
    net = DiT(**ARGUMENTS).bfloat16()
    _, state = dit_to_diffusers(net.state_dict(), net)
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert {value.dtype for value in dit_from_diffusers(state, net).values()} == {torch.bfloat16}


def test_the_label_none_is_the_last_row():
    config = {**CONFIG, "num_layers": 1}
    peer = theirs(config)
    rows = peer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    assert len(rows) == config["num_embeds_ada_norm"] + 1
    net = DiT(**dit_arguments(config)).double()
    assert torch.equal(dit_from_diffusers(peer.state_dict(), net)["classes.weight"][7], rows[7])
    assert math.prod(net.classes.weight.shape) == rows.numel()
