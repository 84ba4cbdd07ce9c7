"""What a process that sweeps sets at its start, once, for all that runs in it."""

import ctypes
import sys


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
