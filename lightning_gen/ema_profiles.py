r"""Power-function averages: the weight of the past grows with a power of time, at any length of the run.

After T images the average is

.. math:: \hat\theta_\gamma(T) = \int_0^T p_{\gamma,T}(\tau)\,\theta(\tau)\,d\tau, \qquad
          p_{\gamma,T}(\tau) = \frac{\gamma + 1}{T^{\gamma + 1}}\,\tau^\gamma,

which a step on B images keeps up by :math:`\hat\theta \leftarrow \beta\,\hat\theta + (1 - \beta)\,\theta` with
:math:`\beta = (1 - B/T)^{\gamma + 1}`: exactly the integral, for weights that change in steps. A profile is named
by its standard deviation in parts of T,

.. math:: \sigma_\text{rel}^2 = \frac{\gamma + 1}{(\gamma + 2)^2\,(\gamma + 3)}.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models (section 3.1, appendix C)
    https://arxiv.org/abs/2312.02696
"""

import math

import torch
from torch import Tensor

# the profile of gamma = 0, which weighs all of the past alike
WIDEST = 1 / math.sqrt(12)


def exponent_of(sigma_rel: float) -> float:
    """Return gamma, 0 or more, of the profile with this relative width.

    Args:
        sigma_rel: above 0, and at most 0.2887, the width of the plain mean.

    Raises:
        ValueError: for another width.
    """
    # a width that was rounded to four digits or more counts as the plain mean's
    if not 0 < sigma_rel <= WIDEST + 5e-5:
        raise ValueError(
            f"A relative width is above 0 and at most {WIDEST:.4f} (the mean of all the past); given was {sigma_rel}."
            " Usual are 0.05 to 0.15."
        )
    # from 1 / sigma_rel on the cubic is above 0 and convex: Newton comes down to the largest root
    gamma = 1 / sigma_rel
    while True:
        value = (gamma + 2) ** 2 * (gamma + 3) * sigma_rel**2 - (gamma + 1)
        slope = (gamma + 2) * (3 * gamma + 8) * sigma_rel**2 - 1
        if value <= 0 or slope <= 0 or not gamma - value / slope < gamma:
            return max(gamma, 0.0)
        gamma -= value / slope


def width_of(gamma: float) -> float:
    """Return the relative width of the profile with exponent gamma, above -1."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def power_decay(gamma: float, batch: float, images: float) -> float:
    """Return beta of a step on `batch` images after which `images` have been seen in all; 0 at the first one."""
    return float(max(1 - batch / images, 0.0) ** (gamma + 1)) if images > 0 else 0.0


def overlaps(images: Tensor, gammas: Tensor) -> Tensor:
    r"""Return the inner products of profiles, :math:`\int p_i\,p_j\,d\tau`, `(n, n)`.

    Args:
        images: T of each, float64 `(n,)`.
        gammas: the exponent of each, float64 `(n,)`.
    """
    shorter, longer = torch.minimum(images[:, None], images), torch.maximum(images[:, None], images)
    # the longer profile is integrated up to the end of the shorter one, where this is its share of growth
    outer = torch.where(images[:, None] > images, gammas[:, None], gammas)
    scale = (gammas[:, None] + 1) * (gammas + 1) / ((gammas[:, None] + gammas + 1) * longer)
    return scale * (shorter / longer).pow(outer)
