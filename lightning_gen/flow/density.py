r"""The density of a flow, and what its gradient says about noise.

.. math:: \log p(x) = \log \mathcal N(f(x); 0, I) + \log\left|\det \frac{\partial f}{\partial x}\right|

Where the flow has learned images with normal noise of the standard deviation sigma, the image expected behind a noisy
one is

.. math:: \mathrm E[x_0 \mid x] = x + \sigma^2\, \nabla_x \log p(x).

References:
    Density estimation using Real NVP
    https://arxiv.org/abs/1605.08803
    Normalizing Flows are Capable Generative Models (denoising)
    https://arxiv.org/abs/2412.06329
    Tweedie's Formula and Selection Bias
    https://doi.org/10.1198/jasa.2011.tm11181
"""

import math
from typing import cast

import torch
from torch import Tensor

from lightning_gen.networks.flow import FlowNetwork


def log_density(network: FlowNetwork, x: Tensor, label: Tensor | None = None) -> Tensor:
    """Return log p(x) in nats, `(B,)`.

    Args:
        network: the flow.
        x: images `(B, C, H, W)`.
        label: their classes, as the network takes them.
    """
    z, logdet = cast(tuple[Tensor, Tensor], network(x, label))
    dims = z[0].numel()
    return logdet - 0.5 * z.square().flatten(1).sum(1) - 0.5 * dims * math.log(2 * math.pi)


def denoised(network: FlowNetwork, x: Tensor, noise_std: float, label: Tensor | None = None) -> Tensor:
    """Return the images expected behind noisy ones; works under `torch.no_grad` and `torch.inference_mode` too.

    The network must leave samples alone: in evaluation mode, without batch statistics.

    Args:
        network: a flow that has learned images with such noise.
        x: images `(B, C, H, W)`.
        noise_std: standard deviation of the noise.
        label: their classes, as the network takes them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # a tensor made in inference mode has no gradient; its copy has
        noisy = x.detach().clone().requires_grad_()
        own = None if label is None else label.clone()
        (score,) = torch.autograd.grad(log_density(network, noisy, own).sum(), noisy)
    return x + noise_std**2 * score
