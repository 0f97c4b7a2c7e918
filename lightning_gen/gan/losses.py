r"""Adversarial losses: what the discriminator and the generator minimize, given logits.

With logits `r = D(x)` of real and `f = D(G(z))` of generated images, and `sp(a) = log(1 + e^a)`:

| name                  | the discriminator minimizes | the generator minimizes |
|-----------------------|-----------------------------|-------------------------|
| `saturating`          | E sp(-r) + E sp(f)          | -E sp(f)                |
| `non_saturating`      | E sp(-r) + E sp(f)          | E sp(-f)                |
| `least_squares`       | 1/2 E (r-1)^2 + 1/2 E f^2   | 1/2 E (f-1)^2           |
| `hinge`               | E relu(1-r) + E relu(1+f)   | -E f                    |
| `wasserstein`         | E f - E r                   | -E f                    |
| `relativistic_pairing`| E sp(-(r-f))                | E sp(-(f-r))            |

Every logit is unbounded: no sigmoid comes before. Half-precision logits are taken to float32 first, so that
a square or a sum over the batch cannot overflow. Every value is a mean over the batch.

References:
    Generative Adversarial Networks (saturating, non-saturating), https://arxiv.org/abs/1406.2661
    Least Squares Generative Adversarial Networks, https://arxiv.org/abs/1611.04076
    Geometric GAN (hinge), https://arxiv.org/abs/1705.02894
    Spectral Normalization for Generative Adversarial Networks (hinge), https://arxiv.org/abs/1802.05957
    Wasserstein GAN, https://arxiv.org/abs/1701.07875
    The relativistic discriminator, https://arxiv.org/abs/1807.00734
    The GAN is dead; long live the GAN! (relativistic pairing), https://arxiv.org/abs/2501.05441
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.errors import choose


def _full(logits: Tensor) -> Tensor:
    """Take half-precision logits to float32; leave float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x), right to rounding at every x.

    `F.softplus` turns into the identity above 20, which is wrong by 2e-9 there; `logsigmoid` has no such seam.
    """
    return -F.logsigmoid(-x)


class AdversarialLoss(ABC):
    """A pair of losses on logits.

    Attributes:
        paired: whether the generator's loss needs the real logits too, as many as there are fake ones.
    """

    paired: ClassVar[bool] = False

    @abstractmethod
    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return what the discriminator minimizes.

        Args:
            real: logits of real images, (B,).
            fake: logits of generated images, (B',); B' = B where the loss is `paired`.

        Returns:
            A scalar.
        """

    @abstractmethod
    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return what the generator minimizes.

        Args:
            fake: logits of generated images, (B,), through which gradients reach the generator.
            real: logits of real images, (B,); read only where the loss is `paired`.

        Returns:
            A scalar.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class NonSaturating(AdversarialLoss):
    """The logistic loss with the generator's strong gradient (section 3 of the paper).

    The best discriminator has logits log(p/q), where its loss is 2 log 2 - 2 JSD(p, q).

    References:
        Generative Adversarial Networks, https://arxiv.org/abs/1406.2661
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return E sp(-r) + E sp(f) = -E log D(x) - E log(1 - D(G(z)))."""
        return -(F.logsigmoid(_full(real)).mean() + F.logsigmoid(-_full(fake)).mean())

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return E sp(-f) = -E log D(G(z))."""
        return -F.logsigmoid(_full(fake)).mean()


class Saturating(NonSaturating):
    """The minimax game itself (equation 1): the generator minimizes what the discriminator maximizes.

    Its gradient vanishes where the discriminator is sure; it is here for study, `NonSaturating` for use.

    References:
        Generative Adversarial Networks, https://arxiv.org/abs/1406.2661
    """

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return -E sp(f) = E log(1 - D(G(z)))."""
        return -_softplus(_full(fake)).mean()


class LeastSquares(AdversarialLoss):
    """Squares around the codes 1 for real and 0 for fake (equation 9, a = 0, b = c = 1).

    References:
        Least Squares Generative Adversarial Networks, https://arxiv.org/abs/1611.04076
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return 1/2 E (r - 1)^2 + 1/2 E f^2."""
        return 0.5 * (_full(real) - 1).square().mean() + 0.5 * _full(fake).square().mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return 1/2 E (f - 1)^2."""
        return 0.5 * (_full(fake) - 1).square().mean()


class Hinge(AdversarialLoss):
    """The margin loss of SNGAN, SAGAN and BigGAN.

    References:
        Geometric GAN, https://arxiv.org/abs/1705.02894
        Spectral Normalization for Generative Adversarial Networks, https://arxiv.org/abs/1802.05957
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return E relu(1 - r) + E relu(1 + f)."""
        return F.relu(1 - _full(real)).mean() + F.relu(1 + _full(fake)).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return -E f."""
        return -_full(fake).mean()


class Wasserstein(AdversarialLoss):
    """The critic's estimate of the Wasserstein-1 distance, with the sign turned.

    It needs a Lipschitz critic: `clip_weights_` or a gradient penalty (see `penalties`).

    References:
        Wasserstein GAN, https://arxiv.org/abs/1701.07875
    """

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return E f - E r."""
        return _full(fake).mean() - _full(real).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return -E f."""
        return -_full(fake).mean()


class RelativisticPairing(AdversarialLoss):
    """Each fake image is judged against one real image (RpGAN, the loss of R3GAN).

    Image i of the real batch is the partner of image i of the fake batch; in a conditional model the partners
    share their label. The generator's step needs the real logits too.

    References:
        The relativistic discriminator: a key element missing from standard GAN, https://arxiv.org/abs/1807.00734
        The GAN is dead; long live the GAN! A Modern GAN Baseline, https://arxiv.org/abs/2501.05441
    """

    paired: ClassVar[bool] = True

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return E sp(-(r - f)).

        Raises:
            ValueError: where the two batches differ in shape.
        """
        return _softplus(-self._difference(real, fake)).mean()

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return E sp(-(f - r)).

        Raises:
            ValueError: where the real logits are missing or the two batches differ in shape.
        """
        if real is None:
            raise ValueError(
                "The generator's relativistic pairing loss compares each fake logit with a real one, but got no "
                "real logits. Call generator(fake, real) with the discriminator's logits of a real batch of the "
                "same size, or take an unpaired loss such as 'non_saturating'."
            )
        return _softplus(self._difference(real, fake)).mean()

    @staticmethod
    def _difference(real: Tensor, fake: Tensor) -> Tensor:
        """Return r - f of the pairs; broadcasting would silently compare every image with every other."""
        if real.shape != fake.shape:
            raise ValueError(
                f"Relativistic pairing compares real image i with fake image i, so both batches must have the same "
                f"shape, but the real logits are {tuple(real.shape)} and the fake ones {tuple(fake.shape)}. "
                f"Generate as many images as there are real ones."
            )
        return _full(real) - _full(fake)


LOSSES: dict[str, type[AdversarialLoss]] = {
    "saturating": Saturating,
    "non_saturating": NonSaturating,
    "least_squares": LeastSquares,
    "hinge": Hinge,
    "wasserstein": Wasserstein,
    "relativistic_pairing": RelativisticPairing,
}


LossName = Literal["saturating", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic_pairing"]


def adversarial_loss(given: LossName | AdversarialLoss) -> AdversarialLoss:
    """Return the loss of a name, or the loss itself.

    Raises:
        ValueError: where there is no loss of that name.
    """
    return given if isinstance(given, AdversarialLoss) else choose("loss", given, LOSSES)()
