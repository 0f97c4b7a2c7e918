"""A Slurm of two nodes on this machine, in a folder of its own: started, used and ended by a test."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster" / "slurm.sbatch"
BACK = "is put back into the queue, and continues"
DAEMONS = ("munged", "slurmctld", "slurmd")

# processes meet at a port that is made of the job's number: of two Slurms on one machine, each has its own;
# a requeued job waits as long as its credentials may live, 2 minutes unless told otherwise
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
FirstJobId={job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={n0} CPUs=4 RealMemory=1000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=1000
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=UNLIMITED State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[0-1] MaxTime=UNLIMITED State=UP PriorityTier=2
"""


def missing() -> str | None:
    """Say what this machine lacks, or nothing."""
    if os.geteuid() != 0:
        return "a Slurm with nodes is started by root"
    lacking = [name for name in (*DAEMONS, "sbatch", "srun", "setpriv") if shutil.which(name) is None]
    return f"no {', '.join(lacking)} (bash scripts/cluster/install_test_slurm.sh)" if lacking else None


class Slurm:
    """Two nodes, n0 and n1.

    Args:
        folder: of its configuration, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.configuration = folder, folder / "slurm.conf"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PL_"))}
        self.environment = kept | {"SLURM_CONF": str(self.configuration)}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons, and wait for the nodes."""
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        ports = dict(zip(("controller", "n0", "n1"), free_ports(3), strict=True))
        host = socket.gethostname().partition(".")[0]
        job = os.getpid() % 9000 + 1
        self.configuration.write_text(CONFIGURATION.format(folder=self.folder, host=host, job=job, **ports))
        own = {f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")}
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={key}", *own
        )
        wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D", "-f", str(self.configuration))
        for node in ("n0", "n1"):
            self._daemon("slurmd", "-D", "-N", node, "-f", str(self.configuration))
        wait(lambda: self.ask("sinfo", "--noheader", "--format=%T %D", check=False) == "idle 2", "the nodes", 60)

    def _daemon(self, *command: str) -> None:
        # ended with the test, however that ends
        with (self.folder / f"{command[0]}.out").open("ab") as out:
            bound = ["setpriv", "--pdeathsig", "TERM", *command]
            self.daemons.append(subprocess.Popen(bound, env=self.environment, stdout=out, stderr=out))

    def stop(self) -> None:
        """End the jobs, then the daemons, then what they have left."""
        try:
            self.ask("scancel", "--user=root", check=False)
            wait(lambda: not self.ask("squeue", "--noheader", check=False), "the jobs to end", 60)
        finally:
            for daemon in self.daemons[::-1]:
                daemon.terminate()
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            for process in started_with(f"SLURM_CONF={self.configuration}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def ask(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, folder: Path, options: list[str], arguments: list[str], **environment: str) -> str:
        """Submit the script; return the job's number."""
        command = ["sbatch", "--parsable", "--gpus-per-node=0", f"--chdir={folder}", *options, str(SCRIPT), *arguments]
        env = self.environment | environment
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of a job."""
        text = self.ask("scontrol", "--oneliner", "show", "job", number)
        return dict(field.partition("=")[::2] for field in text.split() if "=" in field)

    def wait(self, number: str, state: str, restarts: int | None = None, patience: float = 240) -> dict[str, str]:
        """Wait until a job is in a state, after so many restarts; return its fields."""

        def reached() -> bool:
            seen.update(self.job(number))
            return seen["JobState"] == state and restarts in (None, int(seen["Restarts"]))

        seen: dict[str, str] = {}
        try:
            wait(reached, f"job {number} to be {state}", patience)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen}\n{self.log()}") from None
        return seen

    def log(self) -> str:
        """Return the end of what the controller wrote."""
        return "\n".join((self.folder / "slurmctld.log").read_text().splitlines()[-30:])


def printed(folder: Path, number: str) -> str:
    """Return what a job has printed."""
    file = folder / f"slurm-{number}.out"
    return file.read_text() if file.exists() else ""


def wait(reached: Callable[[], bool], what: str, patience: float = 30) -> None:
    """Wait until something is so."""
    until = time.monotonic() + patience
    while not reached():
        assert time.monotonic() < until, f"waited {patience} s for {what}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def started_with(variable: str) -> list[int]:
    """Return the processes that have been started with an environment variable, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
