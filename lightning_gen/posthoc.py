r"""Averages of a finished run with any profile, put together from snapshots of a few.

With :math:`p_i` the profiles of the stored averages and :math:`p` the one wanted, the coefficients minimize

.. math:: \Big\lVert \sum_i x_i\,p_i - p \Big\rVert^2 \quad\text{with}\quad \sum_i x_i = 1,

and :math:`\sum_i x_i \hat\theta_i` stands for the average wanted. Every inner product has a closed form, see
`ema_profiles`. The paper leaves the sum free: the error is then a few times larger, and where the snapshots are few
it scales the part of the weights that does not move. A profile that is stored has the coefficient 1, in both.

Widths between those stored come out best, and those well above the largest one need more snapshots.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (section 3.2, appendix C)
    https://arxiv.org/abs/2312.02696
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_gen.ema_profiles import exponent_of, overlaps
from lightning_gen.files import written_whole

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Snapshot:
    """One average, as a file.

    Attributes:
        path: the file.
        images: images seen when it was written.
        sigma_rel: relative width of its profile.
        network: what is averaged: the name of the `Averages` in the module.
        buffers: names of the entries that are not averages: running statistics, counters, tables.
    """

    path: Path
    images: int
    sigma_rel: float
    network: str = ""
    buffers: frozenset[str] = frozenset()

    def load(self) -> dict[str, Tensor]:
        """Read the state dict of the averaged network, on the CPU."""
        from safetensors.torch import load_file

        return dict(load_file(self.path))


def write_snapshot(
    folder: Path, network: str, images: int, sigma_rel: float, state: Mapping[str, Tensor], buffers: Sequence[str] = ()
) -> Snapshot:
    """Write one average; a snapshot of the same images and width is replaced.

    Args:
        folder: where; it is made where it is missing.
        network: name of the `Averages` in its module.
        images: images seen.
        sigma_rel: relative width of the profile.
        state: state dict of the averaged network.
        buffers: which of its entries are no averages.
    """
    from safetensors.torch import save_file

    path = folder / f"{network}-{images:012d}-{sigma_rel:.3f}{SUFFIX}"
    about = {"network": network, "images": str(images), "sigma_rel": repr(float(sigma_rel))}
    # entries that share memory, as tied weights do, are written one by one
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with written_whole(path) as partial:
        save_file(plain, partial, about | {"buffers": json.dumps(sorted(buffers))})
    return Snapshot(path, images, float(sigma_rel), network, frozenset(buffers))


def find_snapshots(folder: str | Path, network: str | None = None) -> list[Snapshot]:
    """List the snapshots of a folder, by images and width.

    Args:
        folder: the folder `ema` of a run, or the run's folder.
        network: which network's, where the module averages several.

    Raises:
        FileNotFoundError: where there are none.
        ValueError: where there are those of several networks, and none is chosen.
    """
    folder = Path(folder)
    files = sorted(folder.glob(f"*{SUFFIX}")) or sorted((folder / "ema").glob(f"*{SUFFIX}"))
    snapshots = [_read(path) for path in files]
    names = sorted({snapshot.network for snapshot in snapshots})
    if network is None and len(names) > 1:
        raise ValueError(f"{folder} has averages of several networks: say which with network='{names[0]}', or {names}.")
    chosen = [snapshot for snapshot in snapshots if network in (None, snapshot.network)]
    if not chosen:
        raise FileNotFoundError(
            f"{folder} has no snapshots of averages{f' of {network!r}' if network else ''}: train with the callback"
            " EMASnapshots and with averages that have a relative width, such as 0.05 and 0.10."
        )
    return sorted(chosen, key=lambda snapshot: (snapshot.images, snapshot.sigma_rel))


def _read(path: Path) -> Snapshot:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        buffers = frozenset(json.loads(about["buffers"]))
        return Snapshot(path, int(about["images"]), float(about["sigma_rel"]), about["network"], buffers)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a snapshot that EMASnapshots wrote: move it out of the folder ({type(error).__name__})."
        ) from error


def solve_coefficients(
    stored: Sequence[tuple[float, float]], wanted: tuple[float, float], unit_sum: bool = True
) -> Tensor:
    """Return the coefficients of stored averages in the one wanted, float64 `(n,)`.

    Args:
        stored: images and relative width of each; no two alike.
        wanted: images and relative width.
        unit_sum: hold their sum to 1; without it this is the paper's problem.

    Raises:
        ValueError: where there are none, two are alike, or a width is out of range.
    """
    if not stored or len(set(stored)) != len(stored):
        raise ValueError("The stored averages are one or more, no two with the same images and width.")
    images = torch.tensor([float(count) for count, _ in (*stored, wanted)], dtype=torch.float64)
    gammas = torch.tensor([exponent_of(width) for _, width in (*stored, wanted)], dtype=torch.float64)
    # times in parts of the longest: the numbers then have no unit
    products = overlaps(images / images.max(), gammas)[:-1]
    norms = products.diagonal().rsqrt()
    gram = products[:, :-1] * norms * norms[:, None]
    sides = torch.stack([products[:, -1], torch.ones_like(norms)], dim=1) * norms[:, None]
    free, ones = (torch.linalg.solve(gram, sides) * norms[:, None]).unbind(1)
    coefficients: Tensor = free + ones * (1 - free.sum()) / ones.sum() if unit_sum else free
    return coefficients


def reconstruct(
    snapshots: Sequence[Snapshot], images: int | None = None, sigma_rel: float = 0.1, unit_sum: bool = True
) -> dict[str, Tensor]:
    """Put an average together: the state dict of the network, in the precision of the snapshots.

    Snapshots count up to the first of the time wanted or later; those after that are not read. Buffers are those of
    the last one read. The error is least at the times of the snapshots themselves.

    Args:
        snapshots: what `find_snapshots` returns.
        images: images after which the average is wanted; None for the last snapshot.
        sigma_rel: its relative width.
        unit_sum: as `solve_coefficients` takes it.

    Raises:
        ValueError: where the time wanted is not among those of the snapshots, or they are not of one network.
    """
    times = sorted({snapshot.images for snapshot in snapshots})
    wanted = images if images is not None else times[-1] if times else 0
    if not times or not times[0] <= wanted <= times[-1]:
        raise ValueError(
            f"An average after {wanted} images lies between snapshots of before and after; there are"
            f" {f'those of {times[0]} to {times[-1]} images' if times else 'none'}."
        )
    used = [snapshot for snapshot in snapshots if snapshot.images <= min(time for time in times if time >= wanted)]
    weights = solve_coefficients([(one.images, one.sigma_rel) for one in used], (wanted, sigma_rel), unit_sum)
    last = max(used, key=lambda snapshot: snapshot.images)
    newest = last.load()
    averaged = [name for name, value in newest.items() if name not in last.buffers and value.is_floating_point()]
    total = {name: torch.zeros_like(newest[name], dtype=torch.float64) for name in averaged}
    for snapshot, weight in zip(used, weights.tolist(), strict=True):
        state = snapshot.load()
        if state.keys() != newest.keys():
            raise ValueError(f"{snapshot.path} and {last.path} are not of the same network: their entries differ.")
        for name in averaged:
            total[name].add_(state[name].double(), alpha=weight)
    return {name: total[name].to(value.dtype) if name in total else value for name, value in newest.items()}
