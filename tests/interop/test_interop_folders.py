"""Folders in and out against diffusers: tiny networks with random weights, in float64."""

import json
import os
import pickle
import shutil

import pytest
import torch
from exact_diffusers import exact_scheduler, exact_times
from safetensors.torch import load_file, save_file

from lightning_gen.checkpoint_files import AtomicCheckpointIO
from lightning_gen.checkpoints import load_module
from lightning_gen.diffusion import (
    DDIM,
    DDPM,
    EDM,
    Clip,
    DiscreteVP,
    DPMSolverPP2M,
    Euler,
    InpaintingMask,
    Karras,
    Leading,
    Linspace,
    RectifiedFlow,
    Trailing,
    UniPC,
    V,
)
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.interop import load_diffusers, save_diffusers
from lightning_gen.interop.grids import FlowMatching, MultistepSpacing
from lightning_gen.networks.denoiser import Condition
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.unet import UNet

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests")

pytestmark = [
    # of numpy 2, where diffusers turns a tensor into an array
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

TABLE = {"num_train_timesteps": 20, "beta_start": 0.002, "beta_end": 0.3}
UNET = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
}
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 4,
    "patch_size": 2,
    # the pipeline takes class 1000 for "none"
    "num_embeds_ada_norm": 1000,
}
SMALL_UNET = {"image_shape": [2, 8, 8], "channels": 8, "channel_multipliers": [1, 2], "blocks": 1, "norm_groups": 4}
SMALL_UNET |= {"norm_group_width": 1}
SMALL_DIT = {"image_shape": [2, 4, 4], "width": 8, "depth": 2, "heads": 2, "num_classes": 1000, "freq_shift": 1}


def randomized(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return net.double().eval()


def their_unet(**changes):
    return randomized(diffusers.UNet2DModel(**{**UNET, **changes}))


def their_dit(**changes):
    net = randomized(diffusers.DiTTransformer2DModel(**{**TRANSFORMER, **changes}))
    # each block has embedders of its own, which a trained model keeps equal
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net


@pytest.fixture
def exact(monkeypatch):
    """diffusers in float64, given the class of a scheduler."""
    default = torch.get_default_dtype()
    exact_times(monkeypatch)
    torch.set_default_dtype(torch.float64)
    yield lambda cls: exact_scheduler(monkeypatch, cls)
    torch.set_default_dtype(default)


class Fed:
    """A stream that gives the numbers of a generator, the first ones scaled to diffusers' first state."""

    dtype = torch.float64

    def __init__(self, n, first, seed):
        self.n, self.scale, self.generator = n, first, torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        drawn = torch.randn(self.n, *shape, generator=self.generator, dtype=torch.float64) * self.scale
        self.scale = 1.0
        return drawn


def images_of(module, steps, n=2, seed=3, cond=None, **how):
    """Draw in [0, 1] from the noise of that seed, as diffusers' pipelines begin: with variance one."""
    first = 1 / module.grid.points(steps, module.path)[0].sigma
    with torch.no_grad():
        return module.draw(Fed(n, first, seed), n, cond, steps=steps, **how) / 2 + 0.5


def pipeline_of(kind, folder):
    made = kind.from_pretrained(folder)
    made.unet.double()
    made.set_progress_bar_config(disable=True)
    return made


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- from diffusers

PIPELINES = {
    "ddpm": (diffusers.DDPMPipeline, diffusers.DDPMScheduler, {}, {}, DDPM),
    "ddpm large": (diffusers.DDPMPipeline, diffusers.DDPMScheduler, {"variance_type": "fixed_large"}, {}, DDPM),
    "ddim": (
        diffusers.DDIMPipeline,
        diffusers.DDIMScheduler,
        {"clip_sample": False, "timestep_spacing": "trailing"},
        {},
        DDIM,
    ),
    "ddim clipped": (diffusers.DDIMPipeline, diffusers.DDIMScheduler, {}, {"use_clipped_model_output": True}, DDIM),
    "dpm": (diffusers.DDPMPipeline, diffusers.DPMSolverMultistepScheduler, {}, {}, DPMSolverPP2M),
}


@pytest.mark.parametrize("case", PIPELINES)
def test_a_pipeline_draws_the_same_images(tmp_path, exact, case):
    pipeline, scheduler, fields, how, solver = PIPELINES[case]
    exact(scheduler)
    pipeline(unet=their_unet(), scheduler=scheduler(**TABLE, **fields)).save_pretrained(tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    module = load_diffusers(tmp_path)
    assert type(module.solver) is solver
    assert module.dtype == torch.float64
    assert not module.training
    ours = images_of(module, 10)
    assert ours.std() > 0.02
    theirs = pipeline_of(pipeline, tmp_path)(
        batch_size=2,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=10,
        output_type="pt",
        return_dict=False,
        **how,
    )[0]
    same(ours, theirs)


@pytest.mark.parametrize(
    ("scheduler", "fields", "steps"),
    [
        (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, 10),
        (diffusers.HeunDiscreteScheduler, {}, 20),
        (diffusers.UniPCMultistepScheduler, {"timestep_spacing": "trailing"}, 10),
        (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 2.0}, 7),
        (diffusers.EDMDPMSolverMultistepScheduler, {}, 9),
    ],
)
def test_parts_without_a_pipeline_draw_the_same_images(tmp_path, exact, scheduler, fields, steps):
    """Folders of parts, sampled from as diffusers' documentation does."""
    exact(scheduler)
    table = TABLE if hasattr(scheduler(), "alphas_cumprod") else {}
    unet, made = their_unet(), scheduler(**table, **fields)
    unet.save_pretrained(tmp_path / "unet")
    made.save_pretrained(tmp_path / "scheduler")
    module = load_diffusers(tmp_path)

    made.set_timesteps(steps)
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scale = float(getattr(made, "init_noise_sigma", 1.0))
    x = x * scale
    with torch.no_grad():
        for t in made.timesteps:
            given = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
            x = made.step(unet(given, t).sample, t, x).prev_sample
    first = module.grid.points(steps, module.path)[0]
    # the state of Euler's and Heun's is x / alpha
    state = scale * (first.alpha if scale > 1 and module.path.steps else 1.0)
    ours = module.draw(Fed(2, state / first.sigma, 3), 2, steps=steps)
    assert (ours.abs() < 1).any()
    same(ours, x.clamp(-1, 1))


@pytest.mark.parametrize("scheduler_at", ["beside", "folder", "none"])
def test_a_bare_model(tmp_path, exact, scheduler_at):
    unet = their_unet(num_class_embeds=5)
    unet.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()
    if scheduler_at != "none":
        place = tmp_path if scheduler_at == "beside" else tmp_path / "scheduler"
        diffusers.DDIMScheduler(**TABLE, prediction_type="v_prediction").save_pretrained(place)
        module = load_diffusers(tmp_path)
        assert isinstance(module.parameterization, V)
        assert module.path.steps == 20
        assert module.sampling_steps == 20
    else:
        with pytest.warns(UserWarning, match=r"has no scheduler_config.json: taken is DDPM's"):
            module = load_diffusers(tmp_path)
        assert module.path.steps == module.sampling_steps == 1000
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0, 3, 11, 19])
    label = torch.tensor([0, 4, 1, 2])
    same(module.net(x, t.double(), Condition(label=label)), unet(x, t, class_labels=label).sample)
    assert module.num_classes == 5
    assert not module.net.null_class


def test_the_last_class_of_a_unet_may_stand_for_none(tmp_path):
    their_unet(num_class_embeds=5).save_pretrained(tmp_path)
    diffusers.DDIMScheduler(**TABLE).save_pretrained(tmp_path)
    module = load_diffusers(tmp_path, null_class=True)
    assert module.num_classes == 4
    assert module.net.null_class
    assert module.sample(1, cond=3, guidance=2.0, seed=0).shape == (1, 2, 8, 8)


def their_vae():
    """In the place of an autoencoder: its latents are the images."""

    class Identity(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float64

        class config:  # noqa: N801
            scaling_factor = 1.0

        def decode(self, latents):
            return type("Decoded", (), {"sample": latents})

    return Identity()


@pytest.mark.parametrize("guidance", [1.0, 1.7])
@pytest.mark.parametrize("folder_class", ["DiTTransformer2DModel", "Transformer2DModel"])
def test_a_dit_with_its_null_class_and_learned_variance(tmp_path, exact, guidance, folder_class):
    exact(diffusers.DDIMScheduler)
    transformer, scheduler = their_dit(), diffusers.DDIMScheduler(**TABLE, clip_sample=False)
    transformer.save_pretrained(tmp_path / "transformer")
    scheduler.save_pretrained(tmp_path / "scheduler")
    rewritten(tmp_path / "transformer/config.json", _class_name=folder_class)
    module = load_diffusers(tmp_path)
    assert module.net.learned_variance
    assert module.net.null_class
    assert module.num_classes == 1000
    pipeline = diffusers.DiTPipeline(transformer, their_vae(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        class_labels=[3, 999],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=10,
        output_type="pt",
    ).images
    same(images_of(module, 10, cond=[3, 999], guidance=guidance), theirs)


def test_learned_variance_of_a_unet(tmp_path, exact):
    exact(diffusers.DDPMScheduler)
    scheduler = diffusers.DDPMScheduler(**TABLE, variance_type="learned_range")
    diffusers.DDPMPipeline(unet=their_unet(out_channels=4), scheduler=scheduler).save_pretrained(tmp_path)
    module = load_diffusers(tmp_path)
    assert module.net.learned_variance
    theirs = pipeline_of(diffusers.DDPMPipeline, tmp_path)(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=20, output_type="pt"
    ).images
    same(images_of(module, 20), theirs)


def test_older_folders(tmp_path):
    """The network beside the index, its weights as a pickle of tensors."""
    unet = their_unet()
    scheduler = diffusers.DDPMScheduler(**TABLE)
    diffusers.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(tmp_path / "new")
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "new/unet", old)
    shutil.copy(tmp_path / "new/model_index.json", old)
    shutil.copy(tmp_path / "new/scheduler/scheduler_config.json", old)
    (old / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(unet.state_dict(), old / "diffusion_pytorch_model.bin")
    first, second = load_diffusers(tmp_path / "new"), load_diffusers(old)
    assert_equal(first.state_dict(), second.state_dict())


def test_single_precision_stays_and_half_becomes_single(tmp_path):
    diffusers.DDIMScheduler(**TABLE).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.float16):
        unet = their_unet().to(dtype)
        unet.save_pretrained(tmp_path)
        module = load_diffusers(tmp_path)
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        bias = module.net.input.bias
        assert torch.equal(bias, unet.conv_in.bias.float())


def test_loading_moves_no_random_numbers(tmp_path):
    their_unet().save_pretrained(tmp_path)
    diffusers.DDIMScheduler(**TABLE).save_pretrained(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_diffusers(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoints_of_what_was_loaded_load_by_themselves(tmp_path):
    their_dit().float().save_pretrained(tmp_path / "transformer")
    diffusers.DPMSolverMultistepScheduler(**TABLE, thresholding=True).save_pretrained(tmp_path / "scheduler")
    module = load_diffusers(tmp_path)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "model.ckpt")
    again = load_module(tmp_path / "model.ckpt")
    assert type(again.grid) is MultistepSpacing
    assert type(again.threshold) is Clip
    assert torch.equal(again.sample(2, seed=0, steps=5, cond=1), module.sample(2, seed=0, steps=5, cond=1))


# ---------------------------------------------------------------------- to diffusers


def our_unet(solver=None, grid=None, path=None, seed=0, net=None, **arguments):
    made = randomized(UNet(**(SMALL_UNET | (net or {}))), seed)
    path = path or DiscreteVP(20, beta_start=0.002, beta_end=0.3)
    return Diffusion(made, path, solver=solver, grid=grid, sampling_steps=10, **arguments).double().eval()


def our_dit(seed=0, net=None, **arguments):
    made = randomized(DiT(**(SMALL_DIT | (net or {}))), seed)
    path = DiscreteVP(20, beta_start=0.002, beta_end=0.3)
    return Diffusion(made, path, sampling_steps=10, **arguments).double().eval()


@pytest.mark.parametrize(
    ("arguments", "pipeline", "scheduler"),
    [
        ({}, "DDIMPipeline", "DDIMScheduler"),
        (
            # on another grid diffusers adds 1e-10 of noise to the image
            {"solver": DDPM(), "threshold": Clip(), "grid": Leading()},
            "DDPMPipeline",
            "DDPMScheduler",
        ),
        (
            {"solver": DDPM("learned"), "grid": Leading(), "net": {"learned_variance": True}},
            "DDPMPipeline",
            "DDPMScheduler",
        ),
        ({"solver": DPMSolverPP2M(), "parameterization": V()}, "DDPMPipeline", "DPMSolverMultistepScheduler"),
        (
            {"path": DiscreteVP(20, zero_terminal_snr=True), "parameterization": V()},
            "DDIMPipeline",
            "DDIMScheduler",
        ),
        ({"net": {"resampling": "conv_asymmetric", "head_dim": 4}}, "DDIMPipeline", "DDIMScheduler"),
    ],
)
def test_a_unet_goes_out_as_a_pipeline_that_draws_the_same(tmp_path, exact, arguments, pipeline, scheduler):
    exact(getattr(diffusers, scheduler))
    module = our_unet(**arguments)
    save_diffusers(module, tmp_path / "out")
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index == {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DModel"],
    }
    theirs, report = diffusers.UNet2DModel.from_pretrained(tmp_path / "out/unet", output_loading_info=True)
    assert not any(report.values())
    assert theirs.dtype == torch.float64
    peer = pipeline_of(diffusers.DiffusionPipeline, tmp_path / "out")
    assert type(peer).__name__ == pipeline
    images = peer(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=10, output_type="pt"
    ).images
    same(images_of(module, 10), images)


def test_a_dit_goes_out_as_the_parts_of_a_pipeline(tmp_path, exact):
    exact(diffusers.DDIMScheduler)
    module = our_dit(net={"learned_variance": True})
    save_diffusers(module, tmp_path / "out")
    assert not (tmp_path / "out/model_index.json").exists()
    transformer, report = diffusers.DiTTransformer2DModel.from_pretrained(
        tmp_path / "out/transformer", output_loading_info=True
    )
    assert not any(report.values())
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "out/scheduler")
    pipeline = diffusers.DiTPipeline(transformer, their_vae(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        class_labels=[0, 7],
        guidance_scale=1.5,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=10,
        output_type="pt",
    ).images
    same(images_of(module, 10, cond=[0, 7], guidance=1.5), theirs)


def test_averages_go_out_by_their_names(tmp_path):
    module = our_unet(ema_half_lives=[1000])
    randomized(module.net_ema, seed=9)
    for weights in ("raw", "ema", None):
        save_diffusers(module, tmp_path / str(weights), weights)
    files = {name: load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in ("raw", "ema")}
    assert torch.equal(files["raw"]["conv_in.bias"], module.net.input.bias)
    average = module.net_ema.pick(module.net, "ema")
    assert torch.equal(files["ema"]["conv_in.bias"], average.input.bias)
    assert not torch.equal(average.input.bias, module.net.input.bias)
    # as sample does without a name
    assert_equal(load_file(tmp_path / "None/unet/diffusion_pytorch_model.safetensors"), files["ema"])


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.dtype == second[name].dtype


def plain(part):
    return part and (type(part), {name: value for name, value in vars(part).items() if not name.startswith("_")})


MODELS = {
    "ddim": lambda: our_unet(),
    "single precision": lambda: our_unet().float(),
    "offset": lambda: our_unet(grid=Leading(1, "first"), threshold=Clip()),
    "cosine": lambda: our_unet(path=DiscreteVP(20, "cosine"), parameterization=V()),
    "unipc": lambda: our_unet(UniPC(3), MultistepSpacing("leading", 1)),
    "flow": lambda: our_unet(Euler(), FlowMatching(3.0), RectifiedFlow()),
    "edm": lambda: our_unet(Euler(), Karras(5.0), EDM(rho=5.0)),
    "classes": lambda: our_unet(net={"num_classes": 4}),
    "classes without none": lambda: our_unet(net={"num_classes": 4, "null_class": False}),
    "wide": lambda: our_unet(net={"image_shape": [2, 8, 16], "channel_multipliers": [1, 2, 2]}),
    "dit": lambda: our_dit(),
    "dit learned": lambda: our_dit(net={"learned_variance": True}, solver=DDPM("learned"), grid=Leading()),
}


@pytest.mark.parametrize("case", MODELS)
def test_out_and_in_again_is_the_identity(tmp_path, case):
    module = MODELS[case]().eval()
    save_diffusers(module, tmp_path / "a")
    again = load_diffusers(tmp_path / "a")
    assert_equal(module.net.state_dict(), again.net.state_dict())
    for name in ("path", "parameterization", "grid", "solver", "threshold"):
        assert plain(getattr(again, name)) == plain(getattr(module, name))
    assert again.sampling_steps == module.sampling_steps
    assert again.num_classes == module.num_classes
    assert again.net.null_class == module.net.null_class
    cond = None if module.num_classes is None else 1
    assert torch.equal(again.sample(2, seed=1, cond=cond), module.sample(2, seed=1, cond=cond))
    # and the folder it gives is the same one
    save_diffusers(again, tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) >= 3
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


# ---------------------------------------------------------------------- what is refused


@pytest.fixture
def folder(tmp_path):
    """A pipeline of this package's own, whole."""
    save_diffusers(our_unet().float(), tmp_path / "pipeline")
    return tmp_path / "pipeline"


def rewritten(path, **entries):
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "remove"}))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_files_that_are_not_there(folder):
    with pytest.raises(FileNotFoundError, match=r"hf download google/ddpm-cifar10-32"):
        load_diffusers("google/ddpm-cifar10-32")
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no diffusion_pytorch_model.safetensors in .*unet.* it holds: config.j"
    ):
        load_diffusers(folder)
    (folder / "unet/config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no file .*unet/config.json; the folder holds: nothing"):
        load_diffusers(folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*/config.json; the folder holds: model_index.json"):
        load_diffusers(folder)


def test_a_scheduler_that_the_index_names_is_needed(folder):
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler_config.json"):
        load_diffusers(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -1000])
def test_weights_cut_short(folder, keep):
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[:keep])
    with pytest.raises(ValueError, match="is damaged or cut short"):
        load_diffusers(folder)


def test_weights_with_a_damaged_header(folder):
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[20:40] = os.urandom(20)
    (folder / WEIGHTS).write_bytes(raw)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        load_diffusers(folder)


def test_weights_of_another_shape_missing_and_too_many(folder):
    state = load_file(folder / WEIGHTS)
    save_file({**state, "conv_in.bias": torch.zeros(9)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"conv_in.bias"):
        load_diffusers(folder)
    save_file({name: value for name, value in state.items() if name != "conv_in.bias"}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"conv_in.bias missing"):
        load_diffusers(folder)
    save_file({**state, "extra": torch.zeros(9)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"extra left over"):
        load_diffusers(folder)


@pytest.mark.parametrize(
    ("file", "entries", "said"),
    [
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn='gelu'"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "exp"}, "beta_schedule='exp'"),
        ("scheduler/scheduler_config.json", {"_sampling_steps": 21}, "at most as many"),
        ("model_index.json", {"unet": ["diffusers", "UNet3DModel"]}, "no network that can be mapped 'UNet3DModel'"),
        ("model_index.json", {"unet": "remove"}, "names neither a unet nor a transformer"),
        ("model_index.json", {"text_encoder": ["transformers", "X"]}, "has text_encoder beside network, autoencoder"),
        ("model_index.json", {"transformer": ["diffusers", "X"]}, "a unet and a transformer"),
        ("model_index.json", {"scheduler": ["diffusers", "PNDMScheduler"]}, "'PNDMScheduler'"),
        ("model_index.json", {"scheduler": ["builtins", "eval"]}, "no scheduler that can be mapped 'eval'"),
    ],
)
def test_entries_that_cannot_be_mapped(folder, file, entries, said):
    rewritten(folder / file, **entries)
    with pytest.raises(ValueError, match=said):
        load_diffusers(folder)


def test_configs_that_are_none(folder):
    (folder / "unet/config.json").write_text("{'a': 1}")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        load_diffusers(folder)
    (folder / "unet/config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        load_diffusers(folder)
    (folder / "unet/config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"holds a list, and a config is an object"):
        load_diffusers(folder)


def test_a_model_without_a_class_name(folder):
    rewritten(folder / "unet/config.json", _class_name="remove")
    with pytest.raises(ValueError, match=r"does not say its _class_name; known are UNet2DModel"):
        load_diffusers(folder / "unet")


def test_a_scheduler_of_learned_variance_needs_a_network_of_it(folder):
    rewritten(folder / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    rewritten(folder / "scheduler/scheduler_config.json", variance_type="learned_range", timestep_spacing="leading")
    with pytest.raises(ValueError, match="asks for a learned variance, and the UNet2DModel has none"):
        load_diffusers(folder)


def test_further_parts_of_a_pipeline_are_left_out_when_that_is_allowed(folder):
    rewritten(folder / "model_index.json", tokenizer=["transformers", "X"], safety_checker=[None, None])
    with pytest.warns(
        UserWarning, match="has tokenizer beside network, autoencoder and scheduler; the others are read"
    ):
        load_diffusers(folder, strict=False)


class Harm:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_pickles_execute_nothing(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    binary, marker = folder / "unet/diffusion_pytorch_model.bin", tmp_path / "harm"
    torch.save({"conv_in.bias": Harm(marker)}, binary)
    with pytest.raises(ValueError, match="might execute code that is in the file, so it is refused"):
        load_diffusers(folder)
    binary.write_bytes(pickle.dumps(Harm(marker), protocol=2))
    with pytest.raises(ValueError, match="refused"):
        load_diffusers(folder)
    assert not marker.exists()
    with pytest.raises(ValueError, match="refused"):  # noqa: PT012
        binary.write_bytes(b"nothing like a pickle")
        load_diffusers(folder)
    torch.save({"a": 3}, binary)
    with pytest.raises(ValueError, match="holds no state dict"):
        load_diffusers(folder)
    torch.save({"a": torch.zeros(30)}, binary)
    binary.write_bytes(binary.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_diffusers(folder)
    # the one that is harmful does harm by other means
    pickle.loads(pickle.dumps(Harm(marker))).close()
    assert marker.exists()


def test_models_that_cannot_go_out(tmp_path):
    with pytest.raises(ValueError, match=r"the grid Linspace.* of this model"):
        save_diffusers(our_unet(grid=Linspace()), tmp_path / "out")
    with pytest.raises(ValueError, match="skip_scale"):
        save_diffusers(our_unet(net={"skip_scale": 0.5}), tmp_path / "out")
    with pytest.raises(ValueError, match="the conditioner InpaintingMask"):
        save_diffusers(our_unet(net={"image_channels": 3}, conditioner=InpaintingMask()), tmp_path / "out")
    with pytest.raises(ValueError, match="weights"):
        save_diffusers(our_unet(), tmp_path / "out", "ema")
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(folder):
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError, match="give a new or an empty folder"):
        save_diffusers(our_unet(seed=3), folder)
    assert (folder / WEIGHTS).read_bytes() == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    save_diffusers(our_unet(), tmp_path / "out")
    assert (tmp_path / "out/model_index.json").is_file()


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_gen.interop.model_files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_diffusers(our_unet(), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_the_grid_of_the_nearest_is_told(tmp_path):
    module = our_unet(Euler(), Trailing(), RectifiedFlow())
    with pytest.warns(UserWarning, match=r"set_timesteps\(sigmas=numpy.linspace\(1, 1 / N, N\)\)"):
        save_diffusers(module, tmp_path / "out", strict=False)
    assert type(load_diffusers(tmp_path / "out").grid) is FlowMatching
