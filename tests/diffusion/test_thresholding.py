"""Estimates in the range of images."""

import numpy as np
import pytest
import torch

from lightning_gen.diffusion.thresholding import Clip, DynamicThreshold


def test_clipping():
    x0 = torch.tensor([[-3.0, -1.0, 0.25, 1.0, 1.5]])
    assert Clip()(x0).tolist() == [[-1.0, -1.0, 0.25, 1.0, 1.0]]


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_percentile_is_numpys(percentile, dtype):
    x0 = 2 * torch.randn(5, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = DynamicThreshold(percentile)(x0)
    assert found.dtype == dtype
    for image, ours in zip(x0.double().numpy(), found, strict=True):
        bound = max(np.quantile(np.abs(image), percentile), 1.0)
        expected = torch.from_numpy(np.clip(image, -bound, bound) / bound).to(dtype)
        torch.testing.assert_close(ours, expected, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-7)
        assert ours.abs().max() <= 1


def test_images_in_range_stay_as_they_are_and_samples_are_apart():
    inside, outside = torch.rand(1, 3, 4, 4) * 2 - 1, torch.full((1, 3, 4, 4), 7.0)
    found = DynamicThreshold(0.9)(torch.cat([inside, outside]))
    assert torch.equal(found[:1], inside)
    assert torch.equal(found[1:], torch.ones(1, 3, 4, 4))


def test_diffusers_thresholds_alike():
    diffusers = pytest.importorskip("diffusers")
    x0 = 3 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=100.0)
    torch.testing.assert_close(DynamicThreshold(0.9)(x0), scheduler._threshold_sample(x0), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_more_numbers_than_quantile_takes():
    """torch.quantile stopped at 16 million numbers for long: eight pictures of a megapixel."""
    x0 = torch.zeros(2, 1, 3000, 3000)
    x0[1, 0, 0] = 5.0
    found = DynamicThreshold(1.0)(x0)
    assert not found[0].any()
    assert bool((found[1, 0, 0] == 1).all())


@pytest.mark.parametrize("percentile", [0.0, 1.1, -1.0])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(ValueError, match=f"above 0 and at most 1; given was {percentile}"):
        DynamicThreshold(percentile)
