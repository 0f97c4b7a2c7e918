r"""Normalization layers by name, and spectral normalization of a whole network.

Spectral normalization divides each weight, seen as a matrix with its output dimension first, by its largest
singular value, so that the layer is 1-Lipschitz:

.. math:: \bar W = W / \sigma(W), \qquad \sigma(W) \approx u^\top W v

where u and v follow W by one step of power iteration per forward pass in training mode and stand still in
evaluation mode. Both are buffers, so that a resumed run continues with the ones it had.

References:
    Spectral normalization for generative adversarial networks: https://arxiv.org/abs/1802.05957
    Group normalization: https://arxiv.org/abs/1803.08494
"""

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from lightning_gen.errors import choose

NormName: TypeAlias = Literal["batch", "group", "layer", "instance", "none"]
_LARGEST_GROUP_COUNT = 32


def make_norm(name: NormName, channels: int) -> nn.Module:
    """Return a normalization of feature maps `(B, channels, H, W)`.

    Args:
        name: "batch" (over the batch and positions), "group" (over positions and groups of channels, up to 32
            groups), "layer" (over positions and all channels), "instance" (over positions), or "none". All
            have a gain and a bias per channel.
        channels: number of channels.

    Raises:
        ValueError: for another name.
    """
    groups = {
        "batch": 0,
        "group": math.gcd(_LARGEST_GROUP_COUNT, channels),
        "layer": 1,
        "instance": channels,
        "none": 0,
    }
    count = choose("normalization", name, {known: groups[known] for known in get_args(NormName)})
    if name == "none":
        return nn.Identity()
    return nn.GroupNorm(count, channels) if count else nn.BatchNorm2d(channels)


def mixes_samples(module: nn.Module) -> bool:
    """Whether the output for one sample depends on the others of its batch (in training mode).

    A penalty on the gradient of each sample's logit is meaningless for such a network, because the gradient
    with respect to one image then holds part of the other logits.
    """
    return any(isinstance(part, _BatchNorm) for part in module.modules())


class _FullPrecision(nn.Module):
    """A parametrization computed outside autocast.

    Autocast on CUDA would run the power iteration's products in bf16 or fp16, whose rounding enters sigma, u
    and v; they are matrix-vector products, so full precision costs next to nothing.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            normalized: Tensor = self.inner(weight)
        return normalized

    def right_inverse(self, value: Tensor) -> Tensor:
        return value


def spectral_normalize(module: nn.Module) -> None:
    """Put spectral normalization on the weight of every convolution, linear layer and embedding, in place.

    Call it after the weights are initialized: the first u and v are found here, from the weights as they are.
    """
    # The parametrization and not the older hook (torch.nn.utils.spectral_norm): the hook leaves a computed
    # tensor as the attribute `weight`, after which copy.deepcopy of the network fails. The price is that the
    # module itself cannot be pickled; its state dict, and so every checkpoint, can.
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            parametrizations.spectral_norm(layer)
            chain = layer.get_submodule("parametrizations.weight")
            if isinstance(chain, nn.ModuleList):
                chain[0] = _FullPrecision(chain[0])
