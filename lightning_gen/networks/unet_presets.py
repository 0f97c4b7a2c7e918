"""Arguments of published U-Nets, and of small ones for a CPU."""

import math
from typing import Any

DDPM_CIFAR10: dict[str, Any] = {
    "image_shape": (3, 32, 32),
    "channels": 128,
    "channel_multipliers": (1, 2, 2, 2),
    "blocks": 2,
    "attention_levels": (1,),
    "resampling": "conv_asymmetric",
}

EDM_CIFAR10: dict[str, Any] = {
    "image_shape": (3, 32, 32),
    "channels": 128,
    "channel_multipliers": (2, 2, 2),
    "blocks": 4,
    "attention_levels": (1,),
    "decoder_attention": "last",
    "resampling": "block",
    "resample_projection": True,
    "skip_scale": math.sqrt(0.5),
    "class_embedding": "one_hot",
}

ADM_IMAGENET64: dict[str, Any] = {
    "image_shape": (3, 64, 64),
    "channels": 192,
    "channel_multipliers": (1, 2, 3, 4),
    "blocks": 3,
    "attention_levels": (1, 2, 3),
    "head_dim": 64,
    "norm_eps": 1e-5,
    "modulation": "scale_shift",
    "resampling": "block",
    "embedding_order": "cos_sin",
    "embedding_freq_shift": 0,
    "num_classes": 1000,
    "null_class": False,
}

SMALL_28: dict[str, Any] = {"image_shape": (1, 28, 28), "channels": 32, "channel_multipliers": (1, 2, 2), "blocks": 2}

SMALL_32: dict[str, Any] = SMALL_28 | {"image_shape": (3, 32, 32), "channels": 40}

PRESETS: dict[str, dict[str, Any]] = {
    "ddpm_cifar10": DDPM_CIFAR10,
    "edm_cifar10": EDM_CIFAR10,
    "adm_imagenet64": ADM_IMAGENET64,
    "small_28": SMALL_28,
    "small_32": SMALL_32,
}
