"""One small training a family, the same on any number of processes: what is drawn is a function of the images."""

import copy
import warnings

import torch
from fixed_objective import Fixed
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from noiseless import FixedNoise, FixedWGANGP

from lightning_gen.autoencoder import VectorQuantizer
from lightning_gen.autoencoder.module import Autoencoder
from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.checkpoint_files import AtomicCheckpointIO
from lightning_gen.codec import Codec
from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import TensorImages
from lightning_gen.diffusion import LearnedUncertainty, MinibatchOT
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.gan import ADA, R1
from lightning_gen.networks import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.unet import UNet
from lightning_gen.networks.vqvae import VQVAEDecoder, VQVAEEncoder
from lightning_gen.optimizers import DiffusionAdamW, GANAdam, WarmUp
from lightning_gen.sharding import whole

SHAPE, STEPS, HALF = (1, 8, 8), 6, 3
UNET = {"image_shape": SHAPE, "channels": 8, "channel_multipliers": [1, 2], "blocks": 1, "num_classes": 3}
DIT = {"image_shape": SHAPE, "width": 16, "depth": 2, "heads": 2, "num_classes": 3}


class Images(ImageDataModule):
    """30 images to train on, 13 to validate on: neither number divides among processes."""

    name = "images"

    def _describe(self):
        return Description(SHAPE, 3, None)

    def _load(self, split):
        generator = torch.Generator().manual_seed({"train": 0, "val": 1, "test": 2}[split])
        n = 30 if split == "train" else 13
        images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
        return TensorImages(images, torch.arange(n) % 3, 3)


class Rows(Logger):
    """Keep what is logged."""

    def __init__(self):
        super().__init__()
        self.rows = []

    @property
    def name(self):
        return ""

    version = name

    def log_metrics(self, metrics, step=None):
        self.rows.append({"step": step, **{key: float(value) for key, value in metrics.items()}})

    def log_hyperparams(self, *args, **kwargs):
        pass


def diffusion(net, objective=None, **arguments):
    settings = {
        "optimizer": lambda p: DiffusionAdamW(p, lr=1e-3),
        "scheduler": lambda o: WarmUp(o, iterations=4),
        "ema_half_lives": [100],
        "ema_sigma_rels": [0.1],
        "sampling_steps": 2,
        "label_dropout": 0.0,
    }
    return Diffusion(net, objective=objective or Fixed(), **(settings | arguments))


def gan(cls=FixedNoise, norm=False, networks=None, **arguments):
    networks = networks or (
        MLPGenerator(latent_dim=4, hidden=[16], image_shape=SHAPE, batch_norm=norm),
        MLPDiscriminator(hidden=[16], image_shape=SHAPE),
    )
    settings = {
        "optimizer_g": lambda p: GANAdam(p, lr=1e-3),
        "scheduler_d": lambda o: WarmUp(o, iterations=4),
        "ema_half_lives": [100],
    }
    return cls(*networks, **(settings | arguments))


def spectral():
    small = {"channels": 4, "image_shape": SHAPE}
    return (
        DCGANGenerator(latent_dim=4, norm="group", **small),
        DCGANDiscriminator(norm="none", spectral_norm=True, **small),
    )


def autoencoder(**arguments):
    encoder = VQVAEEncoder(SHAPE, out_channels=3, channels=8, factor=2, blocks=1, block_channels=4)
    decoder = VQVAEDecoder(SHAPE, in_channels=3, channels=8, factor=2, blocks=1, block_channels=4)
    codes = VectorQuantizer(3, 8, ema_decay=0.9, restart_below=0.2)
    return Autoencoder(encoder, decoder, codes, ema_half_lives=[100], accumulate=2, **arguments)


CASES = {
    "unet": lambda: diffusion(
        UNet(**UNET, checkpointing=True, channels_last=True),
        accumulate=2,
        gradient_clip_val=0.05,
        weighting=LearnedUncertainty(),
        ema_sigma_rels=[],
    ),
    "dit": lambda: diffusion(DiT(**DIT, checkpointing=True), gradient_clip_val=1e-3, gradient_clip_algorithm="value"),
    "transport": lambda: diffusion(DiT(**DIT), coupling=MinibatchOT()),
    "gan": lambda: gan(
        n_dis=2, penalties=[FixedWGANGP(10.0), R1(1.0, every=2)], augmentation=ADA(images=100, transforms="")
    ),
    "hinge": lambda: gan(loss="hinge", accumulate=2, gradient_clip_val=0.05, weight_clip=0.1),
    "vqgan": lambda: autoencoder(discriminator=MLPDiscriminator(hidden=[16], image_shape=SHAPE), adaptive=False),
    "latents": lambda: diffusion(DiT(**DIT | {"image_shape": (3, 4, 4)}), codec=Codec(autoencoder().net)),
    # its power iterations are made by each process, of the whole weight
    "spectral": lambda: gan(networks=spectral(), penalties=[R1(1.0)], optimizer_d=lambda p: torch.optim.SGD(p, lr=0.1)),
}


def made(name):
    torch.manual_seed(0)
    return CASES[name]().double()


def trainer(folder, strategy="auto", world=1, **arguments):
    settings = {
        "accelerator": "cpu",
        "devices": world,
        "strategy": strategy,
        "logger": Rows(),
        "precision": "64-true",
        "max_steps": STEPS,
        "max_epochs": -1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
        "log_every_n_steps": 1,
        "default_root_dir": str(folder),
    }
    # as the command line does; without sharding only this reads a folder
    settings["plugins"] = [] if str(strategy).startswith("fsdp2") else [AtomicCheckpointIO()]
    if world > 1:
        settings["plugins"].append(TorchElasticEnvironment())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(**(settings | arguments))


def fit(name, folder, strategy="auto", world=1, ckpt=None):
    """Train, and return all that is to be the same; checkpoints of the half and of the end are in the folder."""
    module, data = made(name), Images(batch_size=8, flip=True)
    last = LastCheckpoint(every_n_steps=HALF, dirpath=str(folder))
    has_validation = isinstance(module, Diffusion)
    run = trainer(folder, strategy, world, callbacks=[last], limit_val_batches=1.0 if has_validation else 0)
    run.fit(module, datamodule=data, ckpt_path=ckpt)
    return recorded(module, run)


def recorded(module, run):
    rates = [group["lr"] for optimizer in run.optimizers for group in optimizer.param_groups]
    return {
        "weights": {name: value.clone() for name, value in whole(module.state_dict()).items()},
        "samples": module.sample(3, seed=5),
        "images": module.images_seen,
        "iterations": run.global_step,
        "rates": rates,
        "rows": copy.deepcopy(run.logger.rows),
    }


def differences(first, second, tolerance=1e-12):
    """Name what two records differ in."""
    found = []
    for key in ("weights", "samples"):
        one, other = ({"": record[key]} if key == "samples" else record[key] for record in (first, second))
        found += [f"{key} {name}" for name in one.keys() ^ other.keys()]
        for name in one.keys() & other.keys():
            gap = (one[name].double() - other[name].double()).abs().max() if one[name].numel() else 0
            if not gap <= tolerance:
                found.append(f"{key} {name}: {float(gap):.2g}")
    found += [f"{key}: {first[key]} and {second[key]}" for key in ("images", "iterations") if first[key] != second[key]]
    pairs = list(zip(first["rates"], second["rates"], strict=True))
    if any(abs(a - b) > tolerance for a, b in pairs):
        found.append(f"rates: {pairs}")
    return found


def different_rows(first, second, tolerance=1e-12):
    """Name what two tables differ in."""
    if len(first) != len(second):
        return [f"{len(first)} and {len(second)} rows"]
    found = []
    for one, other in zip(first, second, strict=True):
        found += [f"{key} of {one['step']}" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            if not abs(one[key] - other[key]) <= tolerance:
                found.append(f"{key} of {one['step']}: {one[key]} and {other[key]}")
    return found
