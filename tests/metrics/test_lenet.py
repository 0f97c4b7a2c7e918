import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lightning_gen.errors import MissingData
from lightning_gen.metrics import Evaluator, LeNet5, dataset_source, frechet_distance_from_features
from lightning_gen.metrics.lenet import WEIGHTS, LeNet5Network

RECORD = Path(__file__).parents[2] / "docs/results/lenet5_mnist.json"


@pytest.fixture(scope="module")
def lenet():
    return LeNet5()


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    return images, torch.from_numpy(data.target).long()


def test_the_shipped_file_is_the_recorded_one(lenet):
    sha256 = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    record = json.loads(RECORD.read_text())
    assert record["sha256"] == sha256 == lenet.weights_sha256
    assert lenet.name == record["name"] == f"lenet5-{sha256[:8]}"
    assert WEIGHTS.stat().st_size < 260_000
    assert sum(p.numel() for p in lenet.parameters()) == 61_706
    assert record["accuracy"]["mnist test, 10000"] >= 0.99


def test_recorded_accuracy_on_digits(lenet, digits):
    recorded = json.loads(RECORD.read_text())["accuracy"]["scikit-learn digits, 1797, 8x8 resized to 28x28"]
    # another machine may round a borderline digit the other way
    assert lenet.class_accuracy(*digits) == pytest.approx(recorded, abs=1 / 1797)


def test_shapes_and_features_are_the_84(lenet):
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    features, logits = lenet(images)
    assert features.shape == (5, lenet.dim) == (5, 84)
    torch.testing.assert_close(logits, lenet.network.fc3(features))
    torch.testing.assert_close(logits, lenet.network(images / 255))


@pytest.mark.parametrize("size", [8, 32, 64])
def test_other_sizes_are_resized_antialiased(lenet, size):
    images = torch.randint(0, 256, (3, 1, size, size), dtype=torch.uint8)
    resized = F.interpolate(images / 255, (28, 28), mode="bilinear", antialias=True)
    torch.testing.assert_close(lenet(images).features, lenet.network.features(resized))
    assert "antialiased" in lenet.resize


def test_a_checkerboard_of_pixels_becomes_gray(lenet):
    board = ((torch.arange(56)[:, None] + torch.arange(56)) % 2 * 255).to(torch.uint8)[None, None]
    gray = torch.full((1, 1, 28, 28), 128, dtype=torch.uint8)
    difference = (lenet(board).features - lenet(gray).features).abs().max()
    assert difference < 0.25 * lenet(gray).features.abs().max()


def test_refusals(lenet):
    with pytest.raises(ValueError, match="got 3 channels"):
        lenet(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8 images"):
        lenet(torch.zeros(2, 1, 28, 28))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        lenet(torch.zeros(1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one label an image"):
        lenet.class_accuracy(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"0 \.\. 9"):
        lenet.class_accuracy(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([3, 11]))


def test_weights_of_another_file(tmp_path):
    with pytest.raises(MissingData, match=r"train_lenet5.py"):
        LeNet5(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken.safetensors is not a LeNet-5"):
        LeNet5(tmp_path / "broken.safetensors")
    torch.manual_seed(0)
    save_file(LeNet5Network().state_dict(), tmp_path / "other.safetensors")
    assert LeNet5(tmp_path / "other.safetensors").name != LeNet5().name


def test_class_accuracy_of_labels_asked_for(digits):
    images, labels = digits
    dataset = [{"image": image} for image in images[:200]]
    wrong = labels[:200].clone()
    wrong[:50] = (wrong[:50] + 1) % 10
    evaluator = Evaluator(["class-accuracy"], batch_size=64)
    right = evaluator(dataset_source(dataset), 200, labels=labels[:200])["class-accuracy"]
    fewer = evaluator(dataset_source(dataset), 200, labels=lambda first, n: wrong[first : first + n])["class-accuracy"]
    assert right.value == LeNet5().class_accuracy(images[:200], labels[:200]) > 0.8
    assert fewer.value < right.value - 0.15
    assert right.name == f"class-accuracy-{LeNet5().name}_200"


needs_mnist = pytest.mark.skipif("LIGHTNING_GEN_DATA" not in os.environ, reason="real MNIST: set LIGHTNING_GEN_DATA")


@pytest.fixture(scope="module")
def mnist():
    from torchvision.datasets import MNIST

    data = MNIST(os.environ["LIGHTNING_GEN_DATA"], train=False)
    return data.data[:, None], data.targets


@pytest.mark.data
@needs_mnist
def test_recorded_accuracy_on_mnist(lenet, mnist):
    recorded = json.loads(RECORD.read_text())["accuracy"]["mnist test, 10000"]
    assert lenet.class_accuracy(*mnist) == pytest.approx(recorded, abs=2e-4)


@pytest.mark.data
@needs_mnist
def test_the_distance_grows_with_noise_blur_and_missing_classes(lenet, mnist):
    images, labels = mnist
    reference, x, y = images[5000:7000], images[:2000], labels[:2000]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def distance(changed):
        return frechet_distance_from_features(lenet(changed).features, lenet(reference).features)

    floor = distance(x)
    noisy = [distance((x + level * 255 * noise).clamp(0, 255).round().byte()) for level in (0.1, 0.2, 0.4)]
    blurred = [distance(F.avg_pool2d(x.float(), k, 1, k // 2).round().byte()) for k in (3, 5)]
    assert floor < noisy[0] < noisy[1] < noisy[2]
    assert floor < blurred[0] < blurred[1]
    assert distance(x[y != 3]) > 1.5 * floor
    assert distance(x[y < 5]) > distance(x[y != 3])
