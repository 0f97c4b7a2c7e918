"""How much memory a lane takes, at its peak, on top of what was there when it began."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Seconds

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Watches lanes: on a GPU what torch allocates there, on Linux what the process has in memory.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.peaks: dict[str, int] = {}

    def watch(self, name: str, lane: Callable[[], Seconds]) -> Callable[[], Seconds]:
        """Return the lane; each time it runs, its peak is noted, and the largest is kept."""

        def measure() -> Seconds:
            before = self._begin()
            seconds = lane()
            peak = self._peak()
            if before is not None and peak is not None:
                self.peaks[name] = max(self.peaks.get(name, 0), peak - before)
            return seconds

        return measure

    def facts(self) -> dict[str, Any]:
        """Return the peaks, ready to print."""
        return {
            f"peak memory above the weights, {name}": f"{peak / 2**20:,.0f} MiB" for name, peak in self.peaks.items()
        }

    def _begin(self) -> int | None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        try:
            # what the allocator keeps for later would hide what the lane takes
            ctypes.CDLL(None).malloc_trim(0)
            CLEAR.write_text("5")  # the peak starts anew
        except (OSError, AttributeError):
            return None
        return _status("VmRSS")

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else _status("VmHWM")


def _status(key: str) -> int | None:
    """Read one of the sizes that Linux tells of this process, in bytes."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
