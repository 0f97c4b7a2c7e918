r"""The discrete path: a table of betas, as DDPM and its successors have it.

References:
    Denoising Diffusion Probabilistic Models (linear)
    https://arxiv.org/abs/2006.11239
    Improved Denoising Diffusion Probabilistic Models (cosine)
    https://arxiv.org/abs/2102.09672
    High-Resolution Image Synthesis with Latent Diffusion Models (scaled linear)
    https://arxiv.org/abs/2112.10752
    Common Diffusion Noise Schedules and Sample Steps are Flawed (zero terminal SNR)
    https://arxiv.org/abs/2305.08891
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_gen.diffusion.levels import Path, precise
from lightning_gen.errors import choose

BetaSchedule = Literal["linear", "scaled_linear", "cosine", "sigmoid"]


class DiscreteVP(Path):
    r"""A table of T steps, :math:`\alpha_k^2 = \prod_{i \le k} (1 - \beta_i)`, step k standing at t = k / T.

    t = 0 is the image itself and t = 1 the last step; the network's noise label is k - 1, as the tables count.
    Between the steps the angle :math:`\arctan(\sigma/\alpha)` is linear.

    Args:
        steps: T.
        schedule: of beta: "linear" (DDPM), "scaled_linear" (its root linear; latent diffusion), "cosine"
            (improved DDPM, beta at most 0.999) or "sigmoid" (GeoDiff).
        beta_start: the first beta, where the schedule is not the cosine.
        beta_end: the last one.
        zero_terminal_snr: shift and scale the table so that the last alpha is 0 (algorithm 1 of the paper).
        betas: the table itself instead.
    """

    def __init__(
        self,
        steps: int = 1000,
        schedule: BetaSchedule = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        zero_terminal_snr: bool = False,
        betas: list[float] | None = None,
    ) -> None:
        if betas is not None:
            steps = len(betas)
        least = 2 if zero_terminal_snr else 1
        if steps < least:
            raise ValueError(
                f"DiscreteVP takes {least} steps or more {'with' if least == 2 else 'without'} zero_terminal_snr; given"
                f" were {steps}."
            )
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"DiscreteVP takes 0 < beta_start <= beta_end < 1; given were {beta_start}, {beta_end}.")
        table = (
            _betas(steps, schedule, beta_start, beta_end) if betas is None else torch.tensor(betas, dtype=torch.float64)
        )
        if not bool((table > 0).all() and (table[:-1] < 1).all() and table[-1] <= 1):
            raise ValueError("DiscreteVP takes betas above 0 and below 1; the last one may be 1.")
        self.steps: int = steps
        self.schedule, self.beta_start, self.beta_end = schedule, beta_start, beta_end
        self.zero_terminal_snr, self.betas = zero_terminal_snr, betas
        # the angles arctan(sigma / alpha) and arctan(alpha / sigma) of steps 0 ... T, of each device that asked
        alpha, sigma = _table(table, zero_terminal_snr)
        self._angles = {alpha.device: (torch.atan2(sigma, alpha), torch.atan2(alpha, sigma))}

    def _angles_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._angles:
            angle, rest = self._angles[torch.device("cpu")]
            self._angles[device] = precise(angle, device), precise(rest, device)
        return self._angles[device]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Look alpha and sigma up, or turn the angle between two steps."""
        angle, rest = self._angles_on(t.device)
        place = t * self.steps
        # a time that is a step to within rounding is that step
        step = place.detach().round()
        place = torch.where((place.detach() - step).abs() < 1e-12 * self.steps, place - place.detach() + step, place)
        low = place.detach().floor().clamp(0, self.steps - 1).long()
        share = place - low
        turned = torch.lerp(angle[low], angle[low + 1], share)
        left = torch.lerp(rest[low], rest[low + 1], share)
        return torch.sin(left), torch.sin(turned)

    def time(self, noise_level: Tensor) -> Tensor:
        """Find the steps around the angle."""
        level = precise(noise_level)
        table, _ = self._angles_on(level.device)
        angle = torch.atan(level)
        low = (torch.searchsorted(table, angle.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        return (low + (angle - table[low]) / (table[low + 1] - table[low])) / self.steps


def _betas(steps: int, schedule: BetaSchedule, start: float, end: float) -> Tensor:
    line = torch.linspace(0, 1, steps, dtype=torch.float64)
    tables: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: start + line * (end - start),
        "scaled_linear": lambda: (start**0.5 + line * (end**0.5 - start**0.5)).square(),
        "sigmoid": lambda: start + torch.sigmoid(line * 12 - 6) * (end - start),
        "cosine": lambda: _cosine_betas(steps),
    }
    return choose("schedule of betas", schedule, tables)()


def _cosine_betas(steps: int) -> Tensor:
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _table(betas: Tensor, zero_terminal_snr: bool) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of steps 0 ... T."""
    log_alpha2 = torch.log1p(-betas).cumsum(0)
    alpha, sigma = (0.5 * log_alpha2).exp(), (-torch.expm1(log_alpha2)).sqrt()
    if zero_terminal_snr:
        # 1 - alpha from the logarithm: the first steps keep their digits
        missing = -torch.expm1(0.5 * log_alpha2)
        missing = (alpha[0] * missing - alpha[-1] * missing[0]) / (alpha[0] - alpha[-1])
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        sigma = (missing * (1 + alpha)).sqrt()
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return torch.cat([one, alpha]), torch.cat([none, sigma])
