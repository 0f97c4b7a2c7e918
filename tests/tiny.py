"""Small networks, data and trainers that many tests share."""

import warnings

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_gen.gan.module import GAN
from lightning_gen.networks.autoencoding import ImageDecoder, ImageEncoder
from lightning_gen.networks.base import Discriminator, Generator
from lightning_gen.networks.denoiser import DenoisingNetwork
from lightning_gen.networks.latent_mlp import MLPDecoder, MLPEncoder

SHAPE = (1, 4, 4)


class TinyGenerator(Generator):
    def __init__(self, latent_dim: int = 3, num_classes: int | None = None, norm: bool = False) -> None:
        super().__init__(image_shape=SHAPE, latent_dim=latent_dim, num_classes=num_classes)
        self.inner = nn.Linear(latent_dim + (num_classes or 0), 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.outer = nn.Linear(8, 16)

    def forward(self, z, label=None):
        if self.num_classes is not None:
            z = torch.cat([z, nn.functional.one_hot(label, self.num_classes).to(z.dtype)], dim=1)
        return torch.tanh(self.outer(torch.tanh(self.norm(self.inner(z))))).view(-1, *SHAPE)


class TinyDiscriminator(Discriminator):
    def __init__(self, num_classes: int | None = None, norm: bool = False) -> None:
        super().__init__(image_shape=SHAPE, num_classes=num_classes)
        self.inner = nn.Linear(16 + (num_classes or 0), 8)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.outer = nn.Linear(8, 1)

    def forward(self, x, label=None):
        h = x.flatten(1)
        if self.num_classes is not None:
            h = torch.cat([h, nn.functional.one_hot(label, self.num_classes).to(h.dtype)], dim=1)
        return self.outer(torch.tanh(self.norm(self.inner(h)))).squeeze(1)


def tiny_gan(num_classes=None, norm=False, seed=0, cls=GAN, norm_d=False, **arguments) -> GAN:
    torch.manual_seed(seed)
    return cls(TinyGenerator(num_classes=num_classes, norm=norm), TinyDiscriminator(num_classes, norm_d), **arguments)


class TinyImages(Dataset):
    def __init__(self, n: int, num_classes: int | None = None, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
        self.labels = None if num_classes is None else torch.arange(n) % num_classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        item = {"image": self.images[index]}
        return item if self.labels is None else item | {"label": self.labels[index]}


class TinyData(LightningDataModule):
    """Images in a fixed order."""

    def __init__(self, n=64, batch_size=8, num_classes=None) -> None:
        super().__init__()
        self.n, self.batch_size, self.num_classes, self.shape, self.name = n, batch_size, num_classes, SHAPE, "tiny"
        self.class_counts = None if num_classes is None else torch.bincount(torch.arange(n) % num_classes)

    def split(self, name):
        return TinyImages(self.n, self.num_classes, seed={"train": 0, "val": 1, "test": 2}[name])

    def train_dataloader(self):
        return DataLoader(self.split("train"), batch_size=self.batch_size, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.split("val"), batch_size=self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.split("test"), batch_size=self.batch_size)

    def predict_dataloader(self):
        return DataLoader(list(range(self.n)), batch_size=self.batch_size)


class Joined(TinyData):
    """Batches of 8 for one process; each of several gets its share of every one, dealt as data modules deal."""

    def __init__(self, num_classes=None, rank=None, world=2):
        super().__init__(n=128, batch_size=8, num_classes=num_classes)
        self.rank, self.world = rank, world

    def train_dataloader(self):
        images = self.split("train")
        if self.rank is None:
            return DataLoader(images, batch_size=8)
        return DataLoader(Subset(images, range(self.rank, len(images), self.world)), batch_size=8 // self.world)


def trainer(tmp_path, **arguments) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "default_root_dir": str(tmp_path),
        "inference_mode": False,
        "log_every_n_steps": 1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(**(settings | arguments))


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class TinyDenoiser(DenoisingNetwork):
    """Looks at all pixels at once, at the time and at the class."""

    def __init__(self, image_shape=SHAPE, width: int = 8, dropout: float = 0.0, **arguments) -> None:
        super().__init__(image_shape, **arguments)
        pixels = self.in_channels * image_shape[1] * image_shape[2]
        told = self.label_rows + self.vector_dim + self.augment_dim + 1 + self.two_times
        self.inner = nn.Linear(pixels + told, width)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(width, self.out_channels * image_shape[1] * image_shape[2])

    def forward(self, x, noise_label, cond=None, second_label=None):
        cond = self.check(x, cond, second_label)
        told = [x.flatten(1), noise_label.to(x.dtype)[:, None] / 100]
        if cond.image is not None:
            told.insert(1, cond.image.flatten(1))
        if second_label is not None:
            told.append(second_label.to(x.dtype)[:, None] / 100)
        if cond.label is not None:
            told.append(nn.functional.one_hot(cond.label, self.label_rows).to(x.dtype))
        told += [part for part in (cond.vector, cond.augment) if part is not None]
        hidden = self.dropout(torch.tanh(self.inner(torch.cat(told, dim=1))))
        return self.outer(hidden).view(len(x), self.out_channels, *self.image_shape[1:])


def tiny_diffusion(num_classes=None, seed=0, cls=None, net=None, **arguments):
    from lightning_gen.diffusion.module import Diffusion

    torch.manual_seed(seed)
    network = TinyDenoiser(num_classes=num_classes, **(net or {}))
    return (cls or Diffusion)(network, **({"sampling_steps": 3} | arguments))


class TinyImageEncoder(ImageEncoder):
    """Halves images once."""

    def __init__(self, image_shape=SHAPE, out_channels: int = 4, width: int = 6) -> None:
        super().__init__(image_shape, out_channels, factor=2)
        self.inner = nn.Conv2d(image_shape[0], width, 2, stride=2)
        self.outer = nn.Conv2d(width, out_channels, 1)

    def forward(self, x):
        self.check(x)
        return self.outer(torch.tanh(self.inner(x)))


class TinyImageDecoder(ImageDecoder):
    """Doubles a grid once."""

    def __init__(self, image_shape=SHAPE, in_channels: int = 2, width: int = 6) -> None:
        super().__init__(image_shape, in_channels, factor=2)
        self.inner = nn.Conv2d(in_channels, width, 3, padding=1)
        self.outer = nn.ConvTranspose2d(width, image_shape[0], 2, stride=2)

    @property
    def last_layer(self):
        return self.outer.weight

    def forward(self, z):
        self.check(z)
        return self.outer(torch.tanh(self.inner(z)))


def tiny_autoencoder(bottleneck=None, seed=0, cls=None, adversarial=False, **arguments):
    from lightning_gen.autoencoder import GaussianBottleneck
    from lightning_gen.autoencoder.module import Autoencoder

    torch.manual_seed(seed)
    bottleneck = GaussianBottleneck(2, weight=0.1) if bottleneck is None else bottleneck
    encoder = TinyImageEncoder(out_channels=bottleneck.in_channels)
    decoder = TinyImageDecoder(in_channels=bottleneck.out_channels)
    if adversarial:
        arguments["discriminator"] = TinyDiscriminator()
        arguments["adversarial"] = adversarial if isinstance(adversarial, str) else "hinge"
    return (cls or Autoencoder)(encoder, decoder, bottleneck, **arguments)


def tiny_latent_diffusion(seed=0, codec=None, **arguments):
    from lightning_gen.codec import Codec

    codec = Codec(tiny_autoencoder(seed=1).net) if codec is None else codec
    return tiny_diffusion(seed=seed, net={"image_shape": codec.latent_shape}, codec=codec, **arguments)


def tiny_flow(num_classes=None, seed=0, cls=None, net=None, **arguments):
    from lightning_gen.flow.module import NormalizingFlow
    from lightning_gen.networks.tarflow import TarFlow

    torch.manual_seed(seed)
    sizes = {"image_shape": SHAPE, "patch_size": 2, "width": 8, "blocks": 2, "layers": 1, "heads": 2}
    return (cls or NormalizingFlow)(TarFlow(**(sizes | {"num_classes": num_classes} | (net or {}))), **arguments)


def tiny_vae(num_classes=None, seed=0, cls=None, **arguments):
    from lightning_gen.autoencoder.ladder import Ladder
    from lightning_gen.autoencoder.vae import VAE

    torch.manual_seed(seed)
    networks = [kind([8], SHAPE, num_classes, "tanh") for kind in (MLPEncoder, MLPDecoder)]
    if "ladder" in arguments:
        arguments["ladder"] = Ladder(*arguments["ladder"])
    latent_dim = None if "ladder" in arguments else 3
    return (cls or VAE)(*networks, **({"latent_dim": latent_dim, "test_samples": 4} | arguments))
