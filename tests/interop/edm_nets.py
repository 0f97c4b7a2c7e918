"""EDM's networks written from the papers, with EDM's names of weights, and its way of pickling, imitated."""

import math
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SOURCE = "import pathlib\npathlib.Path({marker!r}).touch()\n"


class Persistence:
    """While active, objects of the classes it marks are pickled as EDM's are, their source code beside them."""

    def __init__(self, marker):
        self.source = SOURCE.format(marker=str(marker))
        self.modules = {
            name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
        }

        def _reconstruct_persistent_obj(meta):
            raise AssertionError("only its name is wanted")

        class EasyDict(dict):
            pass

        self.reconstruct, self.easy_dict = _reconstruct_persistent_obj, EasyDict
        for thing, module in ((_reconstruct_persistent_obj, "torch_utils.persistence"), (EasyDict, "dnnlib.util")):
            thing.__module__, thing.__qualname__ = module, thing.__name__
            setattr(self.modules[module], thing.__name__, thing)

    def __enter__(self):
        sys.modules.update(self.modules)
        _ACTIVE.append(self)
        return self

    def __exit__(self, *_):
        _ACTIVE.pop()
        for name in self.modules:
            del sys.modules[name]


_ACTIVE = []


class Persistent:
    """Mixin of what is pickled with its constructor's arguments and, it pretends, its source code."""

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": _ACTIVE[-1].source,
            "class_name": type(self).__name__,
            "state": dict(self.__dict__),
        }
        return _ACTIVE[-1].reconstruct, (meta,)


def persistent(cls):
    original = cls.__init__

    def initialize(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self._init_args, self._init_kwargs = args, kwargs

    return type(cls.__name__, (Persistent, cls), {"__init__": initialize})


def drawn(*shape):
    return nn.Parameter(torch.randn(*shape) * 0.3)


@persistent
class Linear(nn.Module):
    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.weight, self.bias = drawn(outputs, inputs), drawn(outputs) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


@persistent
class Conv2d(nn.Module):
    def __init__(self, inputs, outputs, kernel, up=False, down=False):
        super().__init__()
        self.up, self.down, self.kernel = up, down, kernel
        self.weight = drawn(outputs, inputs, kernel, kernel) if kernel else None
        self.bias = drawn(outputs) if kernel else None
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if up or down else None)

    def forward(self, x):
        if self.up:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        if self.down:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x


@persistent
class GroupNorm(nn.Module):
    def __init__(self, channels, eps):
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight, self.bias = drawn(channels), drawn(channels)

    def forward(self, x):
        g = x.reshape(len(x), self.groups, -1)
        g = (g - g.mean(-1, keepdim=True)) / (g.var(-1, keepdim=True, correction=0) + self.eps).sqrt()
        return g.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


@persistent
class UNetBlock(nn.Module):
    def __init__(self, inputs, outputs, emb, song, up=False, down=False, attention=False):
        super().__init__()
        self.inputs, self.outputs, self.song = inputs, outputs, song
        # a numpy number, as in EDM
        self.skip_scale = np.sqrt(0.5) if song else 1
        self.heads = (1 if song else outputs // 64) if attention else 0
        eps = 1e-6 if song else 1e-5
        self.norm0, self.norm1 = GroupNorm(inputs, eps), GroupNorm(outputs, eps)
        self.conv0, self.conv1 = Conv2d(inputs, outputs, 3, up, down), Conv2d(outputs, outputs, 3)
        self.affine = Linear(emb, outputs if song else 2 * outputs)
        self.skip = None
        if inputs != outputs or up or down:
            self.skip = Conv2d(inputs, outputs, 1 if inputs != outputs or song else 0, up, down)
        if self.heads:
            self.norm2, self.qkv, self.proj = (
                GroupNorm(outputs, eps),
                Conv2d(outputs, 3 * outputs, 1),
                Conv2d(outputs, outputs, 1),
            )

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        e = self.affine(emb)[:, :, None, None]
        if self.song:
            h = self.norm1(h + e)
        else:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        h = self.conv1(F.silu(h)) + (x if self.skip is None else self.skip(x))
        h = h * float(self.skip_scale)
        return h if not self.heads else (h + self.attended(h)) * float(self.skip_scale)

    def attended(self, x):
        batch, channels, height, width = x.shape
        d, out = channels // self.heads, []
        qkv = self.qkv(self.norm2(x)).flatten(2)
        for head in range(self.heads):
            q, k, v = (qkv[:, 3 * d * head + i : 3 * d * (head + 1) : 3] for i in range(3))
            weights = (torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(d)).softmax(-1)
            out.append(torch.einsum("bnm,bcm->bcn", weights, v))
        return self.proj(torch.cat(out, dim=1).reshape(batch, channels, height, width))


class EDMUNet(nn.Module):
    """What both U-Nets have in common."""

    def build(self, song, side, inputs, outputs, label_dim, augment_dim, width, mult, mult_emb, blocks, attention):
        emb = width * mult_emb
        self.map_layer0, self.map_layer1 = Linear(width, emb), Linear(emb, emb)
        self.map_label = None
        if label_dim:
            self.map_label = Linear(label_dim, width if song else emb, song)
        self.map_augment = Linear(augment_dim, width, False) if augment_dim else None
        self.width, self.song, self.label_dim = width, song, label_dim
        self.enc, self.dec, channels = nn.ModuleDict(), nn.ModuleDict(), width
        self.enc[f"{side}x{side}_conv"] = Conv2d(inputs, width, 3)
        skips = [width]
        for level, factor in enumerate(mult):
            size = side >> level
            if level:
                self.enc[f"{size}x{size}_down"] = UNetBlock(channels, channels, emb, song, down=True)
                skips.append(channels)
            for i in range(blocks):
                block = UNetBlock(channels, width * factor, emb, song, attention=size in attention)
                self.enc[f"{size}x{size}_block{i}"], channels = block, width * factor
                skips.append(channels)
        for level, factor in reversed(list(enumerate(mult))):
            size = side >> level
            if level == len(mult) - 1:
                self.dec[f"{size}x{size}_in0"] = UNetBlock(channels, channels, emb, song, attention=True)
                self.dec[f"{size}x{size}_in1"] = UNetBlock(channels, channels, emb, song)
            else:
                self.dec[f"{size}x{size}_up"] = UNetBlock(channels, channels, emb, song, up=True)
            for i in range(blocks + 1):
                attend = size in attention and (i == blocks or not song)
                block = UNetBlock(channels + skips.pop(), width * factor, emb, song, attention=attend)
                self.dec[f"{size}x{size}_block{i}"], channels = block, width * factor
        return channels

    def embedded(self, noise_label, label, augment):
        n = self.width // 2
        powers = torch.arange(n, dtype=torch.float64) / (n - self.song)
        angles = noise_label[:, None] * 10000**-powers
        e = torch.cat([angles.sin(), angles.cos()] if self.song else [angles.cos(), angles.sin()], dim=1)
        if self.map_augment is not None and augment is not None:
            e = e + self.map_augment(augment)
        if self.song and self.map_label is not None:
            e = e + self.map_label(label * math.sqrt(self.label_dim))
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if not self.song and self.map_label is not None:
            e = e + self.map_label(label)
        return F.silu(e)

    def through(self, x, emb):
        skips = []
        for name, part in self.enc.items():
            x = part(x) if name.endswith("conv") else part(x, emb)
            skips.append(x)
        for name, part in self.dec.items():
            if "aux" not in name:
                x = part(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, emb)
        return x


@persistent
class SongUNet(EDMUNet):
    def __init__(
        self, img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=128,
        channel_mult=(1, 2, 2, 2), channel_mult_emb=4, num_blocks=4, attn_resolutions=(16,), dropout=0.1,
        label_dropout=0, embedding_type="positional", channel_mult_noise=1, encoder_type="standard",
        decoder_type="standard", resample_filter=(1, 1),
    ):  # fmt: skip
        super().__init__()
        channels = self.build(
            True, img_resolution, in_channels, out_channels, label_dim, augment_dim, model_channels, channel_mult,
            channel_mult_emb, num_blocks, attn_resolutions,
        )  # fmt: skip
        self.size = f"{img_resolution}x{img_resolution}"
        self.dec[f"{self.size}_aux_norm"] = GroupNorm(channels, 1e-6)
        self.dec[f"{self.size}_aux_conv"] = Conv2d(channels, out_channels, 3)

    def forward(self, x, noise_label, label=None, augment=None):
        x = self.through(x, self.embedded(noise_label, label, augment))
        return self.dec[f"{self.size}_aux_conv"](F.silu(self.dec[f"{self.size}_aux_norm"](x)))


@persistent
class DhariwalUNet(EDMUNet):
    def __init__(
        self, img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=192,
        channel_mult=(1, 2, 3, 4), channel_mult_emb=4, num_blocks=3, attn_resolutions=(32, 16, 8), dropout=0.1,
        label_dropout=0,
    ):  # fmt: skip
        super().__init__()
        channels = self.build(
            False, img_resolution, in_channels, out_channels, label_dim, augment_dim, model_channels, channel_mult,
            channel_mult_emb, num_blocks, attn_resolutions,
        )  # fmt: skip
        self.out_norm, self.out_conv = GroupNorm(channels, 1e-5), Conv2d(channels, out_channels, 3)

    def forward(self, x, noise_label, label=None, augment=None):
        x = self.through(x, self.embedded(noise_label, label, augment))
        return self.out_conv(F.silu(self.out_norm(x)))


@persistent
class EDMPrecond(nn.Module):
    def __init__(
        self, img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_data=0.5, model_type="SongUNet", **more
    ):
        super().__init__()
        self.sigma_data = sigma_data
        # the arguments by name, as in EDM
        self.model = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels,
            label_dim=label_dim,
            **more,
        )


@persistent
class EDMLoss:
    def __init__(self, P_mean=-1.2, P_std=1.2, sigma_data=0.5):
        self.P_mean, self.P_std, self.sigma_data = P_mean, P_std, sigma_data
