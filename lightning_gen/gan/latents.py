r"""Latents of a GAN, and the truncation that trades diversity for quality.

Latents are standard normal. With truncation :math:`t` each entry is drawn from the normal restricted to
:math:`[-t, t]`: entries outside are, in the paper's words, resampled until they fall inside. Here they are
drawn at once through the inverse of the distribution function :math:`\Phi`,

.. math:: z = \Phi^{-1}\big(\Phi(-t) + u\,(\Phi(t) - \Phi(-t))\big), \qquad u \sim U[0, 1),

so that each latent takes as many random numbers as it has entries, whatever t is.

References:
    Large Scale GAN Training for High Fidelity Natural Image Synthesis
    https://arxiv.org/abs/1809.11096
"""

import torch
from torch import Tensor

from lightning_gen.seeding import RandomStream


def draw_latents(stream: RandomStream, size: int, truncation: float | None = None) -> Tensor:
    """Draw latents `(n, size)`.

    Args:
        stream: where the numbers come from.
        size: entries of one latent.
        truncation: bound t of every entry; None for the whole normal distribution.

    Raises:
        ValueError: where the truncation is not above 0.
    """
    if truncation is None:
        return stream.normal(size)
    if not isinstance(truncation, (int, float)) or not truncation > 0:
        raise ValueError(f"The truncation is the bound of a latent's entries, above 0; given was {truncation}.")
    uniform = stream.uniform(size)
    precise = uniform.float() if uniform.device.type == "mps" else uniform.double()
    below = torch.special.ndtr(torch.tensor(-truncation, dtype=precise.dtype, device=precise.device))
    z: Tensor = torch.special.ndtri(below + precise * (1.0 - 2.0 * below))
    return z.clamp(-truncation, truncation).to(uniform.dtype)
