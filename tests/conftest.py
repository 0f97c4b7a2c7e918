import os

import pytest
import torch

from lightning_gen.quiet import quiet_lightning

# a test process computes on one core: several run side by side, and sums keep one order
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_global_seed(monkeypatch):
    """A seed set by one test must not reach the next."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(autouse=True)
def _quiet():
    """Pytest sets the filters of warnings anew for every test."""
    quiet_lightning()


@pytest.fixture
def data_root():
    """The folder of real data sets; tests that need it are skipped without it."""
    root = os.environ.get("LIGHTNING_GEN_DATA")
    if not root:
        pytest.skip("LIGHTNING_GEN_DATA does not point at the real data sets")
    return root
