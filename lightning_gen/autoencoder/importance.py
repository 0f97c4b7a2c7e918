r"""The log-likelihood of images, by importance sampling.

.. math:: \log p(x) \approx \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)},
    \qquad z_k \sim q(z \mid x),

which on average is below it, the less so the more draws there are.

References:
    Importance Weighted Autoencoders
    https://arxiv.org/abs/1509.00519
"""

import torch
from torch import Tensor

from lightning_gen.autoencoder.objectives import checked_samples, log_mean_exp
from lightning_gen.autoencoder.vae_net import VAENet
from lightning_gen.seeding import RandomStream

# images decoded at once where a likelihood takes many draws
_AT_ONCE = 4096


def importance_sampled(
    net: VAENet, images: Tensor, label: Tensor | None, stream: RandomStream, samples: int, chunk: int | None = None
) -> Tensor:
    """Return the log-likelihood of images in nats, `(B,)`, by exactly so many draws.

    Args:
        net: the networks.
        images: `(B, C, H, W)` in [-1, 1].
        label: their classes, int64 `(B,)`, of a conditional model.
        stream: draws the latents.
        samples: draws K of each image's latents.
        chunk: draws that are decoded at once; None for as many as make some thousand images.
    """
    left = checked_samples(samples)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is the number of draws decoded at once, 1 or more; given was {chunk}.")
    chunk = max(1, _AT_ONCE // max(len(images), 1)) if chunk is None else chunk
    net.likelihood.check(images)
    features = net.encoder(images, label)
    kept = []
    while left:
        drawn = min(chunk, left)
        kept.append(net.terms(features, images, net.noise(stream, drawn), label).log_weights)
        left -= drawn
    return log_mean_exp(torch.cat(kept))
