"""A small autoencoder for every quantizer, trained without chance, in one process or several."""

import torch
from tiny import SHAPE, Joined, trainer
from torch import nn

from lightning_gen.autoencoder import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    TwoLevelQuantizer,
    VectorQuantizer,
)
from lightning_gen.module import GenerativeModule

# name -> makes the quantizer
QUANTIZERS = {
    "vq": lambda: VectorQuantizer(3, 8),
    "vq, restarts": lambda: VectorQuantizer(3, 8, restart_below=0.99),
    "vq, ema": lambda: VectorQuantizer(3, 8, ema_decay=0.9),
    "vq, ema, restarts": lambda: VectorQuantizer(3, 8, ema_decay=0.8, restart_below=0.9),
    "vq, normalized": lambda: VectorQuantizer(3, 8, normalized=True, restart_below=0.99),
    "vq, normalized, ema": lambda: VectorQuantizer(3, 8, ema_decay=0.8, normalized=True, restart_below=0.9),
    "rvq": lambda: ResidualQuantizer(3, 6, 3),
    "rvq, ema, restarts": lambda: ResidualQuantizer(3, 6, 3, ema_decay=0.8, restart_below=0.9),
    "rvq, shared": lambda: ResidualQuantizer(3, 16, 3, ema_decay=0.8, shared=True, restart_below=0.9),
    "fsq": lambda: FiniteScalarQuantizer([4, 3, 5]),
    "lfq": lambda: LookupFreeQuantizer(3, entropy_weight=1.0),
    "lfq, groups": lambda: LookupFreeQuantizer(3, entropy_weight=1.0, gamma=2.0, group_bits=2),
    "two levels": lambda: TwoLevelQuantizer(
        3,
        VectorQuantizer(3, 8, ema_decay=0.8, restart_below=0.9),
        ResidualQuantizer(2, 6, 2, restart_below=0.5),
        channels=4,
        block_channels=3,
    ),
}


def quantizer(name, seed=0):
    torch.manual_seed(seed)
    return QUANTIZERS[name]()


class QuantizedAutoencoder(GenerativeModule):
    sample_shape = SHAPE

    def __init__(self, name, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.bottleneck = QUANTIZERS[name]()
        self.encoder = nn.Conv2d(1, self.bottleneck.in_channels, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(self.bottleneck.out_channels, 1, 2, stride=2)
        self.restarted = 0

    def draw(self, stream, n, cond=None, **how):
        raise NotImplementedError

    def reconstruct(self, images):
        bottled = self.bottleneck(self.encoder(images))
        return self.decoder(bottled.z), bottled

    def loss(self, images):
        made, bottled = self.reconstruct(images)
        return (made - images).square().mean() + bottled.loss

    def training_step(self, batch, batch_idx):
        self.steps(self.loss(batch["image"]), 0)

    def validation_step(self, batch, batch_idx):
        self.log_held_out({"val/loss": self.loss(batch["image"])}, len(batch["image"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def fit(name, folder, rank=None, world=1, steps=6, **arguments):
    """Train on joined batches of 8, or on this process's share of them."""
    from lightning.pytorch.plugins.environments import TorchElasticEnvironment

    module = QuantizedAutoencoder(name).double()
    settings = {"max_steps": steps, "max_epochs": -1, "precision": "64-true", "use_distributed_sampler": False}
    if rank is not None:
        settings |= {"devices": world, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    run = trainer(folder, **(settings | arguments))
    run.fit(module, datamodule=Joined(rank=rank, world=world))
    return module, run
