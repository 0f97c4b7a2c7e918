"""Against diffusers' own class, with every weight random, in float64 and in both directions."""

import json

import pytest
import torch

from lightning_gen.interop.diffusers_unet import unet_arguments, unet_from_diffusers, unet_to_diffusers
from lightning_gen.networks.denoiser import Condition
from lightning_gen.networks.unet import UNet

diffusers = pytest.importorskip("diffusers")

DDPM = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
}
ADM = {
    **DDPM,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
    "attention_head_dim": 16,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "norm_eps": 1e-5,
}
CONFIGS = {
    "ddpm": DDPM,
    "adm": ADM,
    "adm with classes": {**ADM, "num_class_embeds": 5, "layers_per_block": 1},
    "classes": {**DDPM, "num_class_embeds": 5, "layers_per_block": 1},
    "head width": {**DDPM, "attention_head_dim": 8},
    "eps": {**DDPM, "norm_eps": 0.3},
    "symmetric padding": {**DDPM, "downsample_padding": 1, "sample_size": (8, 12)},
    "learned variance": {**DDPM, "out_channels": 6},
    "a picture": {**DDPM, "in_channels": 4},
    "odd widths": {**DDPM, "block_out_channels": (16, 24, 40), "time_embedding_dim": 20},
    "no attention in the middle": {**DDPM, "add_attention": False},
    "one level": {
        **DDPM,
        "block_out_channels": (16,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("AttnUpBlock2D",),
    },
    "wide": {
        **DDPM,
        "block_out_channels": (128,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "layers_per_block": 1,
    },
}
CIFAR10 = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
}


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 9
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return net.double().eval()


def theirs(config, seed=0):
    return randomized(diffusers.UNet2DModel(**config), seed)


def ours(net, **how):
    arguments = unet_arguments(json.loads(net.to_json_string()))
    made = UNet(**arguments, **how).double().eval()
    made.load_state_dict(unet_from_diffusers(net.state_dict(), arguments), strict=True)
    return made


def outputs(reference, net, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, reference.config.in_channels, *net.image_shape[1:])
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    # diffusers tells the time in float32 whatever the network computes in
    time = torch.tensor([0, 7, 999], dtype=torch.float32)
    label = torch.tensor([4, 0, 2]) if reference.config.num_class_embeds else None
    channels = net.image_shape[0]
    picture = x[:, channels:] if net.image_channels else None
    with torch.no_grad():
        expected = reference(x, time, label).sample
        return net(x[:, :channels], time, Condition(label=label, image=picture)), expected


@pytest.mark.parametrize("channels_last", [False, True], ids=["plain", "channels last"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_same_function(config, channels_last):
    reference = theirs(config)
    net = ours(reference, channels_last=channels_last)
    output, expected = outputs(reference, net)
    assert output.shape == expected.shape
    assert expected.std() > 0.1
    assert (output - expected).abs().max() < 1e-10


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_without_a_difference(config):
    reference = theirs(config)
    net = ours(reference)
    exported, state = unet_to_diffusers(net.state_dict(), net)
    exported = json.loads(json.dumps(exported))
    again = diffusers.UNet2DModel.from_config(exported).double().eval()
    again.load_state_dict(state, strict=True)
    for (name, value), other in zip(reference.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    net_again = ours(again)
    for (name, value), other in zip(net.state_dict().items(), net_again.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert torch.equal(outputs(again, net_again)[1], outputs(reference, net)[1])


def test_a_folder_of_ours_is_one_of_theirs(tmp_path):
    net = randomized(UNet((3, 8, 8), 8, (1, 2), 1, num_classes=4, norm_groups=4, norm_group_width=1)).float()
    config, state = unet_to_diffusers(net.state_dict(), net)
    made = diffusers.UNet2DModel.from_config(config)
    made.load_state_dict(state, strict=True)
    made.save_pretrained(tmp_path)
    loaded = diffusers.UNet2DModel.from_pretrained(tmp_path).double()
    net = net.double()
    x, time = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([3.0, 500.0])
    label = torch.tensor([4, 1])
    with torch.no_grad():
        assert (loaded(x, time, label).sample - net(x, time, Condition(label=label))).abs().max() < 1e-10


def test_the_config_of_ddpm_on_cifar10():
    arguments = unet_arguments({"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **CIFAR10})
    with torch.device("meta"):
        net, preset = UNet(**arguments), UNet.preset("ddpm_cifar10")
    assert sum(parameter.numel() for parameter in net.parameters()) == 35_746_307
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in preset.state_dict().items()
    }
    config, _ = unet_to_diffusers(preset.state_dict(), preset)
    assert {key: config[key] for key in CIFAR10} == CIFAR10


def test_the_names_of_attention_before_their_time():
    reference = theirs(DDPM)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = dict(reference.state_dict())
    for name in list(state):
        for new, before in old.items():
            if f".{new}." in name:
                state[name.replace(f".{new}.", f".{before}.")] = state.pop(name)
    arguments = unet_arguments(reference.config)
    expected = unet_from_diffusers(reference.state_dict(), arguments)
    made = unet_from_diffusers(state, arguments)
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)


def test_a_null_class_is_the_last_row():
    config = {**DDPM, "num_class_embeds": 5}
    arguments = unet_arguments(config, null_class=True)
    assert (arguments["num_classes"], arguments["null_class"]) == (4, True)
    net = UNet(**arguments)
    assert unet_to_diffusers(net.state_dict(), net)[0]["num_class_embeds"] == 5


def test_a_size_may_be_given():
    config = {**DDPM, "sample_size": None}
    assert unet_arguments(config, image_size=(8, 12))["image_shape"] == [3, 8, 12]
    with pytest.raises(ValueError, match="sample_size"):
        unet_arguments(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("center_input_sample", True),
        ("time_embedding_type", "fourier"),
        ("time_embedding_type", "learned"),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 1.4),
        ("downsample_padding", 2),
        ("act_fn", "relu"),
        ("class_embed_type", "timestep"),
        ("attn_norm_num_groups", 4),
        ("resnet_time_scale_shift", "spatial"),
        ("norm_num_groups", None),
        ("norm_num_groups", 5),
        ("out_channels", 4),
        ("num_class_embeds", 0),
        ("down_block_types", ("SkipDownBlock2D", "AttnDownBlock2D", "DownBlock2D")),
        ("down_block_types", ("DownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D")),
        ("up_block_types", ("UpBlock2D", "UpBlock2D", "UpBlock2D")),
        ("up_block_types", ("UpBlock2D", "AttnUpBlock2D")),
        ("freq_shift", 2),
        ("something_new", 1),
    ],
)
def test_what_cannot_be_mapped_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        unet_arguments({**DDPM, key: value})


def test_no_norm_before_attention_in_the_middle_is_refused():
    with pytest.raises(ValueError, match="attn_norm_num_groups"):
        unet_arguments({**ADM, "attn_norm_num_groups": None})


def test_another_class_is_refused():
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        unet_arguments({"_class_name": "UNet2DConditionModel"})


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"channel_multipliers": (2, 2)}, "channel_multipliers"),
        ({"decoder_attention": "last"}, "decoder_attention"),
        ({"resampling": "pool"}, "resampling"),
        ({"resampling": "block", "resample_projection": True}, "resample_projection"),
        ({"skip_scale": 0.5**0.5}, "skip_scale"),
        ({"embedding": "fourier"}, "embedding"),
        ({"num_classes": 2, "class_embedding": "one_hot"}, "class_embedding"),
        ({"vector_dim": 3}, "vector_dim"),
        ({"token_dim": 3}, "token_dim"),
        ({"augment_dim": 3}, "augment_dim"),
        ({"two_times": True}, "two_times"),
        ({"patch_size": 2}, "patch_size"),
        ({"image_channels": 1, "learned_variance": True}, "image_channels"),
        ({"norm_groups": 32}, "norm_groups"),
    ],
    ids=str,
)
def test_what_they_lack_is_refused_by_name(how, name):
    net = UNet(**({"image_shape": (3, 8, 8), "channels": 16, "channel_multipliers": (1, 2), "norm_groups": 4} | how))
    with pytest.raises(ValueError, match=name):
        unet_to_diffusers(net.state_dict(), net)


def test_a_state_of_another_network_is_refused():
    reference = theirs(DDPM)
    arguments, state = unet_arguments(DDPM), reference.state_dict()
    state.pop("conv_in.bias")
    with pytest.raises(ValueError, match=r"conv_in\.bias missing"):
        unet_from_diffusers(state, arguments)
    with pytest.raises(ValueError, match=r"other\.weight left over"):
        unet_from_diffusers({**reference.state_dict(), "other.weight": torch.zeros(1)}, arguments)
    with pytest.raises(ValueError, match="shape"):
        unet_from_diffusers({**reference.state_dict(), "conv_in.bias": torch.zeros(5)}, arguments)
