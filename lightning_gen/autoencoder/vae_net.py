r"""The networks of a variational autoencoder: images to latents and back, in plain torch.

.. math:: x \to q(z \mid x), \qquad z \to p(x \mid z), \qquad z \sim p(z).

References:
    Auto-Encoding Variational Bayes
    https://arxiv.org/abs/1312.6114
"""

from torch import Tensor

from lightning_gen.autoencoder.latents import GaussianLatents, LatentModel
from lightning_gen.autoencoder.likelihoods import Likelihood
from lightning_gen.autoencoder.objectives import Terms
from lightning_gen.autoencoder.vamp import VampPrior
from lightning_gen.networks.autoencoding import LatentNetwork
from lightning_gen.networks.latent import LatentDecoder, LatentEncoder
from lightning_gen.seeding import RandomStream


class VAENet(LatentNetwork):
    """Encoder, latents, decoder and likelihood.

    Args:
        encoder: images to what describes their latents; its last layer is made here.
        decoder: latents to what describes images; its layers are made here.
        latents: the distribution of latents.
        likelihood: of images, as the decoder describes it.

    Attributes:
        image_shape: `(C, H, W)` of one image.
        latent_shape: `(D, 1, 1)` of one latent.
        num_classes: number of classes K; None for an unconditional one.

    Raises:
        ValueError: where the parts do not fit together.
    """

    def __init__(
        self, encoder: LatentEncoder, decoder: LatentDecoder, latents: LatentModel, likelihood: Likelihood
    ) -> None:
        super().__init__()
        for name in ("image_shape", "num_classes"):
            first, second = getattr(encoder, name), getattr(decoder, name)
            if first != second:
                raise ValueError(
                    f"The encoder has {name}={first}, the decoder {name}={second}: give both the same"
                    f" (--model.encoder.{name}, --model.decoder.{name})."
                )
        self.encoder, self.decoder = encoder, decoder
        self.latents, self.likelihood = latents, likelihood
        self.image_shape, self.num_classes = encoder.image_shape, encoder.num_classes
        self.latent_shape = (latents.latent_dim, 1, 1)
        encoder.build(latents.inputs)
        decoder.build(latents.latent_dim, likelihood.channels_out(self.image_shape[0]))
        if isinstance(latents, GaussianLatents) and isinstance(latents.prior, VampPrior):
            latents.prior.attach(encoder)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> tuple[Tensor, Terms]:
        """Return the encoder's features of images, and what they say of the bound; see `terms`."""
        features: Tensor = self.encoder(x, label)
        return features, self.terms(features, x, noise, label)

    def noise(self, stream: RandomStream, samples: int) -> Tensor:
        """Draw what K draws of the latents of each image are made of, `(K, B, noise_dim)`."""
        return stream.normal(samples, self.latents.noise_dim).transpose(0, 1)

    def terms(self, features: Tensor, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Terms:
        """Return what images say of the bound.

        Args:
            features: the encoder's, `(B, inputs)`.
            x: images in [-1, 1], `(B, C, H, W)`.
            noise: see `noise`.
            label: classes, int64 `(B,)`.
        """
        drawn = self.latents.infer(features, noise)
        return Terms(self.likelihood.log_prob(self.described(drawn.z, label), x), drawn)

    def described(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameters `(..., C', H, W)` of latents `(..., D)` with labels of the last but one.

        Args:
            z: latents, `(B, D)` or `(K, B, D)`.
            label: classes, int64 `(B,)`.
        """
        lead = z.shape[:-1]
        if label is not None:
            label = label.expand(lead).flatten()
        # latents are as wide as the noise, weights may be of half precision
        z = z.flatten(0, -2).to(next(self.decoder.parameters()).dtype)
        params: Tensor = self.decoder(z, label)
        return params.view(*lead, *params.shape[1:])

    def encode(self, images: Tensor, stream: RandomStream | None = None, label: Tensor | None = None) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, to latents `(B, D, 1, 1)`.

        Args:
            images: the images.
            stream: where latents are drawn from; None for the means.
            label: classes, int64 `(B,)`, of a conditional model.
        """
        features = self.encoder(images, label)
        model = self.latents
        z = model.mean(features) if stream is None else model.infer(features, self.noise(stream, 1)).z[0]
        return z[:, :, None, None]

    def decode(self, latents: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents `(B, D, 1, 1)` or `(B, D)` to the images expected, `(B, C, H, W)` in [-1, 1].

        Args:
            latents: the latents.
            label: classes, int64 `(B,)`, of a conditional model.
        """
        return self.likelihood.mean(self.described(latents.flatten(1), label))
