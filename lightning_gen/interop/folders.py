"""Folders of diffusers: pipelines and models, read as a `Diffusion` or an `Autoencoder` and written from one.

A pipeline is a folder with a `model_index.json`, the network in `unet/` or `transformer/`, the scheduler in
`scheduler/` and, where the network is one of latents, their autoencoder in `vae/` or `vqvae/`; a model is a folder with
its `config.json` and `diffusion_pytorch_model.safetensors`, and where there is one a `scheduler_config.json`. Only JSON
and safetensors are read, or a `.bin` as tensors alone: nothing is executed, and diffusers is not needed.

Two entries are this package's own, beginning with an underscore as those that diffusers does not read:
`_sampling_steps` in the scheduler's config, and `_null_class` in that of a U-Net, whose last class stands for "none".

References:
    diffusers, loading of pipelines and models
    https://huggingface.co/docs/diffusers/using-diffusers/loading
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.errors import choose
from lightning_gen.interop.autoencoder_folders import AUTOENCODERS, autoencoder_folder, autoencoder_from
from lightning_gen.interop.describing import describe, described, is_plain, path_of
from lightning_gen.interop.diffusers_dit import dit_arguments, dit_from_diffusers, dit_to_diffusers
from lightning_gen.interop.diffusers_unet import unet_arguments, unet_from_diffusers, unet_to_diffusers
from lightning_gen.interop.latent_pipelines import CODECS, ReadCodec, codec_folder, codec_from
from lightning_gen.interop.model_files import CONFIG, new_folder, read_json, read_weights, write_json, write_model
from lightning_gen.interop.scheduler_export import scheduler_config
from lightning_gen.interop.scheduler_fields import warn_of
from lightning_gen.interop.schedulers import SchedulerParts, scheduler_parts
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.unet import UNet

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
NETWORKS = ("unet", "transformer")
# what diffusers' pipelines of these networks do by default
_STEPS = 50
# of the images that DiTPipeline is for
_CLASSES = 1000


class _Network(NamedTuple):
    """How a network of diffusers is read."""

    kind: type[DenoisingNetwork]
    arguments: Callable[[Mapping[str, Any], bool], dict[str, Any]]
    state: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]


_UNET = _Network(UNet, lambda config, null: unet_arguments(config, null_class=null), unet_from_diffusers)
_DIT = _Network(DiT, lambda config, null: dit_arguments(config), dit_from_diffusers)
_READERS = {"UNet2DModel": _UNET, "DiTTransformer2DModel": _DIT, "Transformer2DModel": _DIT}


# ---------------------------------------------------------------------- reading


def load_diffusers(folder: str | Path, strict: bool = True, null_class: bool | None = None) -> Diffusion | Autoencoder:
    """Read a folder of diffusers.

    Args:
        folder: of a pipeline of one network, with an autoencoder or without, or of a model: a U-Net, a DiT, an
            `AutoencoderKL` or a `VQModel`.
        strict: whether to refuse what can only be mapped nearly; else the nearest is taken, with a warning.
        null_class: whether the last class of a U-Net stands for "none"; None for what the folder says, or no. A DiT
            has that class always.

    Returns:
        The model in evaluation mode, in float32, or in float64 where its weights are; its checkpoints load by
        themselves.

    Raises:
        FileNotFoundError: for a folder or a file that is not there.
        ValueError: for files that are damaged, or hold what cannot be mapped; says which entry and value.
    """
    found = _find(Path(folder), strict)
    config = read_json(found.network / CONFIG)
    name = found.network_class or config.get("_class_name")
    if not isinstance(name, str):
        known = ", ".join((*_READERS, *AUTOENCODERS))
        raise ValueError(f"{found.network / CONFIG} does not say its _class_name; known are {known}.")
    if name in AUTOENCODERS:
        return autoencoder_from(config, read_weights(found.network))
    reader = choose("network that can be mapped", name, _READERS)
    null = bool(config.get("_null_class", False)) if null_class is None else null_class
    arguments = reader.arguments(config, null)
    weights = read_weights(found.network)
    # the initial weights, replaced at once, shall not move the caller's random numbers
    with torch.random.fork_rng(devices=[]):
        net = reader.kind(**arguments)
    state = reader.state(weights, net)
    if any(value.dtype == torch.float64 for value in state.values()):
        net.double()
    net.load_state_dict(state)
    parts, steps = _scheduler(found, strict)
    if getattr(parts.solver, "variance", None) == "learned" and not net.learned_variance:
        raise ValueError(f"The scheduler asks for a learned variance, and the {name} has none: out_channels says so.")
    codec = None if found.codec is None else codec_from(found.codec, net.image_shape)
    return assembled({"class_path": path_of(reader.kind), "init_args": arguments}, net, parts, steps, codec)


def assembled(
    net_described: dict[str, Any],
    net: DenoisingNetwork,
    parts: SchedulerParts,
    steps: int,
    codec: ReadCodec | None = None,
    **more: Any,
) -> Diffusion:
    """Return a `Diffusion` whose hyperparameters are those of one from a configuration.

    Args:
        net_described: class path and arguments of the network.
        net: the network.
        parts: the other parts.
        steps: of sampling.
        codec: of a network of latents.
        **more: further arguments, plain data or parts.
    """
    given = parts._asdict() | {name: value for name, value in more.items() if not is_plain(value)}
    plain = {name: value for name, value in more.items() if is_plain(value)}
    module = Diffusion(net, sampling_steps=steps, codec=codec.codec if codec else None, **given, **plain)
    parts_described = {name: None if part is None else described(part) for name, part in given.items()}
    describe(module, {"net": net_described, "codec": codec.described if codec else None, **parts_described})
    module.to(next(net.parameters()).dtype)
    return module.eval()


class _Found(NamedTuple):
    """Where the parts of a pipeline are, and their classes where an index says them."""

    network: Path
    network_class: str | None
    scheduler: Path | None
    scheduler_class: str | None
    codec: Path | None = None


def _find(folder: Path, strict: bool) -> _Found:
    if not folder.is_dir():
        hint = f" If it is a name of the Hugging Face Hub, get it first: hf download {folder} --local-dir FOLDER"
        raise FileNotFoundError(f"There is no folder {folder}.{hint if len(folder.parts) == 2 else ''}")
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    classes = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    kept = (*NETWORKS, *CODECS, "scheduler")
    if index and (more := sorted(classes.keys() - set(kept))):
        text = f"The pipeline {folder} has {', '.join(more)} beside network, autoencoder and scheduler"
        if strict:
            raise ValueError(
                f"{text}, which are not read. With strict=False the others are read: a network that is told more than"
                " a class may not be mapped."
            )
        warn_of(f"{text}; the others are read.")
    named, codecs = (
        [name for name in names if name in classes or (not index and (folder / name).is_dir())]
        for names in (NETWORKS, CODECS)
    )
    if index and not named:
        raise ValueError(f"The {INDEX} of {folder} names neither a unet nor a transformer.")
    if len(named) > 1:
        raise ValueError(f"{folder} has a unet and a transformer; give the folder of one of them.")
    network = _part(folder, named[0]) if named else folder
    scheduler: Path | None = _part(folder, "scheduler") / SCHEDULER
    if "scheduler" not in classes and scheduler is not None and not scheduler.is_file():
        scheduler = None
    codec = _part(folder, codecs[0]) if named and codecs else None
    return _Found(network, classes.get(named[0]) if named else None, scheduler, classes.get("scheduler"), codec)


def _part(folder: Path, name: str) -> Path:
    """Return the folder of a part, which may lie in that of the pipeline itself."""
    return folder / name if (folder / name).is_dir() else folder


def _scheduler(found: _Found, strict: bool) -> tuple[SchedulerParts, int]:
    """Return the parts, and the number of steps."""
    config: dict[str, Any] = {"_class_name": "DDPMScheduler"}
    if found.scheduler is None:
        warn_of(f"{found.network} has no {SCHEDULER}: taken is DDPM's, the noise predicted on a linear table of 1000.")
    else:
        config = read_json(found.scheduler)
    parts = scheduler_parts(config, found.scheduler_class, strict)
    whole = parts.path.steps or _STEPS
    said = config.get("_sampling_steps")
    usual = whole if (found.scheduler_class or config.get("_class_name")) == "DDPMScheduler" else min(_STEPS, whole)
    wanted = [said] if isinstance(said, int) else [usual, whole // 2, 1]
    return parts, next((steps for steps in wanted if _fits(parts, steps)), wanted[0])


def _fits(parts: SchedulerParts, steps: int) -> bool:
    try:
        parts.grid.points(steps, parts.path)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------------- writing


def save_diffusers(
    module: Diffusion | Autoencoder, folder: str | Path, weights: str | None = None, strict: bool = True
) -> None:
    """Write a model as a folder of diffusers, whole or not at all.

    The folder has a `model_index.json` where a pipeline of diffusers can draw from it: unconditional U-Nets with a
    scheduler that DDIMPipeline, DDPMPipeline or, in latents, LDMPipeline runs, and a DiT of 1000 classes in latents
    (DiTPipeline). Others are `unet/` or `transformer/` beside `scheduler/` and `vae/`, each to be loaded by its class.
    The latents of `vae/` are whitened already. An `Autoencoder` is the folder of one model.

    Args:
        module: the model.
        folder: a new one, or an empty one.
        weights: "raw", "ema", ... as `sample` takes them; the first average where there is one.
        strict: whether to refuse what can only be mapped nearly; else the nearest is taken, with a warning.

    Raises:
        FileExistsError: for a folder with something in it.
        ValueError: for a model that diffusers has nothing like; names the part.
    """
    if isinstance(module, Autoencoder):
        with new_folder(Path(folder)) as partial:
            write_model(partial, *autoencoder_folder(module, weights))
        return
    if module.conditioner is not None:
        raise ValueError(f"diffusers has nothing like the conditioner {type(module.conditioner).__name__}.")
    network = module.net_ema.pick(module.net, weights)
    config, state = _network_of(network)
    parts = SchedulerParts(module.path, module.parameterization, module.grid, module.solver, module.threshold)
    scheduler = {**scheduler_config(parts, strict), "_sampling_steps": module.sampling_steps}
    name = "unet" if isinstance(network, UNet) else "transformer"
    codec = None if module.codec is None else codec_folder(module.codec)
    index = _index(network, name, config, scheduler, None if codec is None else codec[0])
    with new_folder(Path(folder)) as partial:
        write_model(partial / name, config, state)
        if codec is not None:
            write_model(partial / ("vqvae" if index and "vqvae" in index else "vae"), *codec)
        write_json(partial / "scheduler" / SCHEDULER, scheduler)
        if index:
            write_json(partial / INDEX, index)


def _network_of(network: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = network.state_dict()
    if isinstance(network, UNet):
        config, theirs = unet_to_diffusers(state, network)
        if network.num_classes is not None:
            config["_null_class"] = network.null_class
    elif isinstance(network, DiT):
        config, theirs = dit_to_diffusers(state, network)
    else:
        raise ValueError(f"A {type(network).__name__} is no network of diffusers; those that can go out: UNet, DiT.")
    return config, theirs


def _index(
    network: torch.nn.Module,
    name: str,
    config: dict[str, Any],
    scheduler: dict[str, Any],
    codec: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Return the index of a pipeline that draws what the model does, None where diffusers has no such pipeline."""
    kind = scheduler["_class_name"]
    pipelines = {
        "DDIMScheduler": "DDIMPipeline",
        "DDPMScheduler": "DDPMPipeline",
        "DPMSolverMultistepScheduler": "DDPMPipeline",
    }
    if kind not in pipelines:
        return None
    learned = scheduler.get("variance_type") == "learned_range"
    pipeline, called = pipelines[kind], ""
    if isinstance(network, DiT):
        # whose class for "none" is written into the pipeline, and which leaves a learned variance out
        if codec is None or network.num_classes != _CLASSES or learned:
            return None
        pipeline, called = "DiTPipeline", "vae"
    elif not isinstance(network, UNet) or network.num_classes is not None or network.learned_variance != learned:
        return None
    elif codec is not None:
        pipeline, called = "LDMPipeline", "vqvae"
    index = {"_class_name": pipeline, "scheduler": ["diffusers", kind], name: ["diffusers", config["_class_name"]]}
    return index | ({called: ["diffusers", codec["_class_name"]]} if codec is not None else {})
