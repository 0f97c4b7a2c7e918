r"""The weight of the adversarial loss that VQGAN balances by gradients.

.. math:: \lambda = \min\left( \frac{\|\nabla_L \mathcal L_\text{rec}\|}{\|\nabla_L \mathcal L_G\| + 10^{-6}},\;
    10^4 \right)

with the gradients by the weights L of the decoder's last layer (equation 7), so that both losses pull as hard at it.

References:
    Taming Transformers for High-Resolution Image Synthesis
    https://arxiv.org/abs/2012.09841
"""

import torch
from torch import Tensor

from lightning_gen.autoencoder.joined import summed
from lightning_gen.metrics.distributed import world

LARGEST = 1e4
_EPSILON = 1e-6


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the weight of the adversarial loss: a scalar without gradients, in [0, 10^4], finite.

    It is 0 where there is nothing to balance: without gradients, for a frozen decoder, or while the discriminator is
    off and the adversarial loss a constant. The gradients are those of the joined batch, so that all processes find
    one weight; all of them have to call, and the losses' graphs are kept.

    Args:
        reconstruction: scalar loss of the reconstruction, any perceptual part included.
        adversarial: scalar loss that the discriminator gives the generator, without its weight.
        last_layer: `ImageDecoder.last_layer`.

    Raises:
        ValueError: for a loss that is no scalar.
    """
    for name, loss in (("reconstruction", reconstruction), ("adversarial", adversarial)):
        if loss.numel() != 1:
            raise ValueError(f"adaptive_weight takes scalar losses; {name} has shape {tuple(loss.shape)}: average it.")
    zero = torch.zeros((), dtype=torch.promote_types(last_layer.dtype, torch.float32), device=last_layer.device)
    graphs = reconstruction.requires_grad and adversarial.requires_grad and last_layer.requires_grad
    if not (graphs and torch.is_grad_enabled()):
        return zero
    norms = [_gradient(loss, last_layer, zero.dtype).norm() for loss in (reconstruction, adversarial)]
    ratio = norms[0] / (norms[1] + _EPSILON)
    # float16's gradients may overflow before they are scaled
    return torch.nan_to_num(ratio, nan=0.0, posinf=LARGEST).clamp(0, LARGEST)


def _gradient(loss: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of the mean of the processes' losses."""
    (gradient,) = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    if gradient is None:
        return weights.new_zeros(1, dtype=dtype)
    return summed(gradient.to(dtype)) / world()[1]
