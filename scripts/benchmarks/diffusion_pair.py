"""The DDPM network for CIFAR-10, ours and diffusers', with the same weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Options, Stopwatch, Unavailable
from lightning_gen.interop.diffusers_unet import unet_from_diffusers, unet_to_diffusers
from lightning_gen.networks.unet import UNet

TINY: dict[str, Any] = {"channels": 16, "norm_groups": 4, "blocks": 1}
STEPS = 1000


@dataclass(frozen=True)
class Variant:
    """How both networks are run.

    Args:
        bf16: in bfloat16: by autocast where they are trained, with weights of that kind where not.
        compiled: by torch.compile.
    """

    bf16: bool = False
    compiled: bool = False

    @property
    def suffix(self) -> str:
        """End of the row's name."""
        return "_bf16" * self.bf16 + "_compiled" * self.compiled

    def need(self, options: Options, cpu: bool = False) -> None:
        """Refuse what is not measured on this device."""
        if options.device != "cuda" and self != Variant() and not cpu:
            raise Unavailable("measured on a GPU only: --device cuda")

    def autocast(self, device: str) -> Callable[[], AbstractContextManager[Any]]:
        """Return the context of a training step."""
        return (lambda: torch.autocast(device, dtype=torch.bfloat16)) if self.bf16 else nullcontext


class Pair:
    """Both networks, in one layout.

    Args:
        options: of the benchmark.
        variant: how they are run.
        layout: "", or ", channels last" for that layout of memory.
        cast: whether the weights become bfloat16, where the variant is in it.
    """

    def __init__(self, options: Options, variant: Variant, layout: str = "", cast: bool = False) -> None:
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise Unavailable("needs diffusers: pip install -e '.[bench]'") from error
        torch.manual_seed(0)
        last = layout != ""
        self.ours = UNet.preset("ddpm_cifar10", channels_last=last, **(TINY if options.tiny else {}))
        config, _ = unet_to_diffusers(self.ours.state_dict(), self.ours)
        self.theirs: nn.Module = UNet2DModel(**{key: value for key, value in config.items() if key[0] != "_"})
        # the weights are theirs: the last layer of ours begins at zero, and zeros differ from nothing
        self.ours.load_state_dict(unet_from_diffusers(self.theirs.state_dict(), self.ours))
        if last:
            self.theirs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.layout, self.variant = options.device, layout, variant
        self.autocast = variant.autocast(options.device)
        for network in (self.ours, self.theirs):
            network.to(options.device, torch.bfloat16 if cast and variant.bf16 else None)
            if variant.compiled:
                network.compile()

    @property
    def dtype(self) -> torch.dtype:
        """Kind of the weights."""
        return self.ours.input.weight.dtype

    def ask_ours(self, x: Tensor, step: Tensor) -> Tensor:
        """Ask our network."""
        return self.ours(x, step.float())

    def ask_theirs(self, x: Tensor, step: Tensor) -> Tensor:
        """Ask theirs."""
        return self.theirs(x, step).sample

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return noisy images and their steps, always the same."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, *self.ours.image_shape, generator=generator)
        steps = torch.randint(0, STEPS, (batch,), generator=generator)
        return x.to(self.device, self.dtype), steps.to(self.device)

    def facts(self) -> dict[str, Any]:
        """Count the parameters."""
        counted = {"ours": self.ours, "diffusers": self.theirs}
        return {f"parameters, {name}": sum(p.numel() for p in net.parameters()) for name, net in counted.items()}

    def first_calls(self, batch: int, training: bool) -> dict[str, Any]:
        """Call both for the first time: compare what they say, and see how long compiling takes.

        In training it is the gradients that are compared, of the mean of the squared error.
        """
        x, steps = self.inputs(batch)
        found, facts = {}, {}
        for name, ask, network in (("ours", self.ask_ours, self.ours), ("diffusers", self.ask_theirs, self.theirs)):
            network.train(training)
            watch = Stopwatch(self.device)
            watch.start()
            with torch.set_grad_enabled(training), self.autocast():
                output = ask(x, steps)
            found[name] = {"output": output.detach().float()}
            if training:
                F.mse_loss(output.float(), x.flip(0).float()).backward()
                found[name] = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
                network.zero_grad(set_to_none=True)
            if self.variant.compiled:
                facts[f"seconds of the first call, which compiles, {name}{self.layout}"] = f"{watch.stop().wall:.1f}"
        if training:
            found["diffusers"] = unet_from_diffusers(found["diffusers"], self.ours)
        what = "gradients" if training else "outputs"
        difference = relative(found["ours"], found["diffusers"])
        return {f"largest difference of the {what}, relative{self.layout}": f"{difference:.1e}"} | facts


def relative(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference over the largest value."""
    difference = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
    return difference / max(float(value.abs().max()) for value in theirs.values())


def layouts(options: Options) -> list[str]:
    """Return the layouts of memory to measure: both but in tiny form, on the CPU for the convolutions of ours."""
    return [""] if options.tiny and options.device == "cpu" else ["", ", channels last"]
