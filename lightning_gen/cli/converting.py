"""`lightning-gen convert`: models of other libraries in, ours out, and averages of a run made afterwards."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning

from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.checkpoint_files import AtomicCheckpointIO, find_checkpoint, load_checkpoint
from lightning_gen.checkpoints import load_module, rebuild_module, without_training
from lightning_gen.cli.failures import UsageError, usage
from lightning_gen.cli.fitting import with_fitted_prior
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.ema import Averages
from lightning_gen.interop import load_diffusers, load_edm, save_diffusers
from lightning_gen.interop.scheduler_fields import NearlyMapped
from lightning_gen.module import GenerativeModule
from lightning_gen.posthoc import find_snapshots, reconstruct


def convert(options: Namespace) -> int:
    """Run the command."""
    out = Path(options.out)
    if out.exists() and not (options.target and out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"--out {out} is there already: give another name, or move it away.")
    with _warnings_as_notes():
        if options.target:
            _to_diffusers(options, out)
        else:
            _to_checkpoint(options, out)
    print(out)
    return 0


def _to_checkpoint(options: Namespace, out: Path) -> None:
    if out.suffix != ".ckpt":
        raise UsageError(f"--out {out}: checkpoints are called *.ckpt.")
    kind, path = options.source
    if kind == "ema":
        AtomicCheckpointIO().save_checkpoint(_averaged(path, options.images, options.sigma_rel), out)
        return
    if kind == "prior":
        AtomicCheckpointIO().save_checkpoint(with_fitted_prior(path, options.prior, options.images), out)
        return
    module: GenerativeModule
    if kind == "edm":
        module = load_edm(path)
    else:
        module = load_diffusers(path, not options.nearest, True if options.null_class else None)
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(module), out)


def _averaged(run: str, images: int | None, sigma_rel: float) -> dict[str, Any]:
    """Return the checkpoint of a run's model with one average of its snapshots for its weights and all averages."""
    path = find_checkpoint(run)
    content = load_checkpoint(path)
    module = rebuild_module(content, path)
    with usage():
        snapshots = find_snapshots(run)
        weights = reconstruct(snapshots, images, sigma_rel)
    averages = getattr(module, snapshots[0].network, None)
    network = getattr(module, snapshots[0].network.removesuffix("_ema"), None)
    if not isinstance(averages, Averages) or network is None:
        raise UsageError(f"The snapshots of {run} are of '{snapshots[0].network}', which its model does not have.")
    network.load_state_dict(weights)
    averages.restart(network)
    return without_training(content) | {"state_dict": module.state_dict()}


def checkpoint_of(module: GenerativeModule) -> dict[str, Any]:
    """Return the content of a checkpoint that rebuilds a model, without a trainer's state."""
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
    }
    module.on_save_checkpoint(content)
    return content


def _to_diffusers(options: Namespace, out: Path) -> None:
    module = load_module(options.ckpt_path)
    if not isinstance(module, (Diffusion, Autoencoder)):
        raise UsageError(
            f"--ckpt_path {options.ckpt_path} holds a {type(module).__name__}; a Diffusion or an Autoencoder can go"
            " out."
        )
    with usage():
        module.weights_used(options.weights)
    save_diffusers(module, out, options.weights, strict=not options.nearest)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Print what the block has mapped nearly as one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", NearlyMapped)
        yield
    for warning in caught:
        print(f"lightning-gen convert: note: {warning.message}", file=sys.stderr)
