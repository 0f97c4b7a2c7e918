r"""Whole models of EDM's pickles: the network with what stands around it.

| preconditioning | path       | parameterization                      |
|-----------------|------------|---------------------------------------|
| `EDMPrecond`    | EDM        | EDMPreconditioning(sigma_data)        |
| `VPPrecond`     | VP         | Epsilon(time_scale = M - 1)           |

Both are sampled by Heun's method on Karras's grid in 18 steps, as the paper does on CIFAR-10.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (table 1)
    https://arxiv.org/abs/2206.00364
"""

from pathlib import Path
from typing import Any

import torch

from lightning_gen.diffusion.augmentation import NonLeakyAugmentation
from lightning_gen.diffusion.grids import Karras
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.diffusion.parameterizations import EDMPreconditioning, Epsilon
from lightning_gen.diffusion.paths import EDM, VP
from lightning_gen.diffusion.solvers import Heun
from lightning_gen.errors import choose
from lightning_gen.interop.edm_pickle import EDMNetwork, read_edm_pickle
from lightning_gen.interop.edm_unet import edm_arguments, edm_state
from lightning_gen.interop.folders import assembled
from lightning_gen.interop.schedulers import SchedulerParts
from lightning_gen.networks.unet import UNet

_STEPS = 18


def load_edm(path: str | Path, key: str = "ema") -> Diffusion:
    """Read a model of an EDM pickle; nothing of the file is executed.

    Args:
        path: the file, `network-snapshot-*.pkl` or one of the published ones.
        key: which of its networks.

    Returns:
        The model in evaluation mode; its checkpoints load by themselves.

    Raises:
        ValueError: where the file holds what cannot be mapped; names it.
    """
    network = read_edm_pickle(path, key)
    parts = _parts(network)
    arguments = edm_arguments(network)
    augmentation = NonLeakyAugmentation() if arguments["augment_dim"] else None
    if augmentation is not None and arguments["augment_dim"] != augmentation.augment_dim:
        raise ValueError(
            f"The network is told {arguments['augment_dim']} numbers of the augmentation; known are the"
            f" {augmentation.augment_dim} of the paper's, or none."
        )
    # the initial weights, replaced at once, shall not move the caller's random numbers
    with torch.random.fork_rng(devices=[]):
        net = UNet(**arguments)
    net.load_state_dict(edm_state(network, net))
    described = {"class_path": f"{UNet.__module__}.{UNet.__qualname__}", "init_args": arguments}
    return assembled(described, net, parts, _STEPS, augmentation=augmentation)


def _parts(network: EDMNetwork) -> SchedulerParts:
    given: dict[str, Any] = network.arguments
    maker = choose(
        "preconditioning of EDM that can be mapped", network.class_name, {"EDMPrecond": _edm, "VPPrecond": _vp}
    )
    return maker(given)


def _edm(given: dict[str, Any]) -> SchedulerParts:
    return SchedulerParts(EDM(), EDMPreconditioning(given.get("sigma_data", 0.5)), Karras(), Heun(), None)


def _vp(given: dict[str, Any]) -> SchedulerParts:
    low, slope = given.get("beta_min", 0.1), given.get("beta_d", 19.9)
    return SchedulerParts(VP(low, low + slope), Epsilon(given.get("M", 1000) - 1.0), Karras(), Heun(), None)
