"""Packaged configurations."""

from pathlib import Path

import pytest
import yaml

from lightning_gen.cli import configs
from lightning_gen.cli.failures import UsageError

HEADER = """# A GAN on digits: the quick start
# paper: https://example.org/1, which goes on
#   in a second line
# hardware: 2 CPU cores
# Result: fd 1.5
# command: lightning-gen fit -c x
seed_everything: 0
# time: not the header
"""


def test_header():
    header = configs.read_header(HEADER)
    assert header.title == "A GAN on digits: the quick start"
    assert header.values["paper"] == "https://example.org/1, which goes on in a second line"
    assert header.result == "fd 1.5"
    assert "time" not in header.values


def test_header_without_result():
    assert configs.read_header("# Title only\nmodel: 1").result == "not yet run"
    assert configs.read_header("model: 1").title == ""


def test_every_packaged_configuration_is_listed_with_its_title():
    table = configs.table()
    for name, entry in configs.packaged().items():
        header = configs.read_header(entry.read_text())
        assert name in table
        assert header.title
        assert header.title in table
        assert set(header.values) == set(configs.KEYS)
        assert {"seed_everything", "trainer", "model", "data"} <= set(yaml.safe_load(entry.read_text()))


def test_find_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, name = configs.find("gan/digits")
    assert name == "gan/digits"
    assert path.is_file()
    Path("mine.yaml").write_text("model: 1")
    assert configs.find("mine.yaml") == (Path("mine.yaml"), "mine")
    # a file goes before a packaged name
    Path("gan").mkdir()
    Path("gan/digits").write_text("model: 1")
    assert configs.find("gan/digits") == (Path("gan/digits"), "digits")


@pytest.mark.parametrize(("name", "advice"), [("gan/mnist_dcgn", "'gan/mnist_dcgan'"), ("mnist_dcgan", "'gan/mnist")])
def test_unknown_configuration_names_the_nearest(name, advice):
    with pytest.raises(UsageError, match=r"lightning-gen list") as error:
        configs.find(name)
    assert advice in str(error.value)


def test_list_filters(run):
    code, out, _ = run("list", "cifar")
    assert code == 0
    assert "gan/cifar10_sngan" in out
    assert "mnist" not in out.lower()
    assert "not yet run" in out or "RESULT" in out
    code, _, err = run("list", "mnst")
    assert code == 2
    assert "Did you mean 'mnist'" in err
