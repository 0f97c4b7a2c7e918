"""What a variational autoencoder does before its first step: it looks at its images, and may start at their mean."""

import logging
from typing import Any

import torch
from torch import Tensor

from lightning_gen.autoencoder.likelihoods import Likelihood
from lightning_gen.training_images import evenly, training_split

logger = logging.getLogger(__name__)
_AT_MOST, _AT_ONCE = 10_000, 256


def mean_image(datamodule: Any) -> Tensor:
    """Return the mean of the training images, of 10,000 of them at most, `(C, H, W)` float64 in [-1, 1]."""
    images = training_split(
        datamodule, "start_at_mean reads the training images; leave it out (--model.start_at_mean false)."
    )
    count, total = 0, torch.zeros(())
    for rows, batch in evenly(images, _AT_MOST, _AT_ONCE):
        count, total = count + len(rows), total + batch.double().sum(0)
    return total / count


def number_of_images(datamodule: Any) -> int:
    """Return how many training images there are."""
    return len(
        training_split(
            datamodule,
            "BetaTC has to know the number of training images: give it as data_size (--model.objective.data_size).",
        )
    )


def warn_of_other_values(likelihood: Likelihood, x: Tensor) -> None:
    """Say that a probability mass is none of these images, `(B, C, H, W)`."""
    if likelihood.levels is None or likelihood.is_mass_of(x):
        return
    logger.warning(
        f"{type(likelihood).__name__} is the probability mass of images of {likelihood.levels} values, and these have"
        " others, which it reads as probabilities or rounds: what is logged is no likelihood of them. For that,"
        " binarize them (--model.binarize dynamic), or use DiscretizedLogistic with their number of values"
        " (--model.likelihood DiscretizedLogistic)."
    )
