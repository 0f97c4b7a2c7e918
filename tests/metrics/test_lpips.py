"""LPIPS on random weights of VGG16, against torchmetrics' network with the same."""

import copy

import pytest
import torch
import torchmetrics.functional.image.lpips as theirs
from torch import nn
from torchvision.models import vgg16

from lightning_gen.errors import MissingData
from lightning_gen.metrics import weight_files
from lightning_gen.metrics.lpips import FILE, LPIPS, VARIABLES, find_vgg16_weights

HUB = "hub/checkpoints"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file as torchvision's, but that the classifier is left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        features = vgg16(weights=None).features
    state = {}
    for name, value in features.state_dict().items():
        fan = value[0].numel() if value.dim() > 1 else 1
        state[f"features.{name}"] = torch.randn(value.shape, generator=generator) * (2 / fan) ** 0.5
    path = tmp_path_factory.mktemp("vgg") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def lpips(file):
    return LPIPS(str(file))


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No weights in any of the places."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def images(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def reference(file):
    """Return torchmetrics' network with the features of the file, in float64."""
    net = theirs._LPIPS(pretrained=True, net="vgg", pnet_rand=True).double()
    layers = torch.load(file, weights_only=True)
    for stage in range(1, 6):
        for number, layer in getattr(net.net, f"slice{stage}").named_children():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.copy_(layers[f"features.{number}.weight"])
                layer.bias.data.copy_(layers[f"features.{number}.bias"])
    return net.eval()


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 16, 35)])
def test_the_distance_and_its_gradient_are_torchmetrics(lpips, file, shape):
    lpips.double()
    x, y = images(*shape), images(*shape, seed=1).requires_grad_()
    ours, wanted = lpips(x, y), reference(file)(x, y).flatten()
    assert ours.shape == (shape[0],)
    assert (wanted > 1e-3).all()
    assert (ours - wanted).abs().max() < 1e-12 * wanted.max()
    (gradient,) = torch.autograd.grad(ours.sum(), y)
    (expected,) = torch.autograd.grad(wanted.sum(), y)
    assert (gradient - expected).abs().max() < 1e-10 * expected.abs().max()


def test_gray_images_are_repeated_to_three_channels(lpips):
    x, y = images(2, 1, 16, 16, dtype=torch.float32), images(2, 1, 16, 16, seed=1, dtype=torch.float32)
    assert torch.equal(lpips(x, y), lpips(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))
    assert torch.equal(lpips(x, x), torch.zeros(2))


def test_the_gradient_is_finite_where_no_feature_is_active(lpips):
    state = {name: torch.zeros_like(value) for name, value in lpips._held[0].stages.state_dict().items()}
    lpips._held[0].stages.load_state_dict(state)
    y = images(1, 3, 16, 16, dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(lpips(torch.zeros_like(y), y).sum(), y)
    assert torch.isfinite(gradient).all()


def test_its_weights_are_in_no_checkpoint_and_in_no_optimizer(lpips):
    holder = nn.ModuleDict({"loss": lpips, "net": nn.Linear(2, 2)})
    assert set(holder.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(holder.parameters())) == 2
    assert list(holder.buffers()) == []
    assert not any(parameter.requires_grad for parameter in lpips._held[0].parameters())
    holder.load_state_dict(holder.state_dict(), strict=True)


def test_its_weights_move_with_the_module_around(lpips):
    holder = nn.ModuleDict({"loss": lpips}).to(torch.float64)
    assert all(parameter.dtype == torch.float64 for parameter in lpips._held[0].parameters())
    assert lpips(*[images(1, 3, 16, 16)] * 2).dtype == torch.float64
    assert copy.deepcopy(holder)["loss"]._held[0] is not lpips._held[0]
    holder.to("meta")
    assert all(parameter.device.type == "meta" for parameter in lpips._held[0].parameters())


def test_in_evaluation_and_training_it_is_the_same(lpips):
    x, y = images(1, 3, 16, 16, dtype=torch.float32), images(1, 3, 16, 16, seed=1, dtype=torch.float32)
    assert torch.equal(lpips.train()(x, y), lpips.eval()(x, y))


def test_bf16_autocast_is_near(lpips):
    x, y = images(2, 3, 32, 32, dtype=torch.float32), images(2, 3, 32, 32, seed=1, dtype=torch.float32)
    exact = lpips(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = lpips(x, y)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.max()


def test_building_it_draws_nothing(file):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    LPIPS(str(file))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("x", "y", "what"),
    [
        ((1, 3, 16, 16), (1, 3, 16, 17), "one shape"),
        ((3, 16, 16), (3, 16, 16), "one shape"),
        ((1, 2, 16, 16), (1, 2, 16, 16), "1 or 3 channels"),
        ((1, 3, 15, 16), (1, 3, 15, 16), "16 x 16"),
    ],
)
def test_images_that_it_does_not_take_are_refused(lpips, x, y, what):
    with pytest.raises(ValueError, match=what):
        lpips(torch.zeros(x), torch.zeros(y))


# ---------------------------------------------------------------------- the file


def test_one_message_says_everything_about_a_missing_file(nowhere, tmp_path):
    with pytest.raises(MissingData) as caught:
        LPIPS()
    message = str(caught.value)
    target = tmp_path / "home" / HUB / FILE.names[0]
    for part in (FILE.names[0], FILE.url, str(target), "weights_path", *VARIABLES, "laplacian"):
        assert part in message
    with pytest.raises(MissingData, match="weights_path is"):
        LPIPS(str(tmp_path))


def test_nothing_is_downloaded(nowhere, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *given, **how: calls.append(given))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *given, **how: calls.append(given))
    with pytest.raises(MissingData):
        LPIPS()
    assert calls == []


def test_order_of_the_search(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "file_sha256", lambda path: FILE.hash_prefix + "0" * 56)

    def put(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE.names[0]).write_bytes(b"weights")
        return folder / FILE.names[0]

    found = put(tmp_path / "home" / HUB)
    assert find_vgg16_weights() == found
    for name in reversed(VARIABLES):
        found = put(tmp_path / name)
        monkeypatch.setenv(name, str(tmp_path / name))
        assert find_vgg16_weights() == found
    # a file of other weights is passed over
    monkeypatch.setenv(VARIABLES[0], str(found))
    assert find_vgg16_weights() == tmp_path / VARIABLES[1] / FILE.names[0]
    mine = put(tmp_path / "mine")
    assert find_vgg16_weights(tmp_path / "mine") == find_vgg16_weights(mine) == mine


def test_broken_and_foreign_files(tmp_path):
    (tmp_path / FILE.names[0]).write_bytes(b"half a download")
    with pytest.raises(ValueError, match="damaged"):
        LPIPS(str(tmp_path))
    (tmp_path / "text.pth").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"text.pth is not a file of weights"):
        LPIPS(str(tmp_path / "text.pth"))
    torch.save({"layer": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights"):
        LPIPS(str(tmp_path / "other.pth"))


def test_other_weights_have_another_name(lpips, file):
    assert lpips.name == f"lpips-{weight_files.file_sha256(file)[:8]}"
