r"""The grids of diffusers' schedulers that no other grid of this package gives, for imported models.

| name               | scheduler         | times                                                                    |
|--------------------|-------------------|--------------------------------------------------------------------------|
| `MultistepSpacing` | DPM-Solver, UniPC | N + 1 steps of a table at equal distances, but the last                  |
| `FlowMatching`     | FlowMatchEuler    | :math:`ku_i/(1+(k-1)u_i)`, :math:`u_i` equal from 1 to :math:`k/(T+k-1)` |

The second one shifts twice: its least time is shifted before the distances are made, and all are after.

References:
    diffusers, schedulers
    https://huggingface.co/docs/diffusers/api/schedulers/overview
"""

import math
from typing import Literal

import numpy as np

from lightning_gen.diffusion.grids import CLEAN, Final, Grid
from lightning_gen.diffusion.paths import Path
from lightning_gen.diffusion.solvers.base import Point, points_of
from lightning_gen.errors import choose

Spacing = Literal["linspace", "leading"]


class MultistepSpacing(Grid):
    """The times of diffusers' multistep schedulers: N + 1 at equal distances, of which the least is left out.

    Args:
        spacing: "linspace", from the last step of the table to the first one, rounded; or "leading", multiples of
            T // (N + 1), which do not start at t = 1.
        offset: added to all steps of "leading".
        final: the last point: "clean", the image, or "first", the first step of the table (`final_sigmas_type`).
    """

    def __init__(self, spacing: Spacing = "linspace", offset: int = 0, final: Final = "clean") -> None:
        choose("spacing", spacing, dict.fromkeys(("linspace", "leading")))
        choose("last point", final, dict.fromkeys(("clean", "first")))
        if offset < 0:
            raise ValueError(f"MultistepSpacing takes an offset of 0 or more; given was {offset}.")
        self.spacing, self.offset, self.final = spacing, offset, final

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times."""
        table = self._table(path)
        if self.spacing == "linspace":
            # the halves rounded as numpy does
            counted = np.linspace(0, table - 1, steps + 1).round()[:0:-1]
        else:
            counted = np.arange(steps, 0, -1) * (table // (steps + 1)) + self.offset
        if counted[0] >= table:
            raise ValueError(
                f"MultistepSpacing of {steps} steps with offset={self.offset} starts beyond the table of {table} steps:"
                " use a smaller offset."
            )
        return [(float(step) + 1) / table for step in counted]

    def last(self, path: Path) -> Point:
        """Return the image, or the first step."""
        if self.final == "clean":
            return CLEAN
        (point,) = points_of(path, [1 / self._table(path)])
        return point

    def _table(self, path: Path) -> int:
        if path.steps is None:
            raise ValueError(
                f"{type(path).__name__} has no table of steps, which MultistepSpacing asks for: use the path"
                " DiscreteVP, or the grid Trailing."
            )
        return path.steps


class FlowMatching(Grid):
    """The times of diffusers' `FlowMatchEulerDiscreteScheduler`, for rectified flow.

    Args:
        shift: k; 1 is equal distances.
        table: T, how finely the least time of shift 1 is set: 1 / T.
    """

    def __init__(self, shift: float = 1.0, table: int = 1000) -> None:
        if not 0 < shift < math.inf:
            raise ValueError(f"FlowMatching takes a shift above 0; given was {shift}.")
        if table < 2:
            raise ValueError(f"FlowMatching takes a table of 2 steps or more; given were {table}.")
        self.shift, self.table = shift, table

    def times(self, steps: int, path: Path) -> list[float]:
        """Return the times."""
        if path.steps is not None:
            raise ValueError(
                f"FlowMatching is a grid of continuous paths, and {type(path).__name__} has a table of steps: use"
                " Trailing."
            )
        even = np.linspace(1.0, self._shifted(1 / self.table), steps).tolist()
        # the first one without rounding
        return [1.0, *map(self._shifted, even[1:])]

    def _shifted(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)
