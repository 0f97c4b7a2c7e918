"""Other libraries' files in and out: diffusers and Hugging Face folders, EDM's pickles.

The functions are imported when they are first asked for: they bring Lightning, the mappings do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gen.interop.folders import load_diffusers, save_diffusers

__all__ = ["load_diffusers", "save_diffusers"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lightning_gen.interop' has no attribute '{name}'")
    value = getattr(import_module("lightning_gen.interop.folders"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
