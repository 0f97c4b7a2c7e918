"""The pictures of docs/: made from a checkpoint, with numbers that tell their protocol."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_gen.checkpoints import INSTANTIATOR, AtomicCheckpointIO
from lightning_gen.diffusion import EDM, SOLVERS
from lightning_gen.diffusion.module import Diffusion
from lightning_gen.diffusion.solvers import to_clean
from lightning_gen.images import to_uint8
from lightning_gen.networks.unet import UNet

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
QUICK = ["--n", "12", "--batch_size", "6", "--columns", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    path = list(sys.path)
    yield
    sys.path[:] = path


@pytest.fixture
def run_folder(tmp_path):
    """Makes a run folder with an untrained model of digits."""

    def make(name="tiny", shape=(1, 8, 8), num_classes=10):
        net = {"image_shape": list(shape), "channels": 8, "channel_multipliers": [1], "blocks": 1}
        net |= {"attention_levels": [], "middle_attention": False, "num_classes": num_classes}
        torch.manual_seed(0)
        module = Diffusion(UNet(**net), sampling_steps=4)
        torch.nn.init.normal_(module.net.output.weight, std=0.1)
        path = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
        content = {
            "state_dict": module.state_dict(),
            "global_step": 7,
            "hyper_parameters": {
                "_class_path": "lightning_gen.diffusion.module.Diffusion",
                "net": {"class_path": "lightning_gen.networks.unet.UNet", "init_args": net},
                "sampling_steps": 4,
                "_instantiator": INSTANTIATOR,
            },
            "datamodule_hyper_parameters": {
                "_class_path": "lightning_gen.data.digits.DigitsDataModule",
                "_instantiator": INSTANTIATOR,
            },
        }
        AtomicCheckpointIO().save_checkpoint(content, path)
        return path.parents[1]

    return make


@pytest.fixture
def make(tmp_path):
    """Runs the script with its files in the test's own folder."""

    def command(*arguments):
        import diffusion_pictures

        where = ["--pictures", str(tmp_path / "pictures"), "--results", str(tmp_path / "results")]
        return diffusion_pictures.main([*QUICK, *where, *map(str, arguments)])

    return command


def asked_for(*arguments):
    import diffusion_pictures

    return diffusion_pictures.parse([*map(str, arguments), *QUICK])


def test_all_pictures_are_made_and_every_number_has_its_protocol(run_folder, make, tmp_path):
    pytest.importorskip("matplotlib")
    folder = run_folder()
    more = ["--scales", "0,1,2", "--evaluations", "2,5", "--solvers", "ddim,heun"]
    content = make(folder, *more)
    assert content == json.loads((tmp_path / "results" / "runs_tiny_pictures.json").read_text())
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == sorted(name for section in content.values() for name in section["files"].values())
    assert len(pictures) == 5
    for name in pictures:
        path = tmp_path / "pictures" / name
        assert path.stat().st_size < 200_000
        with Image.open(path) as picture:
            picture.verify()
    for section in content.values():
        assert section["environment"].keys() >= {"commit", "torch", "device", "date", "threads"}
        assert section["iterations"] == 7
        assert len(section["checkpoint_sha256"]) == 64
        assert section["minutes"] >= 0
        assert section["checkpoint"] == "runs/tiny/checkpoints/last.ckpt"
        assert section["command"].endswith("--device cpu runs/tiny/checkpoints/last.ckpt " + " ".join(more))
        assert str(tmp_path) not in json.dumps(section)
    scores = [entry["scores"] for kind in ("guidance", "steps") for entry in content[kind]["scores"]]
    assert len(scores) == 3 + 4
    for entry in scores:
        assert {name.split("-")[0] for name in entry} == {"fd", "class"}
        for score in entry.values():
            assert score["protocol"]["num_samples"] == 12
    assert [(e["solver"], e["steps"], e["evaluations"]) for e in content["steps"]["scores"]] == [
        ("ddim", 2, 2),
        ("ddim", 5, 5),
        ("heun", 1, 1),
        ("heun", 3, 5),
    ]


def test_a_model_without_classes_has_no_guidance_and_keeps_what_was_measured_before(run_folder, make, capsys):
    folder = run_folder(num_classes=None)
    content = make(folder, "--what", "trajectory", "--steps", "5")
    assert content["trajectory"]["steps"] == 5
    assert content["trajectory"]["t"][0] == 1.0
    assert content["trajectory"]["noise_levels"][0] == "infinite"
    assert content["trajectory"]["noise_levels"][-1] == 0.0
    again = make(folder, "--what", "guidance")
    assert "left out" in capsys.readouterr().out
    assert again["trajectory"] == content["trajectory"]
    assert "guidance" not in again


def test_the_way_shown_is_the_way_that_is_taken(run_folder):
    from pictures.model import Model
    from pictures.trajectory import walk

    asked = asked_for(run_folder(), "--steps", "6", "--seed", "3")
    model = Model(asked)
    states, estimates, points = walk(model, asked)
    assert len(states) == len(estimates) == len(points) == 7
    # each of DDIM's steps is the line through the state and the estimate made there
    for i in range(6):
        step = to_clean(states[i], estimates[i], points[i], points[i + 1])
        # a state is divided by its deviation where that is above 1, which on this path it never is
        torch.testing.assert_close(step, states[i + 1], rtol=0, atol=2e-6)
    assert 0.8 < states[0].std() < 1.2
    drawn = model.module.sample(10, cond=torch.arange(10), seed=3, steps=6)
    torch.testing.assert_close(states[-1].clamp(-1, 1), drawn)


def test_states_of_exploding_variance_are_brought_into_the_range():
    from pictures.trajectory import _in_range, spread

    from lightning_gen.diffusion.solvers import points_of

    noisy, clean = points_of(EDM(), [1.0, 0.0])
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(_in_range(noisy.sigma * x, noisy).std(), x.std(), rtol=1e-3, atol=0)
    torch.testing.assert_close(_in_range(x, clean), x, rtol=1e-5, atol=1e-5)
    assert spread(51, 6) == [0, 10, 20, 30, 40, 50]
    assert spread(3, 12) == [0, 1, 2]


@pytest.mark.parametrize(("name", "steps"), [("ddim", 10), ("heun", 5), ("unipc", 10), ("euler_ancestral", 10)])
def test_no_solver_asks_more_often_than_it_may(name, steps):
    from pictures.steps import steps_for

    assert steps_for(SOLVERS[name](), 10) == steps


def test_pictures_of_noise_stay_small(tmp_path):
    from pictures.files import MOST_BYTES, write_small

    path = tmp_path / "noise.png"
    write_small(path, to_uint8(torch.rand(3, 250, 300) * 2 - 1))
    assert path.stat().st_size < MOST_BYTES
    with Image.open(path) as shown:
        assert shown.size == (900, 750)
    small = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    write_small(path, small)
    with Image.open(path) as shown:
        assert shown.size == (720, 720)
        assert [shown.getpixel((90 * x, 0)) for x in range(8)] == small[0, 0].tolist()


def test_what_cannot_be_done_is_said(run_folder, make, tmp_path, capsys):
    with pytest.raises(SystemExit):
        make(tmp_path, "--what", "trajectories")
    assert "trajectory, guidance, steps" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no checkpoint"):
        make(tmp_path / "nowhere")
    folder = run_folder()
    with pytest.raises(SystemExit, match="no weights 'ema'"):
        make(folder, "--weights", "ema")
    with pytest.raises(SystemExit, match="--n is 2 or more"):
        make(folder, "--what", "steps", "--n", "0")
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match="dpmpp_2m"):
        make(folder, "--what", "steps", "--solvers", "dpm")
    with pytest.raises(SystemExit, match="gray digits"):
        make(run_folder("color", shape=(3, 8, 8)), "--what", "steps")


def test_without_matplotlib_the_extra_is_named_before_the_work(run_folder, make, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = run_folder()
    with pytest.raises(SystemExit, match=r"\[docs\]"):
        make(folder, "--what", "steps")
    content = make(folder, "--what", "guidance", "--scales", "1,2", "--n", "0")
    assert content["guidance"]["files"].keys() == {"grid"}
