r"""The way from one latent to another along a great circle, on which those of equal length keep it.

.. math:: \frac{\sin((1 - t)\,\omega)}{\sin \omega}\, z_0 + \frac{\sin(t\,\omega)}{\sin \omega}\, z_1,
    \qquad \cos \omega = \frac{z_0 \cdot z_1}{|z_0|\,|z_1|}

References:
    Sampling Generative Networks
    https://arxiv.org/abs/1609.04468
"""

import torch
from torch import Tensor


def slerp(first: Tensor, second: Tensor, places: Tensor) -> Tensor:
    """Go from one vector `(..., D)` to another along a great circle; places from 0, the first, to 1."""
    lengths = [vector.norm(dim=-1, keepdim=True) for vector in (first, second)]
    cosine = (first * second).sum(-1, keepdim=True) / (lengths[0] * lengths[1]).clamp(min=1e-12)
    angle = torch.acos(cosine.clamp(-1, 1))
    # where there is no angle, or a straight one, there is no circle between the two
    straight = angle.sin().abs() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    turned = (torch.sin((1 - places) * angle) * first + torch.sin(places * angle) * second) / sine
    return torch.where(straight, torch.lerp(first, second, places), turned)
