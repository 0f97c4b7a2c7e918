from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_gen.metrics import FeatureStatistics, Moments, Provenance, load_moments, save_moments

PROVENANCE = Provenance("net-1", "ab" * 32, "28x28 bilinear", "float32", "mnist", "0123", "test")


def features(n=101, d=7):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x @ torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3


def filled(x, sizes=(101,)):
    statistics = FeatureStatistics(x.shape[1])
    for part in x.split(list(sizes)):
        statistics.update(part)
    return statistics


def test_agrees_with_numpy():
    x = features()
    statistics = filled(x)
    np.testing.assert_allclose(statistics.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(statistics.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-11)
    assert torch.equal(statistics.covariance, statistics.covariance.T)


def test_batches_and_merges_add_up():
    x = features()
    whole, parts = filled(x), filled(x, (40, 40, 20, 1))
    first, second = filled(x[:37], (37,)), filled(x[37:], (64,))
    first.merge(second)
    for other in (parts, first):
        assert other.n == whole.n == 101
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-11, atol=1e-12)
    with pytest.raises(ValueError, match="3 features"):
        whole.merge(FeatureStatistics(3))


def test_half_precision_features_are_summed_in_float64():
    statistics = FeatureStatistics(1)
    for _ in range(100):
        statistics.update(torch.full((100, 1), 0.1, dtype=torch.float16))
    assert float(statistics.mean) == pytest.approx(float(torch.tensor(0.1).half()), rel=1e-14)
    assert float(statistics.covariance) == pytest.approx(0, abs=1e-16)


def test_refusals_of_features():
    statistics = FeatureStatistics(3)
    for bad in (torch.zeros(2, 4), torch.zeros(3), torch.zeros(2, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"\(B, 3\)"):
            statistics.update(bad)
    with pytest.raises(ValueError, match="No features"):
        _ = statistics.mean
    statistics.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        _ = statistics.covariance


def test_file_round_trip_with_the_keys_other_tools_read(tmp_path):
    moments = filled(features()).moments(PROVENANCE)
    save_moments(tmp_path / "a" / "stats.npz", moments)
    loaded = load_moments(tmp_path / "a" / "stats.npz", PROVENANCE)
    assert torch.equal(loaded.mu, moments.mu)
    assert torch.equal(loaded.sigma, moments.sigma)
    assert (loaded.n, loaded.provenance) == (101, PROVENANCE)
    with np.load(tmp_path / "a" / "stats.npz") as file:
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert file["mu"].shape == (7,)
        assert str(file["split"]) == "test"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["stats.npz"]


@pytest.mark.parametrize("field", Provenance.__dataclass_fields__)
def test_any_other_protocol_is_refused(tmp_path, field):
    save_moments(tmp_path / "stats.npz", filled(features()).moments(PROVENANCE))
    with pytest.raises(ValueError, match=f"{field}: '{getattr(PROVENANCE, field)}', not 'other'"):
        load_moments(tmp_path / "stats.npz", replace(PROVENANCE, **{field: "other"}), unchecked=True)


def test_a_foreign_file_is_refused_unless_accepted(tmp_path):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    assert load_moments(tmp_path / "foreign.npz").provenance is None
    with pytest.raises(ValueError, match="does not say"):
        load_moments(tmp_path / "foreign.npz", PROVENANCE)
    loaded = load_moments(tmp_path / "foreign.npz", PROVENANCE, unchecked=True)
    assert loaded.mu.dtype == torch.float64
    assert loaded.n is None


def test_files_that_are_no_statistics(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_moments(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(2))
    save_moments(tmp_path / "whole.npz", filled(features()).moments(PROVENANCE))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("other", "pickle", "shape", "broken", "empty"):
        with pytest.raises(ValueError, match=f"{name}.npz"):
            load_moments(tmp_path / f"{name}.npz")


def test_saving_needs_a_provenance_and_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    moments = filled(features()).moments(PROVENANCE)
    with pytest.raises(ValueError, match="provenance"):
        save_moments(tmp_path / "stats.npz", Moments(moments.mu, moments.sigma, 101))
    save_moments(tmp_path / "stats.npz", moments)
    before = (tmp_path / "stats.npz").read_bytes()

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_moments(tmp_path / "stats.npz", moments)
    assert (tmp_path / "stats.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
