"""What happens during a run besides training: pictures and scores."""

from lightning_gen.callbacks.ema_snapshots import EMASnapshots
from lightning_gen.callbacks.failures import ShareFailure
from lightning_gen.callbacks.fidelity import Fidelity
from lightning_gen.callbacks.held_out import HeldOutResults
from lightning_gen.callbacks.last_checkpoint import LastCheckpoint
from lightning_gen.callbacks.memory import PeakMemory
from lightning_gen.callbacks.progress import IterationBar
from lightning_gen.callbacks.reconstruction import ReconstructionFidelity, ReconstructionGrid
from lightning_gen.callbacks.sample_grid import SampleGrid
from lightning_gen.callbacks.stopping import SaveWhenStopped
from lightning_gen.callbacks.traversal import TraversalGrid

__all__ = [
    "EMASnapshots",
    "Fidelity",
    "HeldOutResults",
    "IterationBar",
    "LastCheckpoint",
    "PeakMemory",
    "ReconstructionFidelity",
    "ReconstructionGrid",
    "SampleGrid",
    "SaveWhenStopped",
    "ShareFailure",
    "TraversalGrid",
]
