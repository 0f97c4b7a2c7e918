"""What our U-Net does in another way than a plain one, change by change, at the sizes of DDPM for CIFAR-10."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Options, Row, Seconds, alternate, timed
from lightning_gen.networks.unet import UNet
from lightning_gen.networks.unet_blocks import conv3, doubled_conv, normalized_silu
from lightning_gen.networks.winograd import Winograd
from lightning_gen.optimizers import DiffusionAdamW

# channels of the input and the output, side: from the largest of the network to those that Winograd's are left out of
LAYERS = [(256, 128, 32), (128, 128, 32), (512, 256, 16), (256, 256, 16), (256, 256, 8), (256, 256, 4), (64, 64, 32)]


def diffusion_conv(options: Options) -> list[Row]:
    """Measure 3x3 convolutions: direct in both layouts of memory, and Winograd's, without and with gradients."""
    batch = options.batch or options.size(16, 2)
    layers = LAYERS[:1] if options.tiny else LAYERS
    return [_conv(options, batch, *layer) for layer in layers]


def _conv(options: Options, batch: int, inputs: int, outputs: int, side: int) -> Row:
    if options.tiny:
        inputs, outputs, side = 8, 8, 8
    lanes: dict[str, Callable[[], Seconds]] = {}
    for gradients in (False, True):
        for name, layout, convolve in (
            ("direct", torch.contiguous_format, _direct),
            ("direct, channels last", torch.channels_last, _direct),
            ("Winograd, channels last", torch.channels_last, Winograd.apply),
        ):
            torch.manual_seed(0)
            layer = conv3(inputs, outputs).to(memory_format=layout)  # type: ignore[call-overload]
            x = torch.randn(batch, inputs, side, side).contiguous(memory_format=layout)
            ask = _asked(convolve, layer, x.requires_grad_(gradients))
            lanes[name + " and gradients" * gradients] = timed(ask, options.size(3, 1), 1, options.device)
    row = Row(
        f"diffusion_conv/{inputs} to {outputs} channels, {side} px",
        f"convolution, batch {batch}",
        alternate(lanes, options.repeats),
        options.clock,
    )
    for suffix in ("", " and gradients"):
        for against in ("direct", "direct, channels last"):
            row.compare(f"Winograd, channels last{suffix}", f"{against}{suffix}", "speedup")
    return row


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def _asked(convolve: Callable[..., Tensor], layer: nn.Conv2d, x: Tensor) -> Callable[[], Any]:
    def ask() -> None:
        with torch.set_grad_enabled(x.requires_grad):
            y = convolve(x, layer.weight, layer.bias)
        if x.requires_grad:
            torch.autograd.grad(y, [x, *layer.parameters()], y.detach())

    return ask


def diffusion_changes(options: Options) -> list[Row]:
    """Measure what the other changes are worth, each by itself: the plain way, then ours."""
    batch = options.batch or options.size(16, 2)
    side = options.size(32, 8)
    torch.manual_seed(0)
    net = UNet.preset("ddpm_cifar10", **({"channels": 16, "norm_groups": 4, "blocks": 1} if options.tiny else {}))
    ways: Mapping[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "modulations of all blocks": _modulations(net, batch),
        "queries, keys and values": _projections(net, batch, side // 2),
        "doubling convolution": _doubling(2 * net.channels, batch, side // 2),
        "normalization and SiLU": _activation(net, batch, side),
        "AdamW": _optimizers(net),
    }
    return [_change(options, name, batch, *both) for name, both in ways.items()]


def _change(options: Options, name: str, batch: int, plain: Callable[[], Any], ours: Callable[[], Any]) -> Row:
    lanes = {
        "plain": timed(torch.no_grad()(plain), options.size(10, 1), 2, options.device),
        "ours": timed(torch.no_grad()(ours), options.size(10, 1), 2, options.device),
    }
    row = Row(f"diffusion_changes/{name}", f"call, batch {batch}", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "plain", "speedup")
    row.compare("ours", "plain", "extra")
    return row


def _modulations(net: UNet, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One linear layer a block, each with the activation of the embedding, and one layer for all."""
    apart = [nn.Linear(net.embedding_dim, width) for width in net.modulation_widths]
    embedded = torch.randn(batch, net.embedding_dim)
    return (
        lambda: [layer(F.silu(embedded)) for layer in apart],
        lambda: net.modulations(F.silu(embedded)).split(net.modulation_widths, dim=1),
    )


def _projections(net: UNet, batch: int, side: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Three products, and one of three times the width."""
    channels = 2 * net.channels
    apart, together = [nn.Linear(channels, channels) for _ in range(3)], nn.Linear(channels, 3 * channels)
    pixels = torch.randn(batch, channels, side, side).flatten(2).transpose(1, 2)
    return lambda: [layer(pixels) for layer in apart], lambda: together(pixels)


def _doubling(channels: int, batch: int, side: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A convolution of the doubled image, and one transposed convolution."""
    layer, x = nn.Conv2d(channels, channels, 3, padding=1), torch.randn(batch, channels, side, side)
    return lambda: layer(F.interpolate(x, scale_factor=2.0, mode="nearest")), lambda: doubled_conv(x, layer)


def _activation(net: UNet, batch: int, side: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """SiLU into memory of its own, and in place."""
    norm, x = net.settings.norm(net.channels), torch.randn(batch, net.channels, side, side)
    return lambda: F.silu(norm(x)), lambda: normalized_silu(norm, x)


def _optimizers(net: UNet) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """AdamW as torch has it by default, and fused."""
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    return torch.optim.AdamW(net.parameters()).step, DiffusionAdamW(net.parameters()).step
