"""Normalizing flows.

The module is imported when it is first asked for, so that densities, which other families use too, come without it and
without Lightning.
"""

from typing import TYPE_CHECKING, Any

from lightning_gen.flow.density import denoised, log_density

if TYPE_CHECKING:
    from lightning_gen.flow.module import NormalizingFlow

__all__ = ["NormalizingFlow", "denoised", "log_density"]


def __getattr__(name: str) -> Any:
    if name == "NormalizingFlow":
        from lightning_gen.flow.module import NormalizingFlow

        return NormalizingFlow
    raise AttributeError(f"module 'lightning_gen.flow' has no attribute '{name}'")
