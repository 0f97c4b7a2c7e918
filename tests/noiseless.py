"""A GAN without chance: latents and mixing weights are functions of the real images.

However a batch is split, over micro-batches or processes, each image meets the same latent.
"""

import torch

from lightning_gen.gan.module import GAN
from lightning_gen.gan.penalties import WGANGP, image_gradients, sample_norms


class FixedNoise(GAN):
    def _fakes(self, batch):
        image = batch["image"].flatten(1)
        mixing = torch.linspace(-1, 1, image.shape[1] * self.generator.latent_dim, dtype=image.dtype)
        z = image @ mixing.view(image.shape[1], -1).sin() + self._shift()
        label = batch.get("label") if self.num_classes else None
        return self.generator(z, label), label

    def _shift(self):
        """Another latent in D's step than in G's."""
        return 0.5 if torch.is_grad_enabled() else 0.0


class FixedWGANGP(WGANGP):
    def __call__(self, judge, real, fake):
        alpha = real.flatten(1).mean(1).sigmoid().view(-1, 1, 1, 1)
        gradients = image_gradients(judge, alpha * real + (1 - alpha) * fake)
        return self.weight * (sample_norms(gradients) - 1).square().mean()
