"""Scores of generated images: Frechet and kernel distances, inception score, class accuracy of digits."""

from lightning_gen.metrics.evaluation import Evaluator, dataset_source
from lightning_gen.metrics.extractors import Extraction, FeatureExtractor
from lightning_gen.metrics.frechet import frechet_distance, frechet_distance_from_features, trace_sqrt_product
from lightning_gen.metrics.inception import InceptionV3, find_inception_weights
from lightning_gen.metrics.inception_score import InceptionScore, inception_score
from lightning_gen.metrics.kernel import KernelDistance, kernel_distance
from lightning_gen.metrics.lenet import LeNet5
from lightning_gen.metrics.lpips import LPIPS, find_vgg16_weights
from lightning_gen.metrics.perceptual import PerceptualLoss
from lightning_gen.metrics.protocol import METRICS, REFERENCE_METRICS, Protocol, Provenance
from lightning_gen.metrics.reconstruction import psnr, reconstruction_protocol, ssim, ssim_name
from lightning_gen.metrics.reference import Reference, build_reference, fingerprint, load_reference
from lightning_gen.metrics.samples import Labels, SampleSource
from lightning_gen.metrics.score import Score, report
from lightning_gen.metrics.statistics import FeatureStatistics, Moments, load_moments, save_moments

__all__ = [
    "LPIPS",
    "METRICS",
    "REFERENCE_METRICS",
    "Evaluator",
    "Extraction",
    "FeatureExtractor",
    "FeatureStatistics",
    "InceptionScore",
    "InceptionV3",
    "KernelDistance",
    "Labels",
    "LeNet5",
    "Moments",
    "PerceptualLoss",
    "Protocol",
    "Provenance",
    "Reference",
    "SampleSource",
    "Score",
    "build_reference",
    "dataset_source",
    "find_inception_weights",
    "find_vgg16_weights",
    "fingerprint",
    "frechet_distance",
    "frechet_distance_from_features",
    "inception_score",
    "kernel_distance",
    "load_moments",
    "load_reference",
    "psnr",
    "reconstruction_protocol",
    "report",
    "save_moments",
    "ssim",
    "ssim_name",
    "trace_sqrt_product",
]
