"""What this process asks of malloc, OpenMP, oneDNN and tqdm: as fast by hand as under make.

``sami_pipeline`` applies it when it is imported, whoever imports it: kedro, a worker, a notebook, a
script. It must come before torch, whose OpenMP reads the environment once, when it is loaded. What
a user has set stays as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_INT = 2**31 - 1
# Older versions of glibc refuse more than 32 MiB.
_MMAP_THRESHOLDS = (2**30, 2**25)
# oneDNN's own, and torch's in front of it; each is read once, at the first product.
_KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KERNELS_KEPT = 256
_SPINS = "3000"
_OWN_THREADS = "SAMI_PIPELINE_SET_OMP_NUM_THREADS"


def apply() -> None:
    """Set what is not set yet, for this process and those that it starts."""
    _wait_shortly(os.environ)
    _limit_threads(os.environ)
    _limit_kernels(os.environ)
    _quiet_bars(os.environ)
    keep_freed_memory(os.environ)


def _wait_shortly(environment: MutableMapping[str, str]) -> None:
    """Let a thread that waits look for work for some 80 microseconds, then give its core away.

    A training step has tens of thousands of short operations. A thread that sleeps between them is
    woken late: on two idle cores a step then took 1.3 times as long. A thread that looks for long
    keeps its core from the other one where a neighbour is busy.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)  # GNU's, which torch brings on Linux
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quiet_bars(environment: MutableMapping[str, str]) -> None:
    """Show progress bars, of libraries too, only of what takes a while; tqdm reads this once."""
    environment.setdefault("TQDM_DELAY", "3")  # seconds; loading a model is over before
    if "ipykernel" in sys.modules:  # a notebook would keep every state of a bar
        environment.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", message="IProgress not found")
    environment.setdefault("TQDM_LEAVE", "")  # the line after a bar says how it ended
    if sys.stderr is None or not sys.stderr.isatty():
        environment.setdefault("TQDM_MININTERVAL", "30")  # a file of a log keeps every state


def keep_freed_memory(environment: MutableMapping[str, str]) -> bool:
    """Let glibc keep large blocks; it gives them back at once and faults them in at every step.

    Args:
        environment: a user's own settings of malloc in it win.

    Returns:
        whether malloc was told so; False elsewhere than on glibc.
    """
    theirs = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    tuned = "glibc.malloc" in environment.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or tuned or any(map(environment.get, theirs)):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (AttributeError: another C library)
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
    return bool(kept) and any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP_THRESHOLDS)


def give_back_freed_memory() -> None:
    """Give memory back that malloc has kept for later: between stages, when much of it is free.

    Threads of malloc's own pools each keep what they once used, and a run of many stages adds them
    up.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def peak_memory_bytes() -> int | None:
    """Return the most resident memory of this process so far, or of the largest it started."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return unit * max(resource.getrusage(one).ru_maxrss for one in who)


def _limit_threads(environment: MutableMapping[str, str]) -> None:
    """Start no more threads than a container may use cores; torch counts the machine's."""
    cores = os.cpu_count() or 1
    usable = usable_cores()
    if usable < cores and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = environment[_OWN_THREADS] = str(usable)


def _limit_kernels(environment: MutableMapping[str, str]) -> None:
    """Keep the kernels of fewer shapes of 16-bit products on a CPU.

    Every shape has its own, of about 0.6 MB, and texts have all lengths. The 1024 that are kept by
    default would take more than half a gigabyte, in small pieces between blocks that training wants
    whole. A training step has about a hundred.
    """
    for name in _KERNEL_CACHES:
        environment.setdefault(name, str(_KERNELS_KEPT))


def threads_are_the_users(environment: MutableMapping[str, str]) -> bool:
    """Return whether a user has said how many threads a process has."""
    threads = environment.get("OMP_NUM_THREADS")
    return threads is not None and threads != environment.get(_OWN_THREADS)


def usable_cores(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may keep busy: by its affinity and its container.

    Args:
        control_group: the folder of the process's own control group, version 2.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (control_group / "cpu.max").read_text("utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit ("max"), or no such control group
        return cores
