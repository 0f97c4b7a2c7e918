"""What scripts/cluster/slurm.sbatch does with any program: its exit codes, and when a job goes back into the queue."""

import signal

import pytest
import slurm
from slurm import BACK, printed

pytestmark = pytest.mark.cluster

TERM, USR1 = 128 + int(signal.SIGTERM), 128 + int(signal.SIGUSR1)
HEAD = f'trap "exit {TERM}" TERM; trap "exit {USR1}" USR1; echo process $SLURM_PROCID: $*'
ENDS_WHEN_TOLD = '[ -n "$SLURM_RESTART_COUNT" ] && exit; sleep 60 & wait'


@pytest.fixture
def pretended(cluster, tmp_path):
    """Submit a program that only does what the test says, in bash."""

    def submitted(does, *options, **environment):
        program = tmp_path / "program"
        program.write_text(f"#!/usr/bin/env bash\n{HEAD}\n{does}\n")
        program.chmod(0o755)
        return cluster.submit(tmp_path, list(options), ["-c", "x"], LIGHTNING_GEN=str(program), **environment)

    return submitted


def test_it_ends_as_its_worst_process(cluster, pretended, tmp_path):
    job = pretended('[ "$SLURM_PROCID" = 0 ] || exit 3', "--nodes=2")
    assert cluster.wait(job, "FAILED")["ExitCode"] == "3:0"
    arguments = "fit -c x --trainer.num_nodes=2 --trainer.devices=1"
    for rank in (0, 1):
        assert f"process {rank}: {arguments}\n" in printed(tmp_path, job)


def test_a_lost_process_ends_the_others(cluster, pretended):
    job = pretended('[ "$SLURM_PROCID" = 0 ] || kill -KILL $$; sleep 300 & wait', "--nodes=2", PATIENCE="1")
    assert cluster.wait(job, "FAILED", restarts=0, patience=30)["ExitCode"] == "137:0"


def test_it_is_not_put_back_for_ever(cluster, pretended, tmp_path):
    job = pretended(f"exit {USR1}", MOST_RESTARTS="1")
    assert cluster.wait(job, "FAILED", restarts=1)["ExitCode"] == f"{USR1}:0"
    assert printed(tmp_path, job).count("process 0:") == 2
    assert f"job {job} has been started anew 1 times and is not again" in printed(tmp_path, job)


def test_it_makes_way_for_another_job_and_continues(cluster, pretended, tmp_path):
    """Its processes are told to end, and have ended before Slurm would have ended the job."""
    job = pretended(ENDS_WHEN_TOLD, "--nodes=2")
    slurm.wait(lambda: "process 1" in printed(tmp_path, job), "the job")
    urgent = cluster.ask("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true")
    cluster.wait(urgent, "COMPLETED")
    cluster.wait(job, "COMPLETED", restarts=1)


def test_cancelled_it_is_not_put_back(cluster, pretended, tmp_path):
    job = pretended(ENDS_WHEN_TOLD, "--nodes=2")
    slurm.wait(lambda: "process 1" in printed(tmp_path, job), "the job")
    cluster.ask("scancel", job)
    cluster.wait(job, "CANCELLED", restarts=0)
    slurm.wait(lambda: not cluster.ask("squeue", "--noheader"), "the job to end", 60)
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert f"job {job} was stopped from outside" in printed(tmp_path, job)


def test_one_of_an_array_goes_back_alone(cluster, pretended, tmp_path):
    """The one whose number is that of the array, which would stand for all of it."""
    job = pretended(ENDS_WHEN_TOLD, "--array=0-1", FOLDER="runs")
    for seed in (0, 1):
        slurm.wait(lambda seed=seed: "process 0" in printed(tmp_path, f"{job}_{seed}"), "the jobs")
    numbers = [cluster.ask("squeue", "--noheader", "--format=%A", f"--jobs={job}_{seed}") for seed in (0, 1)]
    warned = numbers.index(job)
    cluster.ask("scancel", "--signal=USR1", f"{job}_{warned}")
    cluster.wait(f"{job}_{warned}", "COMPLETED", restarts=1)
    assert cluster.job(f"{job}_{1 - warned}")["Restarts"] == "0"
    cluster.ask("scancel", f"{job}_{1 - warned}")
    assert f"job {job}_{warned} {BACK}" in printed(tmp_path, f"{job}_{warned}")
    assert f"--seed_everything={warned} --trainer.default_root_dir=runs/seed-{warned}" in printed(
        tmp_path, f"{job}_{warned}"
    )


def test_a_missing_environment_is_named(cluster, tmp_path):
    job = cluster.submit(tmp_path, [], ["-c", "x"], LIGHTNING_GEN="no-such-program")
    assert cluster.wait(job, "FAILED")["ExitCode"] == "127:0"
    assert "there is no 'no-such-program'" in printed(tmp_path, job)


def test_an_array_has_a_folder_that_the_same_command_finds_again(cluster, tmp_path):
    job = cluster.submit(tmp_path, ["--array=7"], ["-c", "x"], LIGHTNING_GEN="true")
    cluster.wait(f"{job}_7", "FAILED")
    assert "FOLDER=runs/NAME" in printed(tmp_path, f"{job}_7")
