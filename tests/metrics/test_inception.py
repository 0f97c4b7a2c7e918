import hashlib
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from random_inception import random_inception, smooth
from torch.utils.data import Dataset

from lightning_gen.errors import MissingData
from lightning_gen.metrics import Evaluator, InceptionV3, dataset_source, find_inception_weights, weight_files
from lightning_gen.metrics.inception import FILE_NAMES, URL, VARIABLE

HUB = Path("hub/checkpoints")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_inception(), path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return InceptionV3(weights)


class Bare(Dataset):
    """The only in-memory form torch-fidelity takes."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def theirs(weights, ours, reference, *, fid):
    from torch_fidelity import calculate_metrics

    return calculate_metrics(
        input1=Bare(ours),
        input2=Bare(reference),
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        fid=fid,
        kid=True,
        isc=True,
        isc_splits=1,
        kid_subsets=1,
        kid_subset_size=len(ours),
        batch_size=16,
        feature_extractor_weights_path=str(weights),
        verbose=False,
    )


def ours(network, images, reference, metrics, folder):
    evaluator = Evaluator(metrics, extractors={"inception": network}, cache=folder, batch_size=16, splits=1)
    evaluator.set_reference(Bare(reference), name="smooth", split="test")
    return evaluator(dataset_source(Bare(images)), len(images))


# their trace takes ten seconds: the small set goes without
@pytest.mark.parametrize(("n", "fid"), [(6, False), pytest.param(32, True, marks=pytest.mark.slow)])
def test_agrees_with_torch_fidelity_on_the_same_images_and_weights(tmp_path, weights, network, n, fid):
    # far apart, since their kernels are float32: a distance near zero would be all rounding
    images, reference = smooth(n, 10), smooth(n, 11, 64) // 2 + 64
    metrics = ["fid", "kid", "is"] if fid else ["kid", "is"]
    expected = theirs(weights, images, reference, fid=fid)
    scores = ours(InceptionV3(weights, channels_last=False), images, reference, metrics, tmp_path / "plain")
    assert scores["kid"].value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert scores["is"].value == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    if fid:
        assert scores["fid"].value == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
        # the faster layout moves every score by less than one part in 100,000
        faster = ours(network, images, reference, metrics, tmp_path / "faster")
        for metric in metrics:
            assert faster[metric].value == pytest.approx(scores[metric].value, rel=1e-5)


def test_features_are_bitwise_those_of_torch_fidelity_without_the_layout(weights, network):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = smooth(3, 2, 20)
    oracle = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    expected = oracle(images)
    plain = InceptionV3(weights, channels_last=False)(images)
    assert torch.equal(plain.features, expected[0])
    assert torch.equal(plain.logits, expected[1])
    assert plain.features.shape == (3, network.dim)


@pytest.mark.slow
def test_the_layout_moves_features_by_the_rounding_of_float32_only(weights):
    images = smooth(2, 2, 20)

    def features(channels_last, dtype):
        extractor = InceptionV3(weights, channels_last=channels_last).to(dtype)
        extractor.network.feature_extractor_internal_dtype = dtype
        return extractor(images).features.double()

    # in float64 the layouts agree in every digit that the float32 output has
    exact = features(False, torch.float64)
    assert (features(True, torch.float64) - exact).abs().max() <= 2.0**-23 * exact.abs().max()
    # in float32 neither is nearer to the truth; how far both are depends on the machine's kernels
    plain, faster = ((features(layout, torch.float32) - exact).square().mean().sqrt() for layout in (False, True))
    assert faster <= 2 * plain


def test_the_resize_is_that_of_tensorflow_1(network):
    images = smooth(2, 3)
    # half-pixel bilinear of the same images is another network input, so another score
    other = F.interpolate(images.float(), (299, 299), mode="bilinear").round().to(torch.uint8)
    shifted = (network(other).features - network(images).features).abs().max()
    assert shifted > 5e-3 * network(images).features.abs().max()
    assert "TensorFlow 1" in network.resize


def test_gray_images_are_repeated_to_rgb_and_others_refused(network):
    gray = smooth(2, 4, channels=1)
    assert torch.equal(network(gray).features, network(gray.repeat(1, 3, 1, 1)).features)
    with pytest.raises(ValueError, match=r"1 \(gray\) or 3 \(RGB\) channels"):
        network(smooth(2, 4, channels=2))
    with pytest.raises(ValueError, match="uint8"):
        network(gray.float())


def test_only_standard_weights_carry_the_standard_name(weights, network):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert network.weights_sha256 == digest
    assert network.name == f"inception-v3-compat-{digest[:8]}"
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty torch hub, and no network."""
    calls = []

    def fail(url, *args, **kwargs):
        calls.append(url)
        raise urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return calls


def test_offline_one_message_says_everything(offline, tmp_path):
    with pytest.raises(MissingData) as caught:
        Evaluator(["fid"])
    message = str(caught.value)
    target = tmp_path / "home" / HUB / FILE_NAMES[0]
    for part in (FILE_NAMES[0], URL, str(target), "weights_path", VARIABLE, "fd-lenet5", "not known"):
        assert part in message
    assert "\n" not in message
    assert offline == [URL]


def test_digits_need_no_download(offline):
    Evaluator(["fd-lenet5", "class-accuracy"])
    assert offline == []


def test_a_given_file_that_is_not_there_is_not_replaced_by_another(offline, tmp_path, monkeypatch):
    with pytest.raises(MissingData, match=r"weights_path is .*none.pth"):
        find_inception_weights(tmp_path / "none.pth")
    with pytest.raises(MissingData, match="weights_path is"):
        find_inception_weights(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(MissingData, match=rf"\${VARIABLE} is"):
        find_inception_weights()
    assert offline == []


def test_order_of_the_search(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "file_sha256", lambda path: "6726825d" + "0" * 56)

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        return path

    hub = tmp_path / "home" / HUB
    second = put(hub / FILE_NAMES[1])
    assert find_inception_weights() == second
    first = put(hub / FILE_NAMES[0])
    assert find_inception_weights() == first
    folder = tmp_path / "folder"
    folder.mkdir()
    # a folder of other weights is passed over
    monkeypatch.setenv(VARIABLE, str(folder))
    assert find_inception_weights() == first
    in_folder = put(folder / FILE_NAMES[1])
    assert find_inception_weights() == in_folder
    file = put(tmp_path / "mine.pth")
    monkeypatch.setenv(VARIABLE, str(file))
    assert find_inception_weights() == file
    assert find_inception_weights(folder) == in_folder


def test_a_download_lands_in_the_cache_of_torch_hub(offline, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "file_sha256", lambda path: "6726825d" + "0" * 56)
    given = {}

    def download(url, target, hash_prefix, progress):
        given.update(url=url, hash_prefix=hash_prefix)
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert find_inception_weights() == tmp_path / "home" / HUB / FILE_NAMES[0]
    assert given == {"url": URL, "hash_prefix": "6726825d"}


def test_broken_and_foreign_files(offline, tmp_path):
    half = tmp_path / FILE_NAMES[0]
    half.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="damaged"):
        find_inception_weights(half)
    (tmp_path / "text.pth").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"text.pth is not a file of weights"):
        InceptionV3(tmp_path / "text.pth")
    torch.save({"layer": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights"):
        InceptionV3(tmp_path / "other.pth")
    # a pickle that would run code is not run
    torch.save({"layer": Path("x")}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match=r"pickle.pth is not a file of weights"):
        InceptionV3(tmp_path / "pickle.pth")
