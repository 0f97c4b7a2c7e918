"""The guide of autoguidance: given as a checkpoint it is the same, read once, read anew once it has changed."""

import os

import pytest
import torch

from lightning_gen import checkpoints
from lightning_gen.checkpoints import AtomicCheckpointIO
from lightning_gen.diffusion import Autoguidance
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.networks.unet import UNet

SMALL = {
    "image_shape": [1, 8, 8],
    "channels": 8,
    "channel_multipliers": [1],
    "blocks": 1,
    "attention_levels": [],
    "num_classes": 3,
}


def weak_model(seed):
    torch.manual_seed(seed)
    module = Diffusion(UNet(**SMALL))
    for parameter in module.net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def save(module, path):
    hyperparameters = {
        "_class_path": "lightning_gen.diffusion.module.Diffusion",
        "net": {"class_path": "lightning_gen.networks.unet.UNet", "init_args": SMALL},
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    content = {"state_dict": module.state_dict(), "hyper_parameters": hyperparameters}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return str(path)


@pytest.fixture
def guided():
    module = weak_model(0)
    module.guidance = Autoguidance(2.0)
    return module


def drawn(guided, guide):
    return guided.sample(2, seed=0, steps=3, cond=1, guide=guide)


def test_a_checkpoint_guides_as_the_model_in_it_and_is_read_once(guided, tmp_path, monkeypatch):
    weak = weak_model(1)
    path = save(weak, tmp_path / "weak.ckpt")
    read, load = [], checkpoints.load_module
    monkeypatch.setattr(checkpoints, "load_module", lambda path: read.append(path) or load(path))
    expected = drawn(guided, weak)
    assert torch.equal(drawn(guided, path), expected)
    assert torch.equal(drawn(guided, path), expected)
    assert len(read) == 1

    other = weak_model(2)
    save(other, path)
    os.utime(path, ns=(1, 1))
    assert torch.equal(drawn(guided, path), drawn(guided, other))
    assert not torch.equal(drawn(guided, path), expected)
    assert len(read) == 2


def test_a_guide_in_training_stays_in_training(guided):
    weak = weak_model(1).train()
    drawn(guided, weak)
    assert all(part.training for part in weak.net.modules())
