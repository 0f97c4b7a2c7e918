"""The files of a model of diffusers: JSON and safetensors, or a `.bin` as tensors alone; nothing is executed."""

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_gen.files import written_whole

CONFIG, WEIGHTS, PICKLED = "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


def read_json(path: Path) -> dict[str, Any]:
    """Read an object.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is damaged, or holds something else.
    """
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


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a model's tensors by name.

    Raises:
        FileNotFoundError: where there are none.
        ValueError: where they are damaged, or the file holds more than tensors.
    """
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


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write config and tensors of a model into a folder."""
    write_json(folder / CONFIG, config)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with written_whole(folder / WEIGHTS) as path:
        save_file(tensors, path, metadata={"format": "pt"})


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write in, which gets its name once all is written.

    Raises:
        FileExistsError: for a folder with something in it.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: give a new or an empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
