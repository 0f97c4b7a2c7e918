"""The networks that are handed to the modules: plain torch, images in [-1, 1]."""

from lightning_gen.networks.autoencoding import ImageDecoder, ImageEncoder, LatentNetwork
from lightning_gen.networks.base import Discriminator, DiscriminatorOutput, Generator
from lightning_gen.networks.conditioning import (
    AuxiliaryHead,
    ConditionalBatchNorm2d,
    LogitHead,
    ProjectionHead,
)
from lightning_gen.networks.convolutional_autoencoder import ConvolutionalDecoder, ConvolutionalEncoder
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.dit import DiT
from lightning_gen.networks.flow import FlowNetwork
from lightning_gen.networks.latent import LatentDecoder, LatentEncoder
from lightning_gen.networks.latent_conv import ConvDecoder, ConvEncoder
from lightning_gen.networks.latent_mlp import MLPDecoder, MLPEncoder
from lightning_gen.networks.lenet import LeNetDiscriminator
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator
from lightning_gen.networks.normalization import make_norm, mixes_samples, spectral_normalize
from lightning_gen.networks.patchgan import PatchDiscriminator
from lightning_gen.networks.resnet import ResNetDiscriminator, ResNetGenerator
from lightning_gen.networks.tarflow import TarFlow
from lightning_gen.networks.unet import UNet
from lightning_gen.networks.vqvae import VQVAEDecoder, VQVAEEncoder

__all__ = [
    "AuxiliaryHead",
    "Condition",
    "ConditionalBatchNorm2d",
    "ConvDecoder",
    "ConvEncoder",
    "ConvolutionalDecoder",
    "ConvolutionalEncoder",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DenoisingNetwork",
    "DiT",
    "Discriminator",
    "DiscriminatorOutput",
    "FlowNetwork",
    "Generator",
    "ImageDecoder",
    "ImageEncoder",
    "LatentDecoder",
    "LatentEncoder",
    "LatentNetwork",
    "LeNetDiscriminator",
    "LogitHead",
    "MLPDecoder",
    "MLPDiscriminator",
    "MLPEncoder",
    "MLPGenerator",
    "PatchDiscriminator",
    "ProjectionHead",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "TarFlow",
    "UNet",
    "VQVAEDecoder",
    "VQVAEEncoder",
    "make_norm",
    "mixes_samples",
    "spectral_normalize",
]
