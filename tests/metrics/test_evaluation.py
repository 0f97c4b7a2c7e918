import copy

import numpy as np
import pytest
import rank_worker
import torch
from rank_worker import Images, TinyExtractor, source

from lightning_gen.images import to_uint8
from lightning_gen.metrics import (
    Evaluator,
    FeatureExtractor,
    dataset_source,
    fingerprint,
    frechet_distance_from_features,
    load_moments,
    save_moments,
)
from lightning_gen.metrics import reference as reference_module


def evaluator(tmp_path, metrics=("fid", "kid", "is"), **kwargs):
    if "extractors" not in kwargs:
        kwargs["extractors"] = {"inception": TinyExtractor()}
    return Evaluator(list(metrics), **({"batch_size": 8, "cache": tmp_path / "cache"} | kwargs))


def with_reference(tmp_path, n=60, **kwargs):
    made = evaluator(tmp_path, **kwargs)
    made.set_reference(Images(n, 0), name="random", split="train")
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("alone"))
    return rank_worker.scores(folder), rank_worker.scores(folder, n=12)


@pytest.mark.parametrize("world", [2, 3])
def test_scores_do_not_depend_on_the_number_of_ranks(tmp_path, world, alone):
    torch.multiprocessing.spawn(rank_worker.run, args=(world, str(tmp_path)), nprocs=world)
    for rank in range(world):
        found = torch.load(tmp_path / f"{world}-{rank}.pt")
        for expected, key in zip(alone, ("scores", "few"), strict=True):
            for metric, (value, std) in expected.items():
                assert found[key][metric][0] == pytest.approx(value, rel=1e-10), metric
                assert (found[key][metric][1] or 0.0) == pytest.approx(std or 0.0, rel=1e-10), metric
        # one rank fails, none hangs
        assert "this sampler fails" in found["message"]


def test_scores_are_those_of_all_features_at_once(tmp_path):
    made = with_reference(tmp_path)
    scores = made(source, 101)
    extract = TinyExtractor()
    ours = extract(source(0, 101)).features
    theirs = extract(reference_module.read_images(Images(60, 0), 0, 60)).features
    assert scores["fid"].value == pytest.approx(frechet_distance_from_features(ours, theirs), rel=1e-6)
    assert scores["fid"].protocol.num_samples == 101
    assert scores["fid"].protocol.num_reference == 60
    assert scores["fid"].name == "fd-tiny_101_train"
    assert scores["kid"].settings == {"subsets": 100, "subset_size": 60}
    assert scores["is"].settings == {"splits": 10}
    assert scores["is"].protocol.dataset is None


def test_another_batch_size_moves_scores_by_rounding_only(tmp_path):
    one, other = with_reference(tmp_path), with_reference(tmp_path, batch_size=13, cache=tmp_path / "other")
    for metric, score in one(source, 101).items():
        assert other(source, 101)[metric].value == pytest.approx(score.value, rel=1e-5)


def test_identical_sets_and_collapse(tmp_path):
    made = with_reference(tmp_path)
    same = made(dataset_source(Images(60, 0)), 60, seed=None, weights="files")
    assert 0 <= same["fid"].value < 1e-9
    collapsed = made(lambda first, n: torch.full((n, 1, 8, 8), 127, dtype=torch.uint8), 60)
    assert collapsed["fid"].value > 0.1
    assert np.isfinite(collapsed["kid"].value)
    assert collapsed["is"].value == pytest.approx(1, rel=1e-6)


def test_global_generators_and_training_state_are_left_alone(tmp_path):
    extractors = {"inception": TinyExtractor()}
    state = torch.get_rng_state()
    made = with_reference(tmp_path, metrics=["fid", "kid", "is", "fd-lenet5"], extractors=extractors)
    first = made(source, 40)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    torch.manual_seed(1)
    # a second call starts from nothing, whatever came before
    assert {k: v.value for k, v in made(source, 40).items()} == {k: v.value for k, v in first.items()}


def test_autocast_around_an_evaluation_does_not_change_it(tmp_path):
    plain = with_reference(tmp_path)(source, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = with_reference(tmp_path, cache=tmp_path / "other")(source, 40)
    assert {k: v.value for k, v in inside.items()} == {k: v.value for k, v in plain.items()}


def test_samples_must_be_bytes(tmp_path):
    made = with_reference(tmp_path)
    for bad in (torch.zeros(8, 1, 8, 8), torch.zeros(8, 8, 8, dtype=torch.uint8), torch.zeros(7, 1, 8, 8).byte()):
        with pytest.raises(ValueError, match="to_uint8"):
            made(lambda first, n, bad=bad: bad, 8 + 2)
    # neither truncated nor wrapped
    values = torch.tensor([-1.2, -1.0, -0.998, 0.0, 0.998, 1.0, 1.1])
    assert to_uint8(values).tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_every_image_is_counted_once(tmp_path):
    seen = []

    def recording(first, n):
        seen.extend(range(first, first + n))
        return source(first, n)

    steps = []
    made = with_reference(tmp_path)
    made(recording, 21, progress=lambda what, done, total: steps.append((what, done, total)))
    assert seen == list(range(21))
    assert steps == [("samples", 8, 21), ("samples", 16, 21), ("samples", 21, 21)]
    with pytest.raises(RuntimeError, match="102 images over all processes where there are 101"):
        reference_module.check_count(102, 101)


def test_refusals_before_the_first_sample(tmp_path):
    def never(first, n):
        raise AssertionError("sampled")

    with pytest.raises(ValueError, match="Did you mean 'fid'"):
        evaluator(tmp_path, ["fdi"])
    for wrong in ("fid", []):
        with pytest.raises(ValueError, match="list of metrics"):
            Evaluator(wrong)
    with pytest.raises(ValueError, match="batch_size"):
        evaluator(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="call set_reference first"):
        evaluator(tmp_path)(never, 50)
    with pytest.raises(ValueError, match="take at least 10, or fewer splits"):
        evaluator(tmp_path, ["is"])(never, 9)
    with pytest.raises(ValueError, match="take at least 2"):
        with_reference(tmp_path, metrics=["fid"])(never, 1)
    accuracy = evaluator(tmp_path, ["class-accuracy"])
    with pytest.raises(ValueError, match="give `labels`"):
        accuracy(never, 50)
    with pytest.raises(ValueError, match="one label a sample"):
        accuracy(never, 50, labels=torch.zeros(49).long())
    with pytest.raises(ValueError, match="labels"):
        accuracy(source, 50, labels=lambda first, n: torch.zeros(n + 1).long())
    with pytest.raises(ValueError, match=r"0 \.\. 9"):
        accuracy(source, 50, labels=torch.full((50,), 10))
    with pytest.raises(ValueError, match="has 1 image"):
        evaluator(tmp_path).set_reference(Images(1, 0), name="random", split="train")


def test_a_network_without_class_scores_has_no_inception_score(tmp_path):
    class Headless(TinyExtractor):
        def forward(self, images):
            return super().forward(images)._replace(logits=None)

    with pytest.raises(ValueError, match="tiny has none"):
        evaluator(tmp_path, ["is"], extractors={"inception": Headless()})(source, 50)


def test_color_images_are_refused_by_the_digits_network_before_anything_is_computed(tmp_path):
    made = evaluator(tmp_path, ["fd-lenet5"])
    with pytest.raises(ValueError, match="one-channel images of digits, got 3"):
        made.set_reference([{"image": torch.zeros(3, 8, 8).byte()}] * 4, name="color", split="test")


@pytest.mark.parametrize("item", [torch.zeros(1, 8, 8), {"image": torch.zeros(8, 8).byte()}, {"image": None}])
def test_reference_images_must_be_bytes(tmp_path, item):
    with pytest.raises(ValueError, match="uint8 tensors"):
        evaluator(tmp_path).set_reference([item] * 4, name="bad", split="test")


def test_reference_images_must_be_of_one_size():
    mixed = [{"image": torch.zeros(1, 8, size).byte()} for size in (8, 9)]
    with pytest.raises(ValueError, match="differ in shape"):
        reference_module.read_images(mixed, 0, 2)


class Counting(TinyExtractor):
    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return super().forward(images)


def count(tmp_path, dataset, split="train", metrics=("fid",), **kwargs):
    """Reference images extracted, and the reference."""
    extractor = Counting()
    made = evaluator(tmp_path, metrics, extractors={"inception": extractor}, **kwargs)
    made.set_reference(dataset, name="random", split=split)
    return extractor.images, made.references["inception"]


def test_reference_statistics_are_cached_by_content(tmp_path):
    used, first = count(tmp_path, Images(60, 0))
    assert used == 60
    used, again = count(tmp_path, Images(60, 0))
    assert used == 0
    assert torch.equal(first.moments.sigma, again.moments.sigma)
    # the same name for other images, another split, other weights: never the old statistics
    assert count(tmp_path, Images(60, 5))[0] == 60
    assert count(tmp_path, Images(61, 0))[0] == 61
    assert count(tmp_path, Images(60, 0), split="test")[0] == 60
    # features are kept where they are needed
    used, full = count(tmp_path, Images(60, 0), metrics=("fid", "kid"))
    assert used == 60
    assert full.features.shape == (60, 16)
    used, full_again = count(tmp_path, Images(60, 0), metrics=("fid", "kid"))
    assert used == 0
    assert torch.equal(full.features, full_again.features)


def test_other_weights_make_other_statistics(tmp_path, monkeypatch):
    assert count(tmp_path, Images(60, 0))[0] == 60
    monkeypatch.setattr(TinyExtractor, "weights_sha256", "1" * 64)
    assert count(tmp_path, Images(60, 0))[0] == 60


def test_a_damaged_cache_is_made_anew(tmp_path):
    count(tmp_path, Images(60, 0), metrics=("fid", "kid"))
    for pattern in ("*.npz", "*.npy"):
        (path,) = (tmp_path / "cache").rglob(pattern)
        path.write_bytes(path.read_bytes()[:100])
        assert count(tmp_path, Images(60, 0), metrics=("fid", "kid"))[0] == 60
    assert count(tmp_path, Images(60, 0), metrics=("fid", "kid"))[0] == 0


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        assert count(tmp_path, Images(60, 0), cache=tmp_path / "file")[0] == 60


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "there"))
    count(tmp_path, Images(60, 0), cache=None)
    assert list((tmp_path / "there").rglob("*.npz"))


def test_a_data_set_may_carry_its_fingerprint():
    plain, marked = Images(4, 0), Images(4, 0)
    marked.fingerprint = "mine"
    assert fingerprint(marked) == "mine"
    assert len(fingerprint(plain)) == 16
    assert fingerprint(plain) == fingerprint(Images(4, 0)) != fingerprint(Images(4, 1))


def test_statistics_from_a_file(tmp_path):
    _, reference = count(tmp_path, Images(60, 0))
    save_moments(tmp_path / "stats.npz", reference.moments)
    expected = with_reference(tmp_path, metrics=["fid"])(source, 40)["fid"]
    made = evaluator(tmp_path, ["fid"])
    made.load_reference(tmp_path / "stats.npz")
    assert made(source, 40)["fid"] == expected
    with pytest.raises(ValueError, match="'kid' needs the reference images"):
        evaluator(tmp_path).load_reference(tmp_path / "stats.npz")
    with pytest.raises(ValueError, match="extractor: 'tiny', not 'lenet5-"):
        evaluator(tmp_path, ["fd-lenet5"]).load_reference(tmp_path / "stats.npz")
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(16), sigma=np.eye(16))
    assert load_moments(tmp_path / "foreign.npz").n is None
    with pytest.raises(ValueError, match="does not say"):
        evaluator(tmp_path, ["fid"]).load_reference(tmp_path / "foreign.npz")


def test_features_that_are_not_finite_are_refused(tmp_path):
    class Diverged(TinyExtractor):
        def forward(self, images):
            return super().forward(images)._replace(features=torch.full((len(images), 16), float("nan")))

    made = with_reference(tmp_path, metrics=["fid"])
    made.extractors["inception"] = Diverged()
    with pytest.raises(ValueError, match="not finite"):
        made(source, 20)


def test_an_extractor_stays_frozen():
    extractor = TinyExtractor()
    extractor.train()
    assert not extractor.training
    assert not copy.deepcopy(extractor).training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    with pytest.raises(NotImplementedError):
        FeatureExtractor()(torch.zeros(1))
