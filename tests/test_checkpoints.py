"""Checkpoints: whole or not there, read without executing anything, enough to rebuild a model."""

import errno
import os
import pickle
import resource
import signal
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_gen import CheckpointError, load_module
from lightning_gen.checkpoints import (
    AtomicCheckpointIO,
    CheckpointNotWritten,
    checkpoints_in,
    find_checkpoint,
    load_checkpoint,
    peek,
    rebuild_data,
)

sys.path.insert(0, str(Path(__file__).parent / "cli"))
import toy

CONTENT = {"state_dict": {"w": torch.arange(10_000.0)}, "global_step": 3, "epoch": 1}


def save(path, **changes):
    AtomicCheckpointIO().save_checkpoint({**CONTENT, **changes}, path)
    return path


@pytest.fixture
def described(tmp_path):
    """A checkpoint that a configuration's model and data are written down in."""
    module = toy.Toy(toy.ToyNet(5), num_classes=3)
    hyperparameters = {
        "_class_path": "toy.Toy",
        "net": {"class_path": "toy.ToyNet", "init_args": {"width": 5}},
        "num_classes": 3,
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    data = {"_class_path": "toy.ToyData", "batch_size": 2, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    path = save(
        tmp_path / "x.ckpt",
        state_dict=module.state_dict(),
        hyper_parameters=hyperparameters,
        datamodule_hyper_parameters=data,
    )
    return path, module


def changed(path, **changes):
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"].update(changes)
    torch.save(content, path)
    return path


# ------------------------------------------------------------------ writing


def test_round_trip(tmp_path):
    path = save(tmp_path / "deep" / "x.ckpt")
    for loaded in (load_checkpoint(path), peek(path), AtomicCheckpointIO().load_checkpoint(path)):
        torch.testing.assert_close(loaded["state_dict"]["w"], CONTENT["state_dict"]["w"])
        assert loaded["global_step"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_an_error_of_the_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, number):
    path = save(tmp_path / "x.ckpt")
    before = path.read_bytes()

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(CheckpointNotWritten, match=r"'x.ckpt' could not be written") as error:
        save(path, global_step=4)
    assert str(tmp_path) in str(error.value)
    assert "--trainer.default_root_dir" in str(error.value)
    assert error.value.errno == number
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_disk_that_fills_while_torch_writes(tmp_path):
    """The real writer of torch, stopped by the kernel in the middle of the file."""
    path = save(tmp_path / "x.ckpt")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        with pytest.raises(CheckpointNotWritten, match="could not be written"):
            save(path, global_step=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointNotWritten, match="checkpoints"):
        save(tmp_path / "checkpoints" / "x.ckpt")


def test_errors_that_are_not_of_the_disk_stay_what_they_are(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save(tmp_path / "x.ckpt", bad=lambda: None)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_cut_short(tmp_path, share):
    path = save(tmp_path / "x.ckpt")
    save(tmp_path / "other.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for read in (load_checkpoint, peek):
        with pytest.raises(CheckpointError, match="is cut short") as error:
            read(path)
        assert "other.ckpt" in str(error.value)


def test_a_flipped_byte_is_noticed(tmp_path):
    path = save(tmp_path / "x.ckpt")
    content = bytearray(path.read_bytes())
    content[bytes(content).index(CONTENT["state_dict"]["w"].numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load_checkpoint(path)


def test_not_a_checkpoint(tmp_path):
    text = tmp_path / "x.ckpt"
    text.write_text("model: GAN")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_checkpoint(text)
    archive = tmp_path / "y.ckpt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(archive)
    weights = tmp_path / "z.ckpt"
    torch.save({"layer.weight": torch.zeros(3)}, weights)
    with pytest.raises(CheckpointError, match=r"it holds a dict of 'layer.weight', and no 'state_dict'"):
        load_checkpoint(weights)


def test_missing_and_folder(tmp_path):
    save(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*lst\.ckpt\. The folder holds: last\.ckpt"):
        load_checkpoint(tmp_path / "lst.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


class Touch:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_checkpoint_executes_nothing(tmp_path):
    touched, path = tmp_path / "touched", tmp_path / "x.ckpt"
    torch.save({**CONTENT, "hyper_parameters": Touch(touched)}, path)
    for read in (load_checkpoint, peek, load_module):
        with pytest.raises(CheckpointError, match="holds more than tensors and plain data"):
            read(path)
    assert not touched.exists()
    # it is one that would: read without care it does
    torch.load(path, weights_only=False)
    assert touched.exists()


# ------------------------------------------------------------------ run folders


def test_newest_by_iterations_then_time(tmp_path):
    for name, step, modified in [("a", 5, 100), ("b", 9, 50), ("c", 9, 60), ("d", 7, 200)]:
        os.utime(save(tmp_path / "checkpoints" / f"{name}.ckpt", global_step=step), (modified, modified))
    bad = tmp_path / "checkpoints" / "e.ckpt"
    bad.write_bytes(b"PK")
    found = checkpoints_in(tmp_path)
    assert [one.path.stem for one in found] == ["c", "b", "d", "a", "e"]
    assert "cut short" in found[-1].error
    assert find_checkpoint(tmp_path).name == "c.ckpt"
    assert find_checkpoint(bad) == bad


def test_folder_without_readable_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "x.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="No checkpoint of"):
        find_checkpoint(tmp_path)


# ------------------------------------------------------------------ rebuilding


def test_load_module(described):
    path, module = described
    state = torch.get_rng_state()
    loaded = load_module(path)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert isinstance(loaded, toy.Toy)
    assert not loaded.training
    assert loaded.num_classes == 3
    torch.testing.assert_close(loaded.sample(4, seed=1), module.eval().sample(4, seed=1), rtol=0, atol=0)


def test_rebuild_data(described):
    path, _ = described
    data = rebuild_data(load_checkpoint(path), path)
    assert isinstance(data, toy.ToyData)
    assert data.batch_size == 2
    assert rebuild_data(CONTENT, "x") is None


def test_a_model_built_in_python(tmp_path):
    module = toy.Toy(toy.ToyNet())
    trainer = Trainer(
        max_steps=1,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=toy.ToyData())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"built in Python.*load_from_checkpoint\('.*x.ckpt', generator=\.\.\."):
        load_module(tmp_path / "x.ckpt")
    loaded = toy.Toy.load_from_checkpoint(tmp_path / "x.ckpt", net=toy.ToyNet())
    torch.testing.assert_close(loaded.net.layers[0].weight, module.net.layers[0].weight)


def test_what_a_part_says_of_why_it_cannot_be_built_is_told(tmp_path, monkeypatch):
    """A union of types hides it behind "Expected a NoneType"."""
    net = {"image_shape": [1, 4, 4], "hidden": [4]}
    hyperparameters = {
        "_class_path": "lightning_gen.autoencoder.vae.VAE",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "encoder": {"class_path": "lightning_gen.networks.latent_mlp.MLPEncoder", "init_args": net},
        "decoder": {"class_path": "lightning_gen.networks.latent_mlp.MLPDecoder", "init_args": net},
        "latent_dim": 3,
    }
    prior = {"class_path": "lightning_gen.autoencoder.flow_priors.FlowPrior", "init_args": {"latent_dim": 3}}
    path = save(tmp_path / "a.ckpt", hyper_parameters={**hyperparameters, "prior": prior})
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(CheckpointError, match=r"the package zuko, which is not installed: pip install"):
        load_module(path)
    objective = {"class_path": "lightning_gen.autoencoder.objectives.IWAE", "init_args": {"samples": 0}}
    path = save(tmp_path / "b.ckpt", hyper_parameters={**hyperparameters, "objective": objective})
    with pytest.raises(CheckpointError, match="samples is the number of draws"):
        load_module(path)


@pytest.mark.parametrize(
    "change",
    [
        {"_class_path": "os.system"},
        {"_class_path": "subprocess.Popen"},
        {"_class_path": "toy.ToyNet"},
        {"_class_path": "toy.ToyData"},
        {"_class_path": "torch.nn.Linear"},
        {"_instantiator": "os.system"},
        {"_instantiator": "toy.stop"},
        {"net": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "touched"]}}},
        {"net": {"class_path": "builtins.eval", "init_args": {}}},
        {"net": "os.system"},
        {"net": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}}},
        {"num_classes": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "touched"]}}},
    ],
)
def test_forged_names_build_nothing(described, change, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        load_module(changed(described[0], **change))
    assert not (tmp_path / "touched").exists()


def test_optimizers_may_not_be_forged(tmp_path, monkeypatch):
    """The GAN's optimizers are callables in its hyperparameters."""
    monkeypatch.chdir(tmp_path)
    from lightning_gen.cli import main

    args = [
        "fit",
        "-c",
        "gan/digits",
        "--trainer.max_steps=1",
        "--trainer.callbacks=[]",
        "--model.generator.channels=4",
    ]
    assert main([*args, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]) == 0
    path = find_checkpoint("runs/gan/digits")
    load_module(path)
    for forged in (
        {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "touched"]}},
        "os.system",
        "subprocess.Popen",
    ):
        with pytest.raises(CheckpointError, match="is refused"):
            load_module(changed(path, optimizer_g=forged))
    assert not Path("touched").exists()


def test_modules_that_are_not_imported_are_not_imported(described, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('touched', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for change in ({"_class_path": "evil.Model"}, {"net": {"class_path": "evil.Net"}}, {"net": "evil.Net"}):
        with pytest.raises(CheckpointError, match=r"import it first: `import evil`"):
            load_module(changed(described[0], **change))
    assert not (tmp_path / "touched").exists()


def test_weights_of_another_model(described):
    path, _ = described
    changed(path, net={"class_path": "toy.ToyNet", "init_args": {"width": 6}})
    with pytest.raises(CheckpointError, match="do not fit the model that it describes"):
        load_module(path)


def test_arguments_that_the_class_does_not_have(described):
    path, _ = described
    with pytest.raises(CheckpointError, match=r"cannot be built.*widht"):
        load_module(changed(path, net={"class_path": "toy.ToyNet", "init_args": {"widht": 6}}))
