"""Small PNG files, and plots."""

import io
import math
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from lightning_gen.errors import MissingExtra
from lightning_gen.files import written_whole
from lightning_gen.images import picture

MOST_BYTES = 200_000
# the palette of Okabe and Ito, which color-blind people tell apart, without its yellow
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def write_small(path: Path, image: Tensor, at_least: int = 720) -> None:
    """Write bytes `(C, H, W)`, enlarged, as a PNG of less than 200 kB: with fewer colors where noise needs that."""
    whole = picture(image)
    factor = max(1, math.ceil(at_least / max(whole.size)))
    for colors in (None, 64, 32, 16, 8, 4, 2):
        reduced = whole if colors is None else whole.quantize(colors)
        encoded = _encoded(reduced.resize((factor * whole.width, factor * whole.height), Image.Resampling.NEAREST))
        if len(encoded) < MOST_BYTES:
            break
    with written_whole(path) as partial:
        partial.write_bytes(encoded)
    print(path)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def pyplot() -> Any:
    """Return matplotlib, which draws into files alone.

    Raises:
        MissingExtra: where it is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtra("The plots need matplotlib: pip install -e '.[docs]', or --n 0 for none.") from error
    return plt


def fit_scale(panel: Any, values: list[float]) -> None:
    """Make the vertical axis logarithmic where the values span more than a factor of 5; ticks are few below that."""
    if min(values) > 0 and max(values) > 5 * min(values):
        panel.set_yscale("log")


def write_plot(path: Path, figure: Any) -> None:
    """Write a figure, and forget it."""
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    print(path)
