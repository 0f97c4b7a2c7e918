"""Training, validation, samples and what is logged are the same on 1, 2 and 4 processes, by DDP and by FSDP2."""

import functools
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import layouts
import pytest
import torch
from layouts import CASES, Images, differences, different_rows, fit, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from ranks import run_ranks

from lightning_gen.diffusion import DenoisingMSE
from lightning_gen.gan.module import GAN

FOLDERS = "fsdp2_distributed_checkpoints"
RESUMED = ("unet", "gan")
# (processes, strategy): what trains from the start
STRAIGHT = {
    (2, "ddp"): (*CASES,),
    (2, "fsdp2"): (*CASES,),
    (2, FOLDERS): RESUMED,
    (4, "ddp"): ("dit", "gan"),
    (4, FOLDERS): ("gan",),
}
VALIDATED = [(2, "ddp"), (2, "fsdp2"), (4, "ddp")]
# by number of processes: what continues from the half-way checkpoint of what
CONTINUED = {
    1: [("auto", "ddp", 2), ("auto", "fsdp2", 2), ("auto", FOLDERS, 2)],
    2: [("fsdp2", "auto", 1), (FOLDERS, "auto", 1), ("ddp", FOLDERS, 2)],
    4: [("ddp", "auto", 1), (FOLDERS, FOLDERS, 2)],
}


def resumed(world):
    return RESUMED[:1] if world == 4 else RESUMED


def place(folder, name, strategy, world):
    return Path(folder) / f"{name}-{strategy}-{world}"


def validated(name, folder, strategy="auto", world=1):
    """Validate with the noise that a run would have."""
    torch.manual_seed(0)
    net = layouts.UNet(**layouts.UNET)
    torch.nn.init.normal_(net.output.weight, std=0.1)
    module = layouts.diffusion(net, DenoisingMSE()) if name == "diffusion" else layouts.gan(GAN)
    run = trainer(folder, strategy, world)
    return run.validate(module.double(), datamodule=Images(batch_size=8), verbose=False)[0]


def continued(folder, world):
    """Take up half-way checkpoints of other numbers of processes and of other strategies."""
    found = {}
    for strategy, before, many in CONTINUED[world]:
        for name in resumed(world):
            checkpoint = place(folder, name, before, many) / "previous.ckpt"
            record = fit(
                name, place(folder, name, f"{strategy}-after-{before}-{many}", world), strategy, world, checkpoint
            )
            found[name, strategy, before, many] = record
    return found


def work(rank, world, folder):
    warnings.filterwarnings("ignore")
    found = {}
    for (many, strategy), names in STRAIGHT.items():
        for name in names if many == world else ():
            found[name, strategy] = fit(name, place(folder, name, strategy, world), strategy, world)
    for many, strategy in VALIDATED:
        for name in ("diffusion", "gan") if many == world else ():
            found["validated", name, strategy] = validated(name, folder, strategy, world)
    found |= continued(folder, world)
    torch.save(found, os.path.join(folder, f"{world}-{rank}.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("parallel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = {name: fit(name, place(path, name, "auto", 1)) for name in CASES}
        alone |= {("validated", name): validated(name, path) for name in ("diffusion", "gan")}
    torch.save(alone, path / "alone.pt")
    for world in (2, 4):
        run_ranks(work, world, world, str(path))
    return path


@pytest.fixture(scope="module")
def found(folder):
    """Return what a process has found."""
    load = functools.partial(torch.load, weights_only=True)
    every = {(world, rank): load(folder / f"{world}-{rank}.pt") for world in (2, 4) for rank in range(world)}
    return load(folder / "alone.pt"), every


@pytest.mark.parametrize(("ranks", "choices"), [(3, "6 or 9"), (16, "16")])
def test_a_batch_that_does_not_divide_is_refused(ranks, choices):
    data = Images(batch_size=8)
    data.trainer = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": ranks, "rank": 0})
    with pytest.raises(MisconfigurationException, match=rf"divide among {ranks} processes: give {choices} \(--data"):
        data.train_dataloader()


@pytest.mark.slow
@pytest.mark.parametrize(("world", "strategy", "name"), [(*one, name) for one in STRAIGHT for name in STRAIGHT[one]])
def test_a_training_is_the_same(found, name, world, strategy):
    """Weights, averages, samples, images seen, rates, and the table of what was logged."""
    alone, every = found
    for rank in range(world):
        assert differences(alone[name], every[world, rank][name, strategy]) == []
    assert different_rows(alone[name]["rows"], every[world, 0][name, strategy]["rows"]) == []
    assert len(alone[name]["rows"]) >= layouts.STEPS


@pytest.mark.slow
@pytest.mark.parametrize(("world", "strategy"), VALIDATED)
@pytest.mark.parametrize("name", ["diffusion", "gan"])
def test_a_validation_is_the_same(found, name, world, strategy):
    alone, every = found
    expected = alone["validated", name]
    for rank in range(world):
        assert every[world, rank]["validated", name, strategy] == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "how", "name"),
    [(world, how, name) for world in (2, 4) for how in CONTINUED[world] for name in resumed(world)],
)
def test_a_run_goes_on_on_other_processes(found, name, world, how):
    alone, every = found
    for rank in range(world):
        assert differences(alone[name], every[world, rank][(name, *how)]) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", CONTINUED[1])
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_on_one_process(folder, found, tmp_path, name, how):
    strategy, before, many = how
    checkpoint = place(folder, name, before, many) / "previous.ckpt"
    assert differences(found[0][name], fit(name, tmp_path, strategy, 1, checkpoint)) == []
