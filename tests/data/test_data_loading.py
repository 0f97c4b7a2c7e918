"""Orders, flips, ranks, batches and resuming."""

import os
import threading

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_gen.data import DigitsDataModule, MNISTDataModule, TensorImages
from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import BatchView, flips
from lightning_gen.data.loading import EpochSampler, RankSampler, even_batch_size

# workers are forked, on machines of any number of cores
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
]


class Counted(ImageDataModule):
    """Images whose label is their index, so that a batch tells what is in it."""

    name = "counted"

    def __init__(self, n=20, **kwargs):
        super().__init__(**kwargs)
        self.n = n

    def _describe(self):
        return Description((1, 2, 2), self.n, None)

    def _load(self, split):
        labels = torch.arange(self.n)
        images = (labels.view(-1, 1, 1, 1) + torch.tensor([[0, 100], [0, 100]])).to(torch.uint8)
        return TensorImages(images, labels, self.n)


def labels(loader, epoch=None):
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
    return [batch["label"].tolist() for batch in loader]


def flat(batches):
    return [label for batch in batches for label in batch]


# ---- order


def test_the_order_is_a_function_of_seed_and_epoch():
    first = labels(Counted(batch_size=4, seed=3).train_dataloader(), 0)
    module = Counted(batch_size=4, seed=3)
    loader = module.train_dataloader()
    torch.manual_seed(99)
    assert labels(loader, 5) != first
    assert labels(loader, 0) == first
    assert labels(loader) == first  # the epoch alone moves it, not the passes made
    assert labels(Counted(batch_size=4, seed=4).train_dataloader(), 0) != first
    assert sorted(flat(first)) == list(range(20))


def test_workers_do_not_change_batches():
    alone = Counted(batch_size=3, flip=True).train_dataloader()
    shared = Counted(batch_size=3, flip=True, num_workers=2).train_dataloader()
    assert shared.persistent_workers
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        shared.sampler.set_epoch(epoch)
        for one, two in zip(alone, shared, strict=True):
            assert torch.equal(one["image"], two["image"])
            assert torch.equal(one["label"], two["label"])
    del shared


@pytest.mark.parametrize(("n", "ranks"), [(20, 1), (20, 4), (23, 4), (3, 4)])
def test_rank_slices_are_disjoint_and_alike_in_length(n, ranks):
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(range(n), ranks, rank, seed=1)
        sampler.set_epoch(2)
        shares.append([index - 2 * n for index in sampler])
        assert len(shares[-1]) == len(sampler)
    every = flat(shares)
    assert len({len(share) for share in shares}) == 1
    if n >= ranks:
        assert len(set(every)) == len(every) == n // ranks * ranks
    else:
        assert [len(share) for share in shares] == [1] * ranks
        assert set(every) == set(range(n))


def test_the_joined_batches_of_all_ranks_are_those_of_one_process():
    one = labels(Counted(24, batch_size=8).train_dataloader(), 3)
    ranks = []
    for rank in range(2):
        view = BatchView(Counted(24).split("train"))
        sampler = EpochSampler(view, 2, rank)
        sampler.set_epoch(3)
        ranks.append(labels(DataLoader(view, batch_size=4, sampler=sampler, collate_fn=lambda batch: batch)))
    for whole, *parts in zip(one, *ranks, strict=True):
        assert sorted(whole) == sorted(flat(parts))


def test_evaluation_ranks_hold_every_image_once():
    for n, ranks in ((20, 3), (2, 3), (21, 2)):
        shares = [list(RankSampler(range(n), ranks, rank)) for rank in range(ranks)]
        assert sorted(flat(shares)) == list(range(n))


def test_all_ranks_have_as_many_evaluation_batches():
    for n in range(4, 200):
        for ranks in (1, 2, 3):
            for batch_size in (8, 16):
                size = even_batch_size(n, ranks, batch_size)
                counts = {-(-len(range(rank, n, ranks)) // size) for rank in range(ranks)}
                assert len(counts) == 1, (n, ranks, batch_size)
                assert 1 < size <= batch_size


# ---- flips


def test_flips_are_a_function_of_seed_epoch_and_image():
    n = torch.arange(20_000)
    first = flips(0, torch.zeros_like(n), n)
    assert torch.equal(first[[5, 17, 3]], flips(0, torch.zeros(3, dtype=torch.int64), torch.tensor([5, 17, 3])))
    for other in (flips(1, torch.zeros_like(n), n), flips(0, torch.ones_like(n), n), first.roll(1)):
        # two fair independent coins agree half of the time: 4 standard deviations are 0.014
        assert abs((first == other).float().mean() - 0.5) < 0.014
    assert abs(first.float().mean() - 0.5) < 0.014


def test_flips_mirror_left_and_right_in_training_only():
    module = Counted(200, batch_size=50, flip=True)
    loader = module.train_dataloader()
    mirrored = {}
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for image, label in zip(batch["image"].long(), batch["label"].tolist(), strict=True):
                left, right = image[0, 0, 0].item(), image[0, 0, 1].item()
                plain = [label % 256, (label + 100) % 256]
                assert [left, right] in (plain, plain[::-1])
                mirrored[epoch, label] = [left, right] != plain
    assert 0 < sum(mirrored.values()) < 400
    assert any(mirrored[0, label] != mirrored[1, label] for label in range(200))
    n = torch.arange(200)
    assert [mirrored[1, label] for label in range(200)] == flips(0, torch.ones_like(n), n).tolist()
    for batch in module.val_dataloader():
        assert (batch["image"][:, 0, 0, 0].long() == batch["label"] % 256).all()


# ---- batches


def test_training_drops_the_rest_and_evaluation_does_not():
    module = Counted(22, batch_size=8)
    assert [len(batch) for batch in labels(module.train_dataloader())] == [8, 8]
    assert labels(module.val_dataloader()) == [list(range(8)), list(range(8, 16)), list(range(16, 22))]
    assert labels(module.test_dataloader()) == labels(module.val_dataloader())
    assert len(module.val_dataloader()) == 3


def test_fewer_images_than_a_batch_are_one_batch():
    assert sorted(flat(labels(Counted(5, batch_size=8).train_dataloader()))) == list(range(5))
    assert len(labels(Counted(8, batch_size=8).train_dataloader())) == 1


def test_prediction_goes_through_indices():
    batches = list(Counted(n_predict=5, batch_size=2).predict_dataloader())
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0].dtype == torch.int64


def test_elements_are_plain_and_fit_the_default_loader():
    dataset = Counted(7).split("test")
    assert dataset[2]["image"].shape == (1, 2, 2)
    assert dataset[-1]["label"].item() == 6
    with pytest.raises(IndexError):
        dataset[7]
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["image"].shape == (4, 1, 2, 2)
    assert batch["image"].dtype == torch.uint8
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert len(list(dataset)) == 7


def test_unlabelled_batches_have_no_label():
    assert set(TensorImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))[0]) == {"image"}


@pytest.mark.parametrize(
    ("images", "given", "num_classes", "message"),
    [
        (torch.zeros(2, 1, 2, 2), None, None, "uint8"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), None, None, "N, C, H, W"),
        (torch.zeros(2, 4, 2, 2, dtype=torch.uint8), None, None, "1 channel"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 3]), 3, "label of image 1 is 3.*0 ... 2"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, -1]), 3, "out of range"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), 3, "2 images need"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0.0, 1.0]), 3, "int64"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), None, "together"),
    ],
)
def test_misuse_is_told(images, given, num_classes, message):
    with pytest.raises(ValueError, match=message):
        TensorImages(images, given, num_classes)


@pytest.mark.parametrize("option", ["batch_size", "num_workers", "seed", "n_predict"])
def test_numbers_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=option):
        DigitsDataModule(**{option: -1})


# ---- under the Trainer


class Recorder(LightningModule):
    """Writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []
        self.automatic_optimization = True

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch["label"].tolist(), batch["image"].sum().item()))
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["label"].tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves at one batch, or at the end of an epoch, and then stops as a kill would."""

    def __init__(self, path, epoch, batch=None):
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)
            raise InterruptedError

    def on_train_epoch_end(self, trainer, pl_module):
        if self.batch is None and trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


def trainer(tmp_path, *callbacks, **kwargs):
    return Trainer(
        **{"max_epochs": 3, **kwargs},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", [(0, 2), (1, 1), (1, 4), (1, None), (0, None)])
def test_a_run_cut_off_goes_on_with_the_next_batch(tmp_path, workers, place):
    def module():
        return Counted(20, batch_size=4, flip=True, num_workers=workers, seed=7)

    whole = Recorder()
    trainer(tmp_path).fit(whole, datamodule=module())
    assert len(whole.seen) == 15
    path = tmp_path / "cut.ckpt"
    before, after = Recorder(), Recorder()
    with pytest.raises(InterruptedError):
        trainer(tmp_path, SaveAt(path, *place)).fit(before, datamodule=module())
    trainer(tmp_path).fit(after, datamodule=module(), ckpt_path=path)
    assert before.seen + after.seen == whole.seen


def test_a_resumed_module_can_be_trained_anew(tmp_path):
    module, path = Counted(20, batch_size=4), tmp_path / "cut.ckpt"
    with pytest.raises(InterruptedError):
        trainer(tmp_path, SaveAt(path, 1, 2)).fit(Recorder(), datamodule=module)
    trainer(tmp_path).fit(Recorder(), datamodule=module, ckpt_path=path)
    anew, whole = Recorder(), Recorder()
    trainer(tmp_path).fit(anew, datamodule=module)
    trainer(tmp_path).fit(whole, datamodule=Counted(20, batch_size=4))
    assert anew.seen == whole.seen


def test_resuming_twice_in_one_epoch(tmp_path):
    whole = Recorder()
    trainer(tmp_path).fit(whole, datamodule=Counted(20, batch_size=4))
    seen, path = [], None
    for number, place in enumerate([(1, 1), (1, 3), None]):
        recorder, target = Recorder(), tmp_path / f"{number}.ckpt"
        callbacks = [SaveAt(target, *place)] if place else []
        try:
            trainer(tmp_path, *callbacks).fit(recorder, datamodule=Counted(20, batch_size=4), ckpt_path=path)
        except InterruptedError:
            path = target
        seen += recorder.seen
    assert seen == whole.seen


def test_checkpoints_of_lightning_load_with_weights_only(tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=7, save_top_k=-1)
    trainer(tmp_path, save, max_epochs=2).fit(Recorder(), datamodule=Counted(20, batch_size=4))
    saved = torch.load(sorted(tmp_path.glob("*step=7.ckpt"))[0], weights_only=True)
    assert saved["Counted"] == {"epoch": 1, "batches": 2}


def test_lightning_sets_the_epoch_and_validates_everything(tmp_path):
    recorder = Recorder()
    trainer(tmp_path, num_sanity_val_steps=0).fit(recorder, datamodule=Counted(21, batch_size=8))
    epochs = [[flat([b for e, _, b, _ in recorder.seen if e == epoch])] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert flat(recorder.validated) == list(range(21)) * 3


def test_overfitting_one_batch_works(tmp_path):
    recorder = Recorder()
    with pytest.warns(UserWarning, match="overfit"):
        trainer(tmp_path, overfit_batches=1).fit(recorder, datamodule=Counted(20, batch_size=4, flip=True))
    assert {tuple(batch) for _, _, batch, _ in recorder.seen} == {(0, 1, 2, 3)}


def test_predicting_reads_and_downloads_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.download", None)

    class Absent(Counted):
        def _load(self, split):
            raise FileNotFoundError(split)

    class Predictor(Recorder):
        def predict_step(self, batch):
            return batch

    for module in (Absent(n_predict=6, batch_size=4), MNISTDataModule(str(tmp_path), n_predict=6)):
        assert torch.cat(trainer(tmp_path).predict(Predictor(), datamodule=module)).tolist() == list(range(6))


def _train_on_rank(rank, path, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    recorder = Recorder()
    recorder.norm = torch.nn.BatchNorm1d(1)  # a buffer, which DDP sends round before every batch
    fitted = trainer(path, strategy="ddp_find_unused_parameters_true", devices=2, max_epochs=2)
    fitted.fit(recorder, datamodule=Counted(25, batch_size=12))
    torch.save({"seen": recorder.seen, "validated": recorder.validated}, path / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_share_the_images(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train_on_rank, args=(rank, tmp_path, port)) for rank in range(2)]
    for process in processes:
        process.start()
    watch = threading.Timer(120, lambda: [process.kill() for process in processes])
    watch.start()
    for process in processes:
        process.join()
    watch.cancel()
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for epoch in range(2):
        shares = [flat([b for e, _, b, _ in rank["seen"] if e == epoch]) for rank in (one, two)]
        assert len(shares[0]) == len(shares[1]) == 12
        assert len(set(shares[0]) | set(shares[1])) == 24
    # 12 and 13 images in batches of 6 would be 2 and 3 batches
    assert len(one["validated"]) == len(two["validated"])
    validated = flat(one["validated"][-3:]) + flat(two["validated"][-3:])
    assert sorted(validated) == list(range(25))
