"""What the latents of a trained variational autoencoder are good for: encoding, decoding, and ways between images."""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from lightning_gen.autoencoder.interpolation import slerp
from lightning_gen.autoencoder.latents import GaussianLatents
from lightning_gen.autoencoder.likelihoods import Bernoulli
from lightning_gen.autoencoder.vae_net import VAENet
from lightning_gen.errors import choose
from lightning_gen.labels import ClassPrior
from lightning_gen.one_network import OneNetwork
from lightning_gen.seeding import GeneratorStream, SampleStreams
from lightning_gen.stepping import evaluating

Classes: TypeAlias = int | Sequence[int] | Tensor


class VariationalCoder(OneNetwork, ABC):
    """The networks of a variational autoencoder, and its latents; see `VAE`, which trains them.

    Attributes:
        net: the networks.
        class_prior: the classes of samples where none is asked for.
    """

    net: VAENet
    class_prior: ClassPrior

    def _picked(self, weights: str | None) -> VAENet:
        return cast(VAENet, self.net_ema.pick(self.net, weights))

    def latent_network(self, weights: str | None = None) -> tuple[VAENet, dict[str, Any] | None]:
        """Return what a codec is made of; see `codec.HasLatents`.

        Raises:
            ValueError: for a conditional model, whose latents say nothing without the class.
        """
        if self.num_classes is not None:
            raise ValueError("A conditional VAE is no codec: its latents mean nothing without the class.")
        given = self.hparams
        if not all(isinstance(given.get(name), dict) for name in ("encoder", "decoder")):
            return self._picked(weights), None
        latents = given.get("ladder")
        if latents is None:
            arguments = {"latent_dim": given["latent_dim"], "prior": given.get("prior")}
            latents = {
                "class_path": f"{GaussianLatents.__module__}.{GaussianLatents.__qualname__}",
                "init_args": arguments | {"flow": given.get("posterior_flow")},
            }
        likelihood = given.get("likelihood") or {
            "class_path": f"{Bernoulli.__module__}.{Bernoulli.__qualname__}",
            "init_args": {},
        }
        parts = {"encoder": given["encoder"], "decoder": given["decoder"]}
        described = {
            "class_path": f"{VAENet.__module__}.{VAENet.__qualname__}",
            "init_args": parts | {"latents": latents, "likelihood": likelihood},
        }
        return self._picked(weights), described

    def _labels(self, cond: Classes | None, n: int) -> Tensor | None:
        if self.num_classes is not None and cond is None:
            raise ValueError(f"This model has {self.num_classes} classes: give those of the images as cond.")
        return self.class_prior.labels(GeneratorStream(None, n, self.device), n, cond)

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,
        cond: Classes | None = None,
        *,
        seed: int | None = None,
        offset: int | Sequence[int] = 0,
        weights: str | None = None,
    ) -> Tensor:
        """Map images to latents.

        Args:
            images: `(B, C, H, W)` in [-1, 1].
            cond: their classes, of a conditional model.
            seed: draw latents, those of image i as a function of (seed, offset + i) alone; None for the means.
            offset: index of the first image, or the index of every one.
            weights: as `sample` takes it.

        Returns:
            `(B, D, 1, 1)`.
        """
        net = self._picked(weights)
        stream = None if seed is None else SampleStreams(seed, offset, len(images), self.device, self._kind(images))
        with evaluating(net):
            return net.encode(images, stream, self._labels(cond, len(images)))

    @torch.no_grad()
    def decode(self, latents: Tensor, cond: Classes | None = None, *, weights: str | None = None) -> Tensor:
        """Map latents `(B, D, 1, 1)` or `(B, D)` to the images expected, `(B, C, H, W)` in [-1, 1]."""
        net = self._picked(weights)
        with evaluating(net):
            return net.decode(latents, self._labels(cond, len(latents)))

    def reconstruct(self, images: Tensor, cond: Classes | None = None, *, weights: str | None = None) -> Tensor:
        """Return the images expected of the means of images' latents, `(B, C, H, W)` in [-1, 1]."""
        return self.decode(self.encode(images, cond, weights=weights), cond, weights=weights)

    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        steps: int = 8,
        cond: Classes | None = None,
        *,
        how: Literal["linear", "slerp"] = "linear",
        weights: str | None = None,
    ) -> Tensor:
        """Return images on the way from one to another, both ends included.

        Args:
            first: images `(B, C, H, W)`, or latents `(B, D)` or `(B, D, 1, 1)`.
            second: as many.
            steps: images on the way, 2 or more.
            cond: their classes, of a conditional model.
            how: "linear", or "slerp" along a great circle, on which latents keep their length.
            weights: as `sample` takes it.

        Returns:
            `(B, steps, C, H, W)` in [-1, 1].
        """
        ways: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"linear": torch.lerp, "slerp": slerp}
        way = choose("way to interpolate", how, ways)
        if steps < 2:
            raise ValueError(f"An interpolation takes 2 or more steps; given was {steps}.")
        if len(first) != len(second):
            raise ValueError(
                f"An interpolation takes as many images to begin with as to end with; given were {len(first)} and"
                f" {len(second)}."
            )
        ends = [self._as_latents(given, cond, weights) for given in (first, second)]
        places = torch.linspace(0, 1, steps, device=ends[0].device, dtype=ends[0].dtype).view(1, -1, 1)
        latents = way(ends[0].unsqueeze(1), ends[1].unsqueeze(1), places)
        return self._decode_rows(latents, cond, weights)

    def traverse(
        self,
        given: Tensor,
        dims: Sequence[int] | None = None,
        span: tuple[float, float] = (-3.0, 3.0),
        steps: int = 7,
        cond: Classes | None = None,
        *,
        weights: str | None = None,
    ) -> Tensor:
        """Return images whose latents differ in one dimension.

        Args:
            given: one image `(1, C, H, W)`, or latent `(1, D)` or `(1, D, 1, 1)`.
            dims: the dimensions; None for all.
            span: from where to where each goes.
            steps: images a dimension.
            cond: the class, of a conditional model.
            weights: as `sample` takes it.

        Returns:
            `(len(dims), steps, C, H, W)` in [-1, 1].
        """
        latents = self._as_latents(given, cond, weights)
        dims = range(latents.shape[1]) if dims is None else dims
        if len(latents) != 1 or steps < 1 or not dims or not all(0 <= dim < latents.shape[1] for dim in dims):
            raise ValueError(
                f"A traversal takes one image or latent, 1 or more steps and dimensions of 0 to {latents.shape[1] - 1};"
                f" given were {len(latents)}, {steps} and {list(dims)}."
            )
        rows = latents.unsqueeze(0).repeat(len(dims), steps, 1)
        values = torch.linspace(*span, steps, device=latents.device, dtype=latents.dtype)
        for row, dim in enumerate(dims):
            rows[row, :, dim] = values
        one = cond if cond is None or isinstance(cond, int) else torch.as_tensor(cond).flatten()[0].expand(len(dims))
        return self._decode_rows(rows, one, weights)

    def _as_latents(self, given: Tensor, cond: Classes | None, weights: str | None) -> Tensor:
        if given.ndim == 4 and given.shape[1:] == self.sample_shape:
            given = self.encode(given, cond, weights=weights)
        if given.flatten(1).shape[1] != self.net.latent_shape[0]:
            raise ValueError(
                f"Given are images (B, {', '.join(map(str, self.sample_shape))}) or latents"
                f" (B, {self.net.latent_shape[0]}), not {tuple(given.shape)}."
            )
        return given.flatten(1)

    def _decode_rows(self, latents: Tensor, cond: Classes | None, weights: str | None) -> Tensor:
        """Decode `(B, steps, D)`, all of a row by its class."""
        rows, steps = latents.shape[:2]
        label = self._labels(cond, rows)
        if label is not None:
            label = label.repeat_interleave(steps)
        images = self.decode(latents.flatten(0, 1), label, weights=weights)
        return images.view(rows, steps, *self.sample_shape)

    @staticmethod
    def _kind(images: Tensor) -> torch.dtype:
        return torch.promote_types(images.dtype, torch.float32)
