"""What it costs that runs survive: an iteration with and without, and how long training waits for a checkpoint."""

import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from benchmarks.data import MemoryData
from benchmarks.gans import BATCH, Networks, TickingGAN, dcgan, fit_lane, fused_adam, memory_data, mlp, our_gan
from benchmarks.timing import Options, Row, Seconds, Stopwatch, alternate
from lightning_gen.background import BackgroundCheckpointIO
from lightning_gen.callbacks import LastCheckpoint, SaveWhenStopped, ShareFailure
from lightning_gen.callbacks.last_checkpoint import save_last
from lightning_gen.checkpoint_files import AtomicCheckpointIO
from lightning_gen.networks import ResNetDiscriminator, ResNetGenerator
from lightning_gen.nonfinite import FiniteGradients


def survival(options: Options) -> list[Row]:
    """Measure an iteration of `lightning-gen fit`'s callbacks and gradient check, and one without them."""
    return [
        _iteration(options, "mlp", mlp, (1, 8, 8), options.size(50, 1), options.size(400, 2)),
        _iteration(options, "dcgan32", dcgan, (3, 32, 32), options.size(2, 1), options.size(8, 1)),
    ]


def _iteration(
    options: Options,
    name: str,
    make: Callable[[Options], Networks],
    shape: tuple[int, int, int],
    warmup: int,
    count: int,
) -> Row:
    data = memory_data(shape, warmup + count)
    with tempfile.TemporaryDirectory() as folder:
        safe = fit_lane(options, lambda: our_gan(make(options)), data, warmup, count, callbacks=lambda: kept(folder))
        plain = fit_lane(options, lambda: our_gan(make(options)), data, warmup, count)
        times = alternate({"with": safe, "without": _unchecked(plain)}, options.repeats)
    row = Row(f"survival/{name}", f"iteration, batch {BATCH}", times, options.clock)
    row.compare("with", "without", "slowdown", goal=1.02 if name == "dcgan32" else None)
    row.compare("with", "without", "extra")
    return row


def kept(folder: str) -> list[Callback]:
    """The callbacks that the command line adds for the sake of survival; no checkpoint is due within the time."""
    return [
        ShareFailure(),
        SaveWhenStopped(folder),
        LastCheckpoint(every_n_steps=10**9, every_minutes=600, dirpath=folder),
    ]


def _unchecked(lane: Callable[[], Seconds]) -> Callable[[], Seconds]:
    """Leave the look at the gradients out."""

    def measure() -> Seconds:
        with _accepting():
            return lane()

    return measure


@contextmanager
def _accepting() -> Iterator[None]:
    accepts = FiniteGradients.accepts
    FiniteGradients.accepts = lambda self, gradients, where: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        FiniteGradients.accepts = accepts  # type: ignore[method-assign]


def checkpoint(options: Options) -> list[Row]:
    """Measure how long training waits for a checkpoint of SNGAN at 32 px, written at once or in the background."""
    width = options.size(256, 4)
    networks = (ResNetGenerator(128, width, (3, 32, 32)), ResNetDiscriminator(width // 2, (3, 32, 32)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trained(networks, Path(folder), memory_data((3, 32, 32), 2))
        written: list[float] = []
        lanes = {
            "waited for": _saving(options, trainer, Path(folder), AtomicCheckpointIO(), written),
            "in the background": _saving(options, trainer, Path(folder), BackgroundCheckpointIO(), []),
        }
        row = Row("checkpoint", "checkpoint that training waits for", alternate(lanes, options.repeats), options.clock)
        size = (Path(folder) / "last.ckpt").stat().st_size
    row.compare("in the background", "waited for", "speedup")
    row.facts["size of the checkpoint"] = f"{size / 1e6:.1f} MB"
    share = statistics.median(written) / 600
    row.facts["share of the time, waited for every ten minutes, the default"] = f"{100 * share:.3f} %"
    return [row]


def _trained(networks: Networks, folder: Path, data: MemoryData) -> Trainer:
    """Return the trainer of a run of one iteration, whose optimizers have their states."""
    module = TickingGAN(*networks, optimizer_g=fused_adam, optimizer_d=fused_adam, ema_half_lives=[1000])
    module.warmup = module.count = 10**9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(folder),
        )
        trainer.fit(module, data)
    return trainer


def _saving(
    options: Options, trainer: Trainer, folder: Path, io: AtomicCheckpointIO, waits: list[float]
) -> Callable[[], Seconds]:
    units = options.size(5, 1)

    def measure() -> Seconds:
        trainer.strategy.checkpoint_io = io
        each = []
        for _ in range(units):
            watch = Stopwatch("cpu")
            watch.start()
            save_last(trainer, folder)
            each.append(watch.stop(1))
            io.teardown()  # the next one comes minutes later
        waits.extend(seconds.wall for seconds in each)
        return Seconds(*(statistics.median(times) for times in zip(*each, strict=True)))

    return measure
