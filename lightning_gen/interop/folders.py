"""Folders of diffusers: pipelines and models, read as a `Diffusion` and written from one.

A pipeline is a folder with a `model_index.json`, the network in `unet/` or `transformer/` and the scheduler in
`scheduler/`; a model is a folder with its `config.json` and `diffusion_pytorch_model.safetensors`, and where there is
one a `scheduler_config.json`. Only JSON and safetensors are read, or a `.bin` as tensors alone: nothing is executed,
and diffusers is not needed.

Two entries are this package's own, beginning with an underscore as those that diffusers does not read:
`_sampling_steps` in the scheduler's config, and `_null_class` in that of a U-Net, whose last class stands for "none".

References:
    diffusers, loading of pipelines and models
    https://huggingface.co/docs/diffusers/using-diffusers/loading
"""

import inspect
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_gen.checkpoints import INSTANTIATOR
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.errors import choose
from lightning_gen.files import written_whole
from lightning_gen.interop.diffusers_dit import dit_arguments, dit_from_diffusers, dit_to_diffusers
from lightning_gen.interop.diffusers_unet import unet_arguments, unet_from_diffusers, unet_to_diffusers
from lightning_gen.interop.scheduler_export import scheduler_config
from lightning_gen.interop.scheduler_fields import warn_of
from lightning_gen.interop.schedulers import SchedulerParts, scheduler_parts
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.unet import UNet

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
NETWORKS = ("unet", "transformer")
# what diffusers' pipelines of these networks do by default
_STEPS = 50


class _Network(NamedTuple):
    """How a network of diffusers is read."""

    kind: type[DenoisingNetwork]
    arguments: Callable[[Mapping[str, Any], bool], dict[str, Any]]
    state: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]


_UNET = _Network(UNet, lambda config, null: unet_arguments(config, null_class=null), unet_from_diffusers)
_DIT = _Network(DiT, lambda config, null: dit_arguments(config), dit_from_diffusers)
_READERS = {"UNet2DModel": _UNET, "DiTTransformer2DModel": _DIT, "Transformer2DModel": _DIT}


# ---------------------------------------------------------------------- reading


def load_diffusers(folder: str | Path, strict: bool = True, null_class: bool | None = None) -> Diffusion:
    """Read a folder of diffusers.

    Args:
        folder: of a pipeline or of a model.
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
    config = _read_json(found.network / CONFIG)
    name = found.network_class or config.get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{found.network / CONFIG} does not say its _class_name; known are {', '.join(_READERS)}.")
    reader = choose("network that can be mapped", name, _READERS)
    null = bool(config.get("_null_class", False)) if null_class is None else null_class
    arguments = reader.arguments(config, null)
    weights = _read_weights(found.network)
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
    return assembled({"class_path": _path_of(reader.kind), "init_args": arguments}, net, parts, steps)


def assembled(
    described: dict[str, Any], net: DenoisingNetwork, parts: SchedulerParts, steps: int, **more: Any
) -> Diffusion:
    """Return a `Diffusion` whose hyperparameters are those of one from a configuration.

    Args:
        described: class path and arguments of the network.
        net: the network.
        parts: the other parts.
        steps: of sampling.
        **more: further arguments, plain data or parts.
    """
    given = parts._asdict() | {name: value for name, value in more.items() if not _is_plain(value)}
    plain = {name: value for name, value in more.items() if _is_plain(value)}
    module = Diffusion(net, sampling_steps=steps, **given, **plain)
    module.save_hyperparameters(
        {
            "net": described,
            **{name: None if part is None else _described(part) for name, part in given.items()},
            "_class_path": _path_of(Diffusion),
            "_instantiator": INSTANTIATOR,
        }
    )
    module.to(next(net.parameters()).dtype)
    return module.eval()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, list))


def _path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _described(part: object) -> dict[str, Any]:
    """Return class path and arguments of a part, which keeps them by their names; those it does not are defaults."""
    values = {name: getattr(part, name) for name in inspect.signature(type(part)).parameters}
    return {
        "class_path": _path_of(type(part)),
        "init_args": {name: value for name, value in values.items() if _is_plain(value)},
    }


class _Found(NamedTuple):
    """Where the parts of a pipeline are, and their classes where an index says them."""

    network: Path
    network_class: str | None
    scheduler: Path | None
    scheduler_class: str | None


def _find(folder: Path, strict: bool) -> _Found:
    if not folder.is_dir():
        hint = f" If it is a name of the Hugging Face Hub, get it first: hf download {folder} --local-dir FOLDER"
        raise FileNotFoundError(f"There is no folder {folder}.{hint if len(folder.parts) == 2 else ''}")
    index = _read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    classes = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    kept = (*NETWORKS, "scheduler")
    if index and (more := sorted(classes.keys() - set(kept))):
        text = f"The pipeline {folder} has {', '.join(more)} beside network and scheduler"
        if strict:
            raise ValueError(
                f"{text}, which are not read. With strict=False the network alone is read: a latent one makes latents."
            )
        warn_of(f"{text}; the network alone is read.")
    named = [name for name in NETWORKS if name in classes or (not index and (folder / name).is_dir())]
    if index and not named:
        raise ValueError(f"The {INDEX} of {folder} names neither a unet nor a transformer.")
    if len(named) > 1:
        raise ValueError(f"{folder} has a unet and a transformer; give the folder of one of them.")
    network = _part(folder, named[0]) if named else folder
    scheduler: Path | None = _part(folder, "scheduler") / SCHEDULER
    if "scheduler" not in classes and scheduler is not None and not scheduler.is_file():
        scheduler = None
    return _Found(network, classes.get(named[0]) if named else None, scheduler, classes.get("scheduler"))


def _part(folder: Path, name: str) -> Path:
    """Return the folder of a part, which may lie in that of the pipeline itself."""
    return folder / name if (folder / name).is_dir() else folder


def _scheduler(found: _Found, strict: bool) -> tuple[SchedulerParts, int]:
    """Return the parts, and the number of steps."""
    config: dict[str, Any] = {"_class_name": "DDPMScheduler"}
    if found.scheduler is None:
        warn_of(f"{found.network} has no {SCHEDULER}: taken is DDPM's, the noise predicted on a linear table of 1000.")
    else:
        config = _read_json(found.scheduler)
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        here = ", ".join(sorted(other.name for other in path.parent.iterdir())[:8]) if path.parent.is_dir() else ""
        raise FileNotFoundError(f"There is no file {path}; the folder holds: {here or 'nothing'}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, and a config is an object.")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        try:
            return load_file(folder / WEIGHTS)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged or cut short: {error}. Get it anew.") from error
    if (folder / PICKLED).is_file():
        return _read_pickled(folder / PICKLED)
    here = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise FileNotFoundError(
        f"There is no {WEIGHTS} in {folder}, in one piece and without a variant in its name; it holds: {here}."
    )


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} holds more than tensors{f' ({name[1]})' if name else ''}, or is damaged: reading it might execute"
            " code that is in the file, so it is refused. Use a folder with safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or cut short: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict.")
    return content


# ---------------------------------------------------------------------- writing


def save_diffusers(module: Diffusion, folder: str | Path, weights: str | None = None, strict: bool = True) -> None:
    """Write a model as a folder of diffusers, whole or not at all.

    The folder has a `model_index.json` where a pipeline of diffusers can draw from it: unconditional U-Nets with a
    scheduler that DDIMPipeline or DDPMPipeline runs. Others are `unet/` or `transformer/` beside `scheduler/`, each
    to be loaded by its class.

    Args:
        module: the model.
        folder: a new one, or an empty one.
        weights: "raw", "ema", ... as `sample` takes them; the first average where there is one.
        strict: whether to refuse what can only be mapped nearly; else the nearest is taken, with a warning.

    Raises:
        FileExistsError: for a folder with something in it.
        ValueError: for a model that diffusers has nothing like; names the part.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: give a new or an empty folder.")
    if module.conditioner is not None:
        raise ValueError(f"diffusers has nothing like the conditioner {type(module.conditioner).__name__}.")
    if module.codec is not None:
        raise ValueError(
            "A model of latents goes out in two parts, and only images' models go out whole: export its codec"
            " (an Autoencoder) by itself."
        )
    network = module.net_ema.pick(module.net, weights)
    config, state = _network_of(network)
    parts = SchedulerParts(module.path, module.parameterization, module.grid, module.solver, module.threshold)
    scheduler = {**scheduler_config(parts, strict), "_sampling_steps": module.sampling_steps}
    name = "unet" if isinstance(network, UNet) else "transformer"
    index = _index(network, name, config, scheduler)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        _write_json(partial / name / CONFIG, config)
        with written_whole(partial / name / WEIGHTS) as path:
            save_file(state, path, metadata={"format": "pt"})
        _write_json(partial / "scheduler" / SCHEDULER, scheduler)
        if index:
            _write_json(partial / INDEX, index)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _network_of(network: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    if isinstance(network, UNet):
        config, theirs = unet_to_diffusers(state, network)
        if network.num_classes is not None:
            config["_null_class"] = network.null_class
    elif isinstance(network, DiT):
        config, theirs = dit_to_diffusers(state, network)
    else:
        raise ValueError(f"A {type(network).__name__} is no network of diffusers; those that can go out: UNet, DiT.")
    return config, {name: value.contiguous() for name, value in theirs.items()}


def _index(
    network: torch.nn.Module, name: str, config: dict[str, Any], scheduler: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the index of a pipeline that draws what the model does, None where diffusers has no such pipeline."""
    if not isinstance(network, UNet) or network.num_classes is not None:
        return None
    kind = scheduler["_class_name"]
    learned = scheduler.get("variance_type") == "learned_range"
    if network.learned_variance != learned:
        return None
    pipelines = {
        "DDIMScheduler": "DDIMPipeline",
        "DDPMScheduler": "DDPMPipeline",
        "DPMSolverMultistepScheduler": "DDPMPipeline",
    }
    if kind not in pipelines:
        return None
    return {
        "_class_name": pipelines[kind],
        "scheduler": ["diffusers", kind],
        name: ["diffusers", config["_class_name"]],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
