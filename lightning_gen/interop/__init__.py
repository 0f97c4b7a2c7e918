"""Other libraries' files in and out: diffusers and Hugging Face folders, EDM's pickles.

The functions are imported when they are first asked for: they bring Lightning, the mappings do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gen.interop.edm_model import load_edm
    from lightning_gen.interop.folders import load_diffusers, save_diffusers

_PUBLIC = {"load_diffusers": "folders", "load_edm": "edm_model", "save_diffusers": "folders"}

__all__ = ["load_diffusers", "load_edm", "save_diffusers"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightning_gen.interop' has no attribute '{name}'")
    value = getattr(import_module(f"lightning_gen.interop.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
