import json
from dataclasses import FrozenInstanceError

import pytest

from lightning_gen.metrics import Protocol, Score, report
from lightning_gen.metrics.protocol import short_count


def protocol(**changes):
    fields = {
        "num_samples": 10_000,
        "extractor": "inception-v3-compat",
        "weights_sha256": "6726825d" + "0" * 56,
        "resize": "299x299",
        "dtype": "float32",
        "seed": 0,
        "weights": "ema-10000",
        "dataset": "cifar10",
        "split": "train",
        "num_reference": 50_000,
        "fingerprint": "abcdef0123456789",
    }
    return Protocol(**(fields | changes))


def test_names():
    assert protocol().name("fid") == "fid_10k_train"
    assert protocol(split="test", num_samples=2048).name("kid") == "kid_2048_test"
    assert protocol(split=None).name("is") == "is_10k"
    lenet = protocol(extractor="lenet5-1a2b3c4d", num_samples=2000, split="test")
    assert lenet.name("fd-lenet5") == "fd-lenet5-1a2b3c4d_2k_test"
    assert lenet.name("class-accuracy") == "class-accuracy-lenet5-1a2b3c4d_2k"


def test_only_the_standard_inception_is_called_fid():
    other = protocol(extractor="inception-v3-compat-11223344")
    assert other.name("fid") == "fd-inception-v3-compat-11223344_10k_train"
    assert other.name("kid").startswith("kid-inception-v3-compat-11223344")
    assert other.name("is").startswith("is-inception-v3-compat-11223344")


def test_the_split_is_in_name_and_description():
    train, test = protocol(), protocol(split="test")
    assert train.name("fid") != test.name("fid")
    assert train.describe() != test.describe()


def test_description_says_everything():
    text = protocol().describe()
    for word in (
        "10000",
        "ema-10000",
        "seed 0",
        "50000",
        "cifar10",
        "train",
        "abcdef01",
        "6726825d",
        "299x299",
        "float32",
    ):
        assert word in text
    files = protocol(weights="files", seed=None).describe()
    assert "from files" in files
    assert "seed" not in files


def test_a_score_prints_with_its_protocol():
    score = Score("kid", 0.0123456789, 0.001, protocol(), {"subsets": 100, "subset_size": 1000})
    assert score.name in score.describe()
    assert protocol().describe() in score.describe()
    assert "subset_size 1000" in score.describe()
    saved = json.loads(json.dumps(report([score])))
    assert saved["kid_10k_train"]["value"] == 0.0123456789
    assert saved["kid_10k_train"]["protocol"]["num_reference"] == 50_000
    assert "std" not in Score("fid", 1.0, None, protocol()).as_dict()


def test_frozen_and_short_counts():
    with pytest.raises(FrozenInstanceError):
        protocol().seed = 1
    assert [short_count(n) for n in (50_000, 1000, 1500, 999, 64)] == ["50k", "1k", "1500", "999", "64"]
