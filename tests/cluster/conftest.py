"""Tests that start a Slurm or whole hosts on this machine, which is done where `-m cluster` asks for it."""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "survival"))


def pytest_collection_modifyitems(config, items):
    """Leave these out unless they are asked for."""
    if "cluster" in config.option.markexpr:
        return
    unasked = [item for item in items if item.get_closest_marker("cluster")]
    if unasked:
        config.hook.pytest_deselected(items=unasked)
        items[:] = [item for item in items if item not in unasked]


@pytest.fixture(scope="session", autouse=True)
def _environment():
    """Let processes find this environment's programs, daemons and these modules, and sum in one order."""
    import runs

    runs.path_for_children()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="module")
def cluster(_environment, tmp_path_factory):
    """A Slurm of two nodes."""
    import slurm

    lacking = slurm.missing()
    if lacking:
        pytest.skip(lacking)
    cluster = slurm.Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
