"""Jobs of scripts/cluster/slurm.sbatch in a real Slurm: warned, requeued, cancelled, they lose nothing."""

import pytest
import slurm
import yaml
from families import EPOCH, FAMILIES, configuration
from runs import assert_same, run, said

pytestmark = pytest.mark.cluster

HERE = 2 * EPOCH + 2
TWO_NODES = ["--nodes=2", "--time=10"]
RUN = ["-c", "config.yaml", "--trainer.default_root_dir=run"]
HOLD = ["--trainer.callbacks+=holds.HoldAt", f"--trainer.callbacks.iteration={HERE}"]


@pytest.fixture(scope="module")
def config():
    return configuration(*FAMILIES["gan"])


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder, config, world=2) == [0, 0], said(folder)
    return folder


@pytest.fixture
def training(config, tmp_path):
    """A folder with the configuration of a training in it."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def hold(folder):
    """Wait until the two processes of a job hold; return where they are."""
    files = [folder / f"holding-{rank}" for rank in (0, 1)]
    slurm.wait(lambda: all(file.exists() and file.read_text() for file in files), "the job to train", 240)
    return [file.read_text() for file in files]


def test_warned_before_the_limit_it_puts_itself_back(cluster, straight, training):
    job = cluster.submit(training, [*TWO_NODES, "--signal=USR1@120"], [*RUN, *HOLD])
    assert hold(training) == ["n0", "n1"]
    # one to two minutes from now; Slurm looks every half minute whose time is soon up
    minutes = int(cluster.job(job)["RunTime"].split(":")[1])
    cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")
    cluster.wait(job, "PENDING", restarts=1)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    cluster.wait(job, "COMPLETED", restarts=1)
    text = slurm.printed(training, job)
    assert text.count("saved run/checkpoints/last.ckpt") == 1
    assert f"job {job} {slurm.BACK}" in text
    assert f"continuing run from iteration {HERE + 1}" in text
    assert_same(straight, training)


def test_requeued_by_an_administrator(cluster, straight, training):
    job = cluster.submit(training, TWO_NODES, [*RUN, *HOLD])
    hold(training)
    cluster.ask("scontrol", "requeue", job)
    cluster.wait(job, "COMPLETED", restarts=1)
    text = slurm.printed(training, job)
    assert f"continuing run from iteration {HERE + 1}" in text
    assert slurm.BACK not in text
    assert_same(straight, training)


def test_an_array_of_seeds(cluster, config, training):
    job = cluster.submit(training, ["--array=0-1", "--time=10"], ["-c", "config.yaml"], FOLDER="runs")
    for seed in (0, 1):
        cluster.wait(f"{job}_{seed}", "COMPLETED", restarts=0)
        alone, one = training / f"alone-{seed}", training / f"seed-{seed}"
        assert run(alone, config | {"seed_everything": seed}) == [0], said(alone)
        one.mkdir()
        (one / "run").symlink_to(training / "runs" / f"seed-{seed}")
        assert_same(alone, one)
