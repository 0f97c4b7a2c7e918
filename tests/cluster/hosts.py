"""Two hosts on this machine: network namespaces with a cable between them, names of their own, and nothing else."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "cluster" / "torchrun.sh"
NAMES = ("machine-a", "machine-b")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
PORT = 29500
ETC = Path("/etc/netns")


def missing() -> str | None:
    """Say what this machine lacks, or nothing."""
    lacking = [name for name in ("ip", "unshare", "setpriv", "hostname") if shutil.which(name) is None]
    if os.geteuid() != 0 or lacking:
        return f"hosts are made by root{f', with {lacking}' if lacking else ''}"
    trial = f"lightning-gen-{os.getpid()}-trial"
    if subprocess.run(["ip", "netns", "add", trial], capture_output=True).returncode:
        return "this machine gives no network namespaces"
    _ip("netns", "delete", trial)
    return None


class Hosts:
    """Two hosts.

    Args:
        folder: for what their processes print.
        known: whether each can find the other by its name; else a host knows its own alone, as one of this machine.
    """

    def __init__(self, folder: Path, known: bool = True) -> None:
        self.folder, self.known = folder, known
        self.spaces = [f"lightning-gen-{os.getpid()}-{name}" for name in NAMES]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        try:
            self._make()
        except BaseException:
            self.end_all()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()

    def _make(self) -> None:
        a, b = self.spaces
        for space, name in zip(self.spaces, NAMES, strict=True):
            # what `ip netns exec` puts over /etc
            etc = ETC / space
            etc.mkdir(parents=True)
            others = zip(ADDRESSES, NAMES, strict=True) if self.known else [("127.0.1.1", name)]
            hosts = [("127.0.0.1", "localhost"), *others]
            (etc / "hosts").write_text("".join(f"{address} {known}\n" for address, known in hosts))
            _ip("netns", "add", space)
        _ip("link", "add", "cable", "netns", a, "type", "veth", "peer", "name", "cable", "netns", b)
        for space, address in zip(self.spaces, ADDRESSES, strict=True):
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "cable")
            _ip("-n", space, "link", "set", "cable", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def end_all(self) -> None:
        """End what runs on the hosts, and the hosts."""
        for process in self.processes:
            process.kill()
            process.wait()
        for space in self.spaces:
            left = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
            for process_id in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process_id), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)
            shutil.rmtree(ETC / space, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may have theirs there
            ETC.rmdir()

    def torchrun(self, arguments: list[str], **environment: str) -> None:
        """Start the script on both, one process on each; `{address}` in the environment is the host's own."""
        for space, name, address in zip(self.spaces, NAMES, ADDRESSES, strict=True):
            own = {key: value.format(address=address) for key, value in environment.items()}
            # ended with the test, however that ends
            command = ["ip", "netns", "exec", space, "unshare", "--uts", "setpriv", "--pdeathsig", "TERM", "sh", "-c"]
            command += ['hostname "$0" && exec "$@"', name, "bash", str(SCRIPT), *arguments]
            with (self.folder / f"said-{name}.txt").open("ab") as out:
                env = os.environ | {"NODES": "2", "PROCESSES": "1"} | own
                self.processes.append(subprocess.Popen(command, cwd=self.folder, env=env, stdout=out, stderr=out))

    def end(self, patience: float = 240) -> list[int]:
        """Wait for both; return their exit codes."""
        return [process.wait(patience) for process in self.processes]

    def said(self) -> str:
        """Return what was printed on both."""
        return "\n".join((self.folder / f"said-{name}.txt").read_text() for name in NAMES)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
