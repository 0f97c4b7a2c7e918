"""Tests that start a Slurm or whole hosts on this machine, which is done where `-m cluster` asks for it."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "survival"))
# daemons are there; so is, for the processes that are started, the environment that runs these tests
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])

import runs  # noqa: E402

runs.path_for_children()
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])


def pytest_collection_modifyitems(config, items):
    """Leave these out unless they are asked for."""
    if "cluster" in config.option.markexpr:
        return
    unasked = [item for item in items if item.get_closest_marker("cluster")]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Sums keep one order in the processes that are started, as in those they are compared with."""
    os.environ["OMP_NUM_THREADS"] = "1"
