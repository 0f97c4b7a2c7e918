"""What is known in closed form: a linear Gaussian autoencoder (probabilistic principal components), an affine flow."""

import math

import torch

from lightning_gen.autoencoder import Gaussian, GaussianLatents, VAENet
from lightning_gen.autoencoder.posterior_flows import PosteriorFlow
from lightning_gen.networks.latent_mlp import MLPDecoder, MLPEncoder

SHAPE, D, STD = (1, 3, 2), 2, 0.7


def linear_net(exact=True, seed=0):
    """Make x = W z + c + noise with orthogonal columns of W; `exact` gives q(z | x) = p(z | x)."""
    torch.manual_seed(seed)
    net = VAENet(MLPEncoder([], SHAPE), MLPDecoder([], SHAPE), GaussianLatents(D), Gaussian(STD)).double()
    columns = torch.linalg.qr(torch.randn(6, D, dtype=torch.float64))[0] * torch.tensor([1.5, 0.6]).double()
    offset = 0.3 * torch.randn(6, dtype=torch.float64)
    variance = 1 / (1 + columns.square().sum(0) / STD**2)  # of z given x, eq. 8 of Tipping and Bishop
    with torch.no_grad():
        net.decoder.head.weight.copy_(columns)
        net.decoder.head.bias.copy_(offset)
        if exact:
            to_mean = variance[:, None] * columns.T / STD**2
            net.encoder.head.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            net.encoder.head.bias.copy_(torch.cat([-to_mean @ offset, variance.log()]))
    return net


def log_evidence(net, x):
    """Return log p(x) = log N(x; c, W W' + std^2)."""
    columns, offset = net.decoder.head.weight, net.decoder.head.bias
    covariance = columns @ columns.T + STD**2 * torch.eye(6, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(offset, covariance).log_prob(x.flatten(1))


def bound(net, x):
    """Return the evidence lower bound, all expectations in closed form."""
    columns, offset = net.decoder.head.weight, net.decoder.head.bias
    mean, logvar = net.encoder(x).chunk(2, dim=1)
    error = (x.flatten(1) - mean @ columns.T - offset).square().sum(1)
    spread = (columns.square().sum(0) * logvar.exp()).sum(1)
    log_px = -0.5 * ((error + spread) / STD**2 + 6 * math.log(2 * math.pi * STD**2))
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return log_px - torch.distributions.kl_divergence(posterior, prior).sum(1)


def exact_noise(batch):
    """Return 2 D points with the mean and covariance of the standard normal: a quadratic has its exact mean."""
    points = torch.eye(D, dtype=torch.float64) * D**0.5
    return torch.cat([points, -points]).unsqueeze(1).expand(-1, batch, -1)


def some_images(n=5, seed=4):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Affine(PosteriorFlow):
    """z = exp(c1) z0 + c2, dimension by dimension, c being the context."""

    def __init__(self, dims):
        super().__init__(dims, 2 * dims)

    def forward(self, z0, context):
        log_scale, shift = context.chunk(2, dim=1)
        return z0 * log_scale.exp() + shift, log_scale.sum(1).expand(len(z0), -1)
