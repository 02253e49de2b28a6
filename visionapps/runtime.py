"""Settings of the process and the processor that make the same arithmetic cheaper."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

# glibc's names for mallopt, from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@cache
def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks instead of returning them to the kernel; call it before the first tensor.

    Every activation above 32 MB is otherwise mapped and faulted in anew: on the CPU that costs up to half of a
    network's time at batch 4. One arena, so that worker threads share the same blocks.

    Returns:
        Whether the C library took the settings (Linux with glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    settings = ((_M_MMAP_THRESHOLD, largest), (_M_TRIM_THRESHOLD, largest), (_M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)


@cache
def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX512-BF16, AMX); elsewhere bf16 is slower than fp32."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = next((line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


@cache
def total_memory() -> int:
    """Bytes of memory that this machine has; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 0


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
