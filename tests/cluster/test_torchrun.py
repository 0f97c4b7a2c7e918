"""A training on two hosts, started on each by scripts/cluster/torchrun.sh, equals one of two processes on one host."""

import hosts
import pytest
import yaml
from families import EPOCH, FAMILIES, configuration
from runs import assert_same, run, said

pytestmark = pytest.mark.cluster

RUN = ["-c", "config.yaml", "--trainer.default_root_dir=run"]


@pytest.fixture(scope="module", autouse=True)
def _possible():
    lacking = hosts.missing()
    if lacking:
        pytest.skip(lacking)


@pytest.fixture(scope="module")
def config():
    return configuration(*FAMILIES["diffusion"])


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder, config, world=2) == [0, 0], said(folder)
    return folder


def test_two_hosts_that_know_each_other(config, straight, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with hosts.Hosts(tmp_path) as two:
        two.torchrun(RUN, HEAD=f"{hosts.NAMES[0]}:{hosts.PORT}")
        assert two.end() == [0, 0], two.said()
    assert_same(straight, tmp_path)


def test_a_killed_process_is_started_anew(config, straight, tmp_path):
    """On hosts that have addresses alone."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    kill = ["--trainer.callbacks+=kills.KillAt", "--trainer.callbacks.place=batch", "--trainer.callbacks.rank=1"]
    kill += [f"--trainer.callbacks.iteration={2 * EPOCH + 2}", "--trainer.callbacks.once=killed"]
    head = f"{hosts.ADDRESSES[0]}:{hosts.PORT}"
    with hosts.Hosts(tmp_path, known=False) as two:
        two.torchrun([*RUN, *kill], HEAD=head, ADDRESS="{address}", GLOO_SOCKET_IFNAME="cable")
        assert two.end() == [0, 0], two.said()
    assert (tmp_path / "killed").exists()
    assert "continuing run from iteration 12" in two.said()
    assert_same(straight, tmp_path)
