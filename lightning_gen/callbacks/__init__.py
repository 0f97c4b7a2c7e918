"""What happens during a run besides training: pictures and scores."""

from lightning_gen.callbacks.fidelity import Fidelity
from lightning_gen.callbacks.last_checkpoint import LastCheckpoint
from lightning_gen.callbacks.progress import IterationBar
from lightning_gen.callbacks.sample_grid import SampleGrid

__all__ = ["Fidelity", "IterationBar", "LastCheckpoint", "SampleGrid"]
