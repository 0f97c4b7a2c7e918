"""The KL-f8 autoencoder of latent diffusion against diffusers' `AutoencoderKL` with the same weights.

A step of training is of the mean absolute difference and 1e-6 times the divergence, by AdamW; theirs by hand, ours in
`Trainer.fit`. Encoding and decoding are without gradients. The convolution of the first level is measured by itself.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import MemoryData
from benchmarks.diffusion_lanes import ADAMW, optimizer
from benchmarks.diffusion_pair import relative
from benchmarks.gans import TickingOnly, fit_lane
from benchmarks.memory import PeakMemory
from benchmarks.timing import Options, Row, Seconds, Unavailable, alternate, timed
from lightning_gen.autoencoder import Autoencoder, GaussianBottleneck
from lightning_gen.interop.diffusers_autoencoder import autoencoder_parts, autoencoder_to_diffusers
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder
from lightning_gen.networks.winograd import Conv3x3

KL_WEIGHT = 1e-6
TINY: dict[str, Any] = {"channels": 8, "norm_groups": 4, "blocks": 1}
# (side, batch) of a row, chosen so that a repeat takes about a minute on one core
SIZES = {"train": {"cpu": (128, 1), "cuda": (256, 8)}, "encode": {"cpu": (256, 1), "cuda": (256, 16)}}
GOAL, COMPILED_GOAL = 1.0, 1.2


class TickingAutoencoder(TickingOnly, Autoencoder):
    """Our module, timed."""


class Pair:
    """Both autoencoders with the same weights.

    Args:
        options: of the benchmark.
        side: height and width of the images.
    """

    def __init__(self, options: Options, side: int) -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise Unavailable("needs diffusers: pip install -e '.[bench]'") from error
        torch.manual_seed(0)
        how, shape = TINY if options.tiny else {}, (3, side, side)
        self.encoder, self.decoder = ConvolutionalEncoder(shape, **how), ConvolutionalDecoder(shape, **how)
        self.config, state = autoencoder_to_diffusers(self.encoder, self.decoder)
        self.theirs: nn.Module = AutoencoderKL.from_config(self.config)
        self.theirs.load_state_dict(state)
        for network in (self.encoder, self.decoder, self.theirs):
            network.to(options.device)

    def facts(self, images: Tensor) -> dict[str, Any]:
        """Count the parameters, and compare what both make of images, and the gradients."""
        latents = self.encoder(images).chunk(2, dim=1)[0].detach()
        made = {"encoder": self.encoder(images), "decoder": self.decoder(latents)}
        wanted = {"encoder": self.theirs.encode(images).latent_dist.parameters}
        wanted["decoder"] = self.theirs.decode(latents).sample
        for found in (made, wanted):
            sum(output.square().mean() for output in found.values()).backward()
        parts = autoencoder_parts(self.config, {name: p.grad for name, p in self.theirs.named_parameters()})
        facts: dict[str, Any] = {"parameters, diffusers": sum(p.numel() for p in self.theirs.parameters())}
        facts["parameters, ours"] = sum(p.numel() for n in (self.encoder, self.decoder) for p in n.parameters())
        outputs = ({name: value.detach() for name, value in found.items()} for found in (made, wanted))
        facts["largest difference of the outputs, relative"] = f"{relative(*outputs):.1e}"
        differences = []
        for network, gradients in ((self.encoder, parts.encoder_state), (self.decoder, parts.decoder_state)):
            differences.append(relative({name: p.grad for name, p in network.named_parameters()}, gradients))
        facts["largest difference of the gradients, relative"] = f"{max(differences):.1e}"
        self.forget()
        return facts

    def forget(self) -> None:
        """Drop all gradients."""
        for network in (self.encoder, self.decoder, self.theirs):
            network.zero_grad(set_to_none=True)


def _prepared(options: Options, kind: str) -> tuple[Pair, Tensor, dict[str, Any]]:
    side, batch = (32, 2) if options.tiny else SIZES[kind][options.device]
    pair = Pair(options, side)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(options.batch or batch, 3, side, side, generator=generator).to(options.device) * 2 - 1
    return pair, images, pair.facts(images[:1, :, :64, :64])


def autoencoder_train(options: Options) -> list[Row]:
    """Measure a step of training."""
    return _train(options, "autoencoder_train", GOAL)


def autoencoder_train_compiled(options: Options) -> list[Row]:
    """Measure it with ours compiled, and theirs too in a lane of its own."""
    return _train(options, "autoencoder_train_compiled", COMPILED_GOAL, compiled=True)


def _train(options: Options, name: str, goal: float, compiled: bool = False) -> list[Row]:
    pair, images, facts = _prepared(options, "train")
    warmup, count = options.size(20 if options.device == "cuda" else 1, 1), options.size(10, 1)
    count = count if options.device == "cuda" or options.tiny else 1
    batch, shape = len(images), tuple(images.shape[1:])
    data = MemoryData(shape, (warmup + count + 2) * batch, batch)

    def ours() -> TickingAutoencoder:
        bottleneck = GaussianBottleneck(pair.decoder.in_channels, KL_WEIGHT)
        return TickingAutoencoder(pair.encoder, pair.decoder, bottleneck, compile_network=compiled, optimizer=optimizer)

    def back(lane: Callable[[], Seconds]) -> Callable[[], Seconds]:
        def measure() -> Seconds:
            seconds = lane()
            pair.forget()
            for network in (pair.encoder, pair.decoder):  # the Trainer leaves a module on the CPU
                network.to(options.device)
            return seconds

        return measure

    memory = PeakMemory(options.device)
    lanes = {
        "diffusers": back(_their_training(options, pair.theirs, data, warmup, count, None)),
        "diffusers, fused AdamW": back(_their_training(options, pair.theirs, data, warmup, count, True)),
        "ours": back(fit_lane(options, ours, data, warmup, count)),
    }
    if compiled:
        theirs = _compiled(pair.theirs)
        lanes["diffusers, compiled, fused AdamW"] = back(_their_training(options, theirs, data, warmup, count, True))
    watched = {name: memory.watch(name, lane) for name, lane in lanes.items()}
    what = f"step, batch {batch} of {shape[1]} px"
    row = Row(name, what, alternate(watched, options.repeats), options.clock)
    for other in lanes:
        if other != "ours":
            row.compare("ours", other, "speedup", None if "compiled" in other else goal)
    row.facts = facts | memory.facts()
    return [row]


def _compiled(theirs: Any) -> nn.Module:
    """Copy their network, its two halves compiled."""
    network = copy.deepcopy(theirs)
    network.encoder.compile()
    network.decoder.compile()
    return network


def _their_training(
    options: Options, theirs: nn.Module, data: MemoryData, warmup: int, count: int, fused: bool | None
) -> Callable[[], Seconds]:
    images = data.split("train").images  # type: ignore[attr-defined]

    def measure() -> Seconds:
        network: Any = theirs.train()
        adamw = torch.optim.AdamW(network.parameters(), fused=fused, **ADAMW)
        batches = iter(images.split(data.batch_size))

        def step() -> None:
            clean = next(batches).to(options.device).float() / 127.5 - 1
            posterior = network.encode(clean).latent_dist
            made = network.decode(posterior.sample()).sample
            loss = (made - clean).abs().mean() + KL_WEIGHT * posterior.kl().mean() / clean[0].numel()
            adamw.zero_grad()
            loss.backward()
            adamw.step()

        return timed(step, count, warmup, options.device)()

    return measure


def autoencoder_encode(options: Options) -> list[Row]:
    """Measure encoding to means and log variances, and decoding, without gradients."""
    pair, images, facts = _prepared(options, "encode")
    latents = pair.encoder(images).chunk(2, dim=1)[0].detach()
    units, warmup = options.size(20 if options.device == "cuda" else 2, 1), 1
    ways: dict[str, Callable[[], Any]] = {
        "diffusers, encode": lambda: pair.theirs.encode(images).latent_dist.parameters,
        "ours, encode": lambda: pair.encoder(images),
        "diffusers, decode": lambda: pair.theirs.decode(latents).sample,
        "ours, decode": lambda: pair.decoder(latents),
    }
    memory = PeakMemory(options.device)
    lanes = {
        name: memory.watch(name, timed(torch.no_grad()(way), units, warmup, options.device))
        for name, way in ways.items()
    }
    batch, side = len(images), images.shape[-1]
    row = Row("autoencoder_encode", f"batch of {batch}, {side} px", alternate(lanes, options.repeats), options.clock)
    for what in ("encode", "decode"):
        row.compare(f"ours, {what}", f"diffusers, {what}", "speedup", GOAL)
    row.facts = facts
    for name, times in row.lanes.items():
        median = sorted(getattr(seconds, options.clock) for seconds in times)[len(times) // 2]
        row.facts[f"images a second, {name}"] = f"{batch / median:.3g}"
    row.facts |= memory.facts()
    return [row]


def autoencoder_conv(options: Options) -> list[Row]:
    """Measure the 3x3 convolution of 128 channels at full resolution, direct and by Winograd's algorithm in bands."""
    if options.device != "cpu":
        raise Unavailable("the fast convolutions are the CPU's")
    side, channels = options.size(256, 32), 128
    conv = Conv3x3(channels, channels).to(memory_format=torch.channels_last)
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    direct = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    direct.load_state_dict(conv.state_dict())
    ways: dict[str, Callable[[], Any]] = {
        "direct, channels last": torch.no_grad()(lambda: direct(x)),
        "Winograd, channels last": torch.no_grad()(lambda: conv(x)),
        "direct, channels last and gradients": lambda: direct(x).sum().backward(),
        "Winograd, channels last and gradients": lambda: conv(x).sum().backward(),
    }
    lanes = {name: timed(way, options.size(5, 1), 1) for name, way in ways.items()}
    what = f"convolution, {channels} channels, {side} px"
    row = Row("autoencoder_conv", what, alternate(lanes, options.repeats), options.clock)
    for more in ("", " and gradients"):
        row.compare(f"Winograd, channels last{more}", f"direct, channels last{more}", "speedup", GOAL)
    return [row]
