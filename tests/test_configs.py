"""Every packaged configuration runs through the real command line, at tiny widths, on made data of its shape."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

import lightning_gen
from lightning_gen.cli import main

FOLDER = Path(lightning_gen.__file__).parent / "configs"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
NETWORKS = ("generator", "discriminator", "encoder", "decoder", "net")
HEAD = ("paper", "hardware", "time", "result", "command")
WIDTHS = {
    "DCGANGenerator": {"channels": 4},
    "DCGANDiscriminator": {"channels": 4},
    "MLPGenerator": {"hidden": [8, 8]},
    "LeNetDiscriminator": {},
    "TarFlow": {"width": 8, "blocks": 2, "layers": 1},
    "ResNetGenerator": {"channels": 4},
    "ResNetDiscriminator": {"channels": 4},
    "UNet": {"channels": 8, "blocks": 1, "head_dim": None},
    "DiT": {"width": 16, "depth": 1, "heads": 2},
    "VQVAEEncoder": {"channels": 8, "blocks": 1, "block_channels": 4},
    "VQVAEDecoder": {"channels": 8, "blocks": 1, "block_channels": 4},
    "ConvolutionalEncoder": {"channels": 8, "norm_groups": 4},
    "ConvolutionalDecoder": {"channels": 8, "norm_groups": 4},
    "PatchDiscriminator": {"channels": 8},
    "MLPEncoder": {"hidden": [8]},
    "MLPDecoder": {"hidden": [8]},
    "ConvEncoder": {"channels": 2, "hidden": 8},
    "ConvDecoder": {"channels": 2, "hidden": 8},
}


class MadeImages(LightningDataModule):
    """Noise of the shape and classes asked for."""

    def __init__(self, shape: tuple[int, int, int], classes: int | None = None) -> None:
        super().__init__()
        self.name, self.shape, self.num_classes = "made", tuple(shape), classes
        self.class_counts = None if classes is None else torch.ones(classes)

    def split(self, name):
        return self.train_dataloader().dataset

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (32, *self.shape), generator=generator, dtype=torch.uint8)
        labels = torch.arange(32) % (self.num_classes or 1)
        return DataLoader([{"image": i, "label": y} for i, y in zip(images, labels, strict=True)], batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


def weights_to_start_from(config, folder):
    """Make the checkpoint of a network like the one configured."""
    from lightning_gen.diffusion.module import Diffusion
    from lightning_gen.networks import UNet

    module = Diffusion(UNet(**config["model"]["init_args"]["net"]["init_args"]))
    path = folder / "start.ckpt"
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}, path)
    return str(path)


def train_its_codec(config):
    """Train the autoencoder that a latent model names, by its own configuration, where the model looks for it."""
    run = config["model"]["init_args"]["codec"]["init_args"]["checkpoint"]
    first = shrunken(read(run.removeprefix("runs/")))
    Path("codec.yaml").write_text(yaml.safe_dump(first))
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={run}"]
    assert main(["fit", "-c", "codec.yaml", *short, "--trainer.enable_progress_bar=false"]) == 0


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def shrunken(config):
    """Make networks tiny, and the data noise of their shape and classes."""
    model = config["model"]["init_args"]
    networks = [model[name] for name in NETWORKS if model.get(name)]
    for network in networks:
        network["init_args"] |= WIDTHS[network["class_path"]]
    shape = networks[0]["init_args"]["image_shape"]
    if "codec" in model:
        first = read(model["codec"]["init_args"]["checkpoint"].removeprefix("runs/"))
        shape = first["model"]["init_args"]["encoder"]["init_args"]["image_shape"]
    classes = networks[0]["init_args"].get("num_classes")
    config["data"] = {"class_path": "test_configs.MadeImages", "init_args": {"shape": shape, "classes": classes}}
    config["trainer"]["accelerator"] = "cpu"
    config["trainer"].pop("callbacks", None)
    return config


@pytest.fixture
def config(name):
    return read(name)


@pytest.mark.parametrize("name", NAMES)
def test_its_head_says_what_it_is(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 10
    for key, line in zip(HEAD, lines[1:], strict=False):
        assert line.startswith(f"# {key}: ")
        assert line.removeprefix(f"# {key}: ").strip()
    assert lines[5].endswith(f"-c {name}")


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = config["trainer"].get("callbacks", [])
    config = shrunken(config)
    model = config["model"]["init_args"]
    if model.get("init_weights"):
        model["init_weights"] = weights_to_start_from(config, tmp_path)
    model.pop("levels", None)  # the made images have all bytes
    if "codec" in model:
        train_its_codec(config)
    config["trainer"]["callbacks"] = callbacks
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "tiny.yaml", "--trainer.fast_dev_run=2", "--trainer.enable_progress_bar=false"]) == 0
