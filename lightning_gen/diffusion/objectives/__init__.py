"""What a diffusion module minimizes."""

from lightning_gen.diffusion.objectives.base import Fit, Losses, Objective, Setting
from lightning_gen.diffusion.objectives.consistency import Consistency
from lightning_gen.diffusion.objectives.denoising import DenoisingMSE
from lightning_gen.diffusion.objectives.meanflow import MeanFlow

__all__ = ["Consistency", "DenoisingMSE", "Fit", "Losses", "MeanFlow", "Objective", "Setting"]
