"""What a process that sweeps sets at its start, once, for all that runs in it; and the memory that it holds."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next tensor: fresh pages for each cost up to half of a sweep's time.

    It holds for the whole process. Elsewhere than on Linux with glibc it does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets pages of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: none go back to the system


def resident_bytes() -> int | None:
    """The memory that this process holds now; on macOS the most it has held; None where neither is known."""
    with suppress(OSError, ImportError):
        import resource

        if sys.platform == "darwin":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return None
