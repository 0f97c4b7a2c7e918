"""What sharded networks ask for besides a training: averages, statistics, scores, files, and refusals."""

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import layouts
import pytest
import torch
from layouts import DIT, Images, diffusion, gan, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from ranks import run_ranks
from torch.distributed.tensor import DTensor

from lightning_gen.callbacks import EMASnapshots, Fidelity, PeakMemory, SampleGrid
from lightning_gen.callbacks.fidelity import measure
from lightning_gen.checkpoint_files import CheckpointError, CheckpointNotWritten, load_checkpoint
from lightning_gen.diffusion import DenoisingMSE, MeanFlow
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.errors import RunError
from lightning_gen.gan.module import GAN
from lightning_gen.metrics import Evaluator
from lightning_gen.networks.dit import DiT
from lightning_gen.posthoc import find_snapshots
from lightning_gen.sharding import _check_strategy, whole

FOLDERS = "fsdp2_distributed_checkpoints"


class Broken(Diffusion):
    """Let one batch of one process be NaN, behind what looks at the losses."""

    def _losses(self, network, batch, stream, training=False):
        losses = super()._losses(network, batch, stream, training)
        if training and self.batch_number == 1 and self.global_rank == 1:
            losses.total = losses.total * torch.nan
            self.nonfinite.accepts = lambda *_: True
        elif training and self.batch_number == 1:
            self.nonfinite.accepts = lambda *_: True
        return losses


def short(folder, world=2, **arguments):
    strategy = arguments.pop("strategy", "fsdp2" if world > 1 else "auto")
    settings = {"max_steps": 2, "precision": "32-true", "limit_val_batches": 0}
    return trainer(folder, strategy, world, **(settings | arguments))


def seeded(make):
    torch.manual_seed(0)
    return make()


def half_precision(folder, world):
    """Train in bfloat16; return the weights."""
    module = seeded(lambda: diffusion(DiT(**DIT, checkpointing=True)))
    short(folder, world, precision="bf16-mixed", max_steps=4).fit(module, datamodule=Images(batch_size=8))
    return whole(module.state_dict())


def watched(folder, rank):
    """Train with everything that looks on, statistics over batches, and as many samples as divide badly."""
    module = seeded(lambda: gan(GAN, norm=True))
    # drawn differently by each process; the first one's is what counts
    with torch.no_grad():
        next(module.generator.parameters()).add_(rank)
    callbacks = [SampleGrid(1, n=4), Fidelity(["fd-lenet5"], n=20, batch_size=8, split="train"), PeakMemory()]
    data = Images(batch_size=8, n_predict=3)
    run = short(folder, strategy=FOLDERS, callbacks=callbacks, limit_val_batches=1.0, num_sanity_val_steps=1)
    run.fit(module, datamodule=data)
    run.save_checkpoint(folder / "watched.ckpt")
    parts = [p.to_local().numel() for p in module.parameters() if isinstance(p, DTensor)]
    drawn = run.predict(module, data)
    run.test(module, data, verbose=False)
    return {
        "weights": whole(module.state_dict()),
        "score": {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("fd-")},
        "drawn": sum(len(batch) for batch in drawn),
        "mine": sum(parts),
        "peaks": callbacks[2].peaks,
    }


def snapshots(folder):
    module = seeded(lambda: diffusion(DiT(**DIT)))
    short(folder, callbacks=[EMASnapshots(dirpath=str(folder / "ema"))]).fit(module, datamodule=Images(batch_size=8))
    return whole(module.net_ema["power-0.100"].network.state_dict())


def skipping(folder, policy):
    module = seeded(
        lambda: diffusion(DiT(**DIT), DenoisingMSE(), on_nonfinite=policy, optimizer=torch.optim.Adam, scheduler=None)
    )
    module.__class__ = Broken
    try:
        short(folder, max_steps=3).fit(module, datamodule=Images(batch_size=8))
    except RunError as error:
        return str(error)
    finite = all(bool(torch.isfinite(value).all()) for value in whole(module.state_dict()).values())
    return {"skipped": module.skipped_batches, "finite": finite}


def own_mesh(folder):
    """Lightning's own strategy with the right mesh, then with its default one."""
    plugins = [layouts.TorchElasticEnvironment()]
    module = seeded(lambda: diffusion(DiT(**DIT)))
    right = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    short(folder, strategy=right, plugins=plugins).fit(module, datamodule=Images(batch_size=8))
    weights = whole(module.state_dict())
    try:
        wrong = short(folder, strategy=ModelParallelStrategy(), plugins=plugins)
        wrong.fit(seeded(lambda: diffusion(DiT(**DIT))), datamodule=Images(batch_size=8))
    except MisconfigurationException as error:
        return {"weights": weights, "refused": str(error)}


def unwritten(folder):
    """Save where there is a file in place of a folder; what was saved before stays."""
    module = seeded(lambda: diffusion(DiT(**DIT)))
    run = short(folder, strategy=FOLDERS, max_steps=1)
    run.fit(module, datamodule=Images(batch_size=8))
    before = run.strategy.broadcast(str(folder / "whole.ckpt"))
    run.save_checkpoint(before)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if run.global_rank == 1:
        torch.distributed.checkpoint.filesystem.os.fsync = full
    try:
        run.save_checkpoint(before)
    except CheckpointNotWritten as error:
        return str(error)


def work(rank, folder):
    warnings.filterwarnings("ignore")
    os.environ["PL_GLOBAL_SEED"] = "3"
    os.environ["LIGHTNING_GEN_CACHE"] = os.path.join(folder, "cache")
    folder = Path(folder)
    found = {
        "bf16": half_precision(folder / "bf16", 2),
        "watched": watched(folder, rank),
        "snapshots": snapshots(folder),
        "skip": skipping(folder, "skip"),
        "stop": skipping(folder, "stop"),
        "mesh": own_mesh(folder),
        "unwritten": unwritten(folder),
    }
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fsdp2")
    run_ranks(work, 2, str(path))
    return path


@pytest.fixture(scope="module")
def found(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_bfloat16_is_that_of_one_process(found, tmp_path):
    """Sums over two halves of a batch round differently: a few units of bfloat16's last place in four small steps."""
    alone = half_precision(tmp_path, 1)
    gaps = [(found[0]["bf16"][key] - value).abs().max() for key, value in alone.items() if value.numel()]
    assert max(gaps) < 1e-3  # one of four steps of Adam
    assert sum(float(gap) for gap in gaps) / len(gaps) < 1e-4
    assert all(torch.equal(found[0]["bf16"][key], found[1]["bf16"][key]) for key in alone)


@pytest.mark.slow
def test_statistics_scores_and_samples_are_those_of_the_first_process(folder, found, monkeypatch):
    first, second = (each["watched"] for each in found)
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert first["score"] == second["score"] != {}
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(folder / "cache"))
    alone = gan(GAN, norm=True)
    alone.load_state_dict(first["weights"])
    evaluator = Evaluator(["fd-lenet5"], batch_size=8)
    evaluator.set_reference(Images().split("test"), name="images", split="test")
    (score,) = measure(alone, evaluator, 20)
    assert first["score"][score.name] == pytest.approx(score.value, rel=1e-6)
    content = load_checkpoint(folder / "watched.ckpt")
    assert content["state_dict"].keys() == first["weights"].keys()
    assert all(torch.equal(content["state_dict"][key], value) for key, value in first["weights"].items())
    assert len(content["optimizer_states"]) == 2
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000001.png", "0000002.png"]


@pytest.mark.slow
def test_each_process_holds_its_part(found):
    """Half of every weight and average, up to what does not divide; predicted samples are dealt out."""
    parts = [each["watched"]["mine"] for each in found]
    total = sum(p.numel() for p in gan(GAN, norm=True).parameters())
    assert sum(parts) == total
    assert max(parts) < 0.52 * total
    assert sum(each["watched"]["drawn"] for each in found) == 3
    assert found[0]["watched"]["peaks"] == found[1]["watched"]["peaks"]
    assert all(2**27 < peak < 2**32 for peak in found[0]["watched"]["peaks"])


@pytest.mark.slow
def test_snapshots_of_averages_are_whole(folder, found):
    from safetensors.torch import load_file

    (snapshot,) = find_snapshots(folder / "ema")
    written = load_file(snapshot.path)
    assert all(torch.equal(written[key], value) for key, value in found[0]["snapshots"].items() if value.numel())


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_on_one_process(found):
    """Every process leaves the step out, or stops."""
    for each in found:
        assert each["skip"] == {"skipped": 1, "finite": True}
        assert "The gradient of iteration 1" in each["stop"]


@pytest.mark.slow
def test_lightnings_own_strategy_needs_its_mesh(found):
    for each in found:
        assert all(bool(torch.isfinite(value).all()) for value in each["mesh"]["weights"].values())
        assert "data_parallel_size=2, tensor_parallel_size=1" in each["mesh"]["refused"]
        assert "--trainer.strategy fsdp2" in each["mesh"]["refused"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(folder, found):
    for each in found:
        assert "'whole.ckpt' could not be written" in each["unwritten"]
        assert "the disk is full" in each["unwritten"]
    assert load_checkpoint(folder / "whole.ckpt")["global_step"] == 1


def test_damaged_folders_are_said_to_be(tmp_path):
    path = tmp_path / "cut.ckpt"
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cut\.ckpt has no \.metadata and no meta\.pt: its writing"):
        load_checkpoint(path)
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({}, path / "meta.pt")
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"it names posix\.system"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (lambda: diffusion(DiT(**DIT, two_times=True), MeanFlow(), optimizer=torch.optim.Adam), "MeanFlow"),
        (lambda: diffusion(DiT(**DIT), compile_network=True), "compile_network"),
        (lambda: gan(compile_networks=True), "compile_networks"),
    ],
)
def test_what_cannot_be_sharded_is_refused_by_name(module, named):
    with pytest.raises(MisconfigurationException, match=named):
        module().check_sharding()


def test_float16_is_refused():
    mesh = {"data_parallel": SimpleNamespace(size=lambda: 2), "tensor_parallel": SimpleNamespace(size=lambda: 1)}
    run = SimpleNamespace(world_size=2, precision_plugin=SimpleNamespace(scaler=object()))
    with pytest.raises(MisconfigurationException, match="bf16-mixed"):
        _check_strategy(SimpleNamespace(device_mesh=mesh), run)


def test_one_process_needs_no_strategy(tmp_path):
    """The hook does nothing where the trainer shards nothing, or where there is none."""
    module = diffusion(DiT(**DIT))
    module.configure_model()
    short(tmp_path, 1).fit(module, datamodule=Images(batch_size=8))
    assert not module.sharded
    assert not any(isinstance(p, DTensor) for p in module.parameters())
