"""What is answered without torch."""

import os
import subprocess
import sys

import pytest

from lightning_gen import __version__
from lightning_gen.cli import pages

COLD = """
import sys, time
start = time.perf_counter()
import lightning_gen
took = time.perf_counter() - start
from lightning_gen.cli import main
codes = [main(line.split()) for line in {lines!r}]
heavy = [name for name in ("torch", "lightning", "jsonargparse", "numpy", "torchvision") if name in sys.modules]
print("CODES", codes, "HEAVY", heavy, "FAST", took < 0.3)
"""


def cold(*lines):
    """Run commands in a new process; says what it loaded."""
    code = COLD.format(lines=lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_help_list_version_and_slips_load_no_torch():
    commands = [f"{name} --help" for name in pages.PAGES]
    out, err = cold("--help", "--version", "list", "list gan", "help", "fitt", "list nothing", "help fitt", *commands)
    assert f"CODES {[0, 0, 0, 0, 0, 2, 2, 2] + [0] * len(commands)} HEAVY [] FAST True" in out
    assert "there is no command 'fitt'. Did you mean 'fit'?" in err
    assert f"lightning_gen {__version__}" in out
    assert "gan/mnist_dcgan" in out


def test_wrong_options_of_sample_and_evaluate_load_no_torch():
    lines = ["sample --sed 3 --ckpt_path x", "sample", "evaluate --n 3", "sample --n 0 --ckpt_path x"]
    out, err = cold(*lines)
    # the package of the command itself is loaded by then
    assert "CODES [2, 2, 2, 2]" in out
    assert "Did you mean --seed?" in err
    assert "--ckpt_path says what to sample from" in err
    assert "either --ckpt_path (a model) or --samples" in err
    assert "HEAVY []" in out


@pytest.mark.parametrize("name", pages.PAGES)
def test_every_page_has_usage_and_examples(name):
    page = pages.PAGES[name]
    assert page.startswith(f"usage: lightning-gen {name}")
    assert "examples:" in page
    assert max(map(len, page.splitlines())) <= 110


def test_no_argument_shows_the_page_and_is_wrong_usage(run):
    code, out, _ = run()
    assert code == 2
    assert out.startswith("usage: lightning-gen COMMAND")


def test_public_names_are_resolved():
    import lightning_gen

    assert set(lightning_gen.__all__) == {*lightning_gen._PUBLIC, "__version__"}
    for name in lightning_gen.__all__:
        assert getattr(lightning_gen, name) is not None
        assert name in dir(lightning_gen)
    with pytest.raises(AttributeError, match="no attribute 'GNA'"):
        lightning_gen.GNA  # noqa: B018


@pytest.mark.slow
def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_gen", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"lightning_gen {__version__}\n"


def test_output_that_nobody_reads_on_is_no_error():
    """`lightning-gen list | head -0`, say."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lightning_gen", "list"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""
