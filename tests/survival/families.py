"""One small configuration a family, with every part of it that has a state."""

from typing import Any

EPOCH, STEPS, EVERY = 6, 24, 4
"""Iterations in an epoch, in a run, and between two checkpoints."""

SHAPE = [1, 8, 8]
UNET = {"image_shape": SHAPE, "channels": 8, "channel_multipliers": [1, 2], "blocks": 1, "dropout": 0.1}


def part(class_path: str, **arguments: Any) -> dict[str, Any]:
    """Write a class with its arguments as a configuration has it."""
    return {"class_path": class_path, "init_args": arguments}


def configuration(model: dict[str, Any], batches: int = 1, workers: int = 0, **trainer: Any) -> dict[str, Any]:
    """Complete the configuration of a model.

    Args:
        model: class and arguments.
        batches: batches of an iteration.
        workers: processes that load.
        **trainer: arguments of the trainer that differ.
    """
    settings = {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "max_epochs": -1,
        "limit_train_batches": EPOCH * batches,
        "limit_val_batches": 3,
        "num_sanity_val_steps": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            part("Fidelity", metrics=["fd-lenet5"], n=16, split="train", batch_size=16),
            part("LastCheckpoint", every_n_steps=EVERY),
        ],
    }
    return {
        "seed_everything": 3,
        "model": model,
        "data": part("DigitsDataModule", batch_size=16, num_workers=workers, flip=True),
        "trainer": settings | trainer,
    }


def scheduled(rate: float = 1e-3) -> dict[str, Any]:
    """Write an optimizer with its schedule."""
    return {
        "optimizer": part("DiffusionAdamW", lr=rate),
        "scheduler": part("WarmUp", iterations=10, decay="cosine", until=STEPS),
    }


def gan(**arguments: Any) -> dict[str, Any]:
    """Write a conditional GAN with batch norm, spectral norm, ADA, R1 now and then, and averages."""
    generator = part("DCGANGenerator", latent_dim=8, channels=4, image_shape=SHAPE, num_classes=10, conditioning="cbn")
    discriminator = part(
        "DCGANDiscriminator",
        channels=4,
        image_shape=SHAPE,
        num_classes=10,
        conditioning="projection",
        norm="none",
        spectral_norm=True,
    )
    settings = {
        "loss": "non_saturating",
        "penalties": [part("R1", gamma=1.0, every=4)],
        "augmentation": part("ADA", target=0.6, every=2, images=500),
        "ema_half_lives": [200],
        "scheduler_g": part("torch.optim.lr_scheduler.LinearLR", total_iters=STEPS),
    }
    return part("GAN", generator=generator, discriminator=discriminator, **(settings | arguments))


def wgan(**arguments: Any) -> dict[str, Any]:
    """Write a Wasserstein GAN with gradient penalty, several steps of its critic, and dropout in it."""
    generator = part("MLPGenerator", latent_dim=8, hidden=[16], image_shape=SHAPE, batch_norm=True)
    critic = part("MLPDiscriminator", hidden=[16], image_shape=SHAPE, dropout=0.2)
    settings = {"loss": "wasserstein", "penalties": [part("WGANGP")], "n_dis": 2}
    return part("GAN", generator=generator, discriminator=critic, **(settings | arguments))


def diffusion(**arguments: Any) -> dict[str, Any]:
    """Write a diffusion whose times are drawn by their loss, with both kinds of averages."""
    settings = {
        "net": part("UNet", **UNET, num_classes=10),
        "path": part("DiscreteVP", steps=20),
        "times": part("Importance", history=1, buckets=20),
        "guidance": part("ClassifierFree", scale=1.5),
        "sampling_steps": 2,
        "accumulate": 2,
        "ema_half_lives": [200],
        "ema_sigma_rels": [0.1],
    }
    return part("Diffusion", **(settings | scheduled() | arguments))


def flow(**arguments: Any) -> dict[str, Any]:
    """Write a flow matching with optimal transport and clipping."""
    settings = {
        "net": part("UNet", **UNET),
        "coupling": part("MinibatchOT"),
        "augmentation": part("NonLeakyAugmentation"),
        "gradient_clip_val": 0.1,
        "sampling_steps": 2,
    }
    settings["net"]["init_args"]["augment_dim"] = 9
    return part("Diffusion", **(settings | scheduled() | arguments))


def consistency(**arguments: Any) -> dict[str, Any]:
    """Write a consistency tuning, whose schedule goes by the iteration."""
    settings = {
        "net": part("UNet", **UNET),
        "path": part("EDM"),
        "objective": part("Consistency"),
        "solver": part("ConsistencySteps"),
        "sampling_steps": 2,
        "ema_half_lives": [200],
    }
    return part("Diffusion", **(settings | scheduled() | arguments))


def mean_flow(**arguments: Any) -> dict[str, Any]:
    """Write a MeanFlow."""
    settings = {
        "net": part("UNet", **UNET, two_times=True),
        "objective": part("MeanFlow"),
        "sampling_steps": 1,
        "ema_half_lives": [200],
    }
    return part("Diffusion", **(settings | scheduled() | arguments))


def vqgan(**arguments: Any) -> dict[str, Any]:
    """Write a VQGAN: an averaged codebook with restarts and stages left out at random, batch norm in D, two rates."""
    sizes = {"image_shape": SHAPE, "channels": 8, "factor": 2, "blocks": 1, "block_channels": 4}
    codes = part(
        "ResidualQuantizer",
        channels=4,
        codebook_size=16,
        num_quantizers=2,
        ema_decay=0.9,
        restart_below=0.3,
        dropout=0.5,
    )
    settings = {
        "encoder": part("VQVAEEncoder", out_channels=4, **sizes),
        "decoder": part("VQVAEDecoder", in_channels=4, **sizes),
        "bottleneck": codes,
        "perceptual": "laplacian",
        "discriminator": part("PatchDiscriminator", image_shape=SHAPE, channels=4, n_layers=1),
        "discriminator_start": 5,
        "scheduler_d": part("WarmUp", iterations=10),
        "accumulate": 2,
        "ema_half_lives": [200],
    }
    return part("Autoencoder", **(settings | scheduled() | arguments))


def tarflow(**arguments: Any) -> dict[str, Any]:
    """Write a normalizing flow with classes that are left out at random."""
    settings = {
        "net": part("TarFlow", image_shape=SHAPE, patch_size=2, width=8, blocks=2, layers=1, heads=2, num_classes=10),
        "guidance": 1.5,
        "ema_half_lives": [200],
    }
    return part("NormalizingFlow", **(settings | scheduled() | arguments))


def vae(**arguments: Any) -> dict[str, Any]:
    """Write a conditional variational autoencoder that draws binary images and latents, with a warm-up and averages."""
    networks = {"image_shape": SHAPE, "num_classes": 10, "hidden": [16]}
    settings = {
        "encoder": part("MLPEncoder", **networks),
        "decoder": part("MLPDecoder", **networks),
        "latent_dim": 4,
        "objective": part("ELBO", warmup=200),
        "binarize": "dynamic",
        "ema_half_lives": [200],
    }
    return part("VAE", **(settings | scheduled() | arguments))


# name: the model, and batches of an iteration
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "gan": (gan(), 1),
    "wgan": (wgan(), 1),
    "diffusion": (diffusion(), 2),
    "flow": (flow(), 1),
    "consistency": (consistency(), 1),
    "mean_flow": (mean_flow(), 1),
    "vqgan": (vqgan(), 2),
    "tarflow": (tarflow(), 1),
    "vae": (vae(), 1),
}
