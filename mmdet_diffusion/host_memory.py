"""How the C library keeps memory that tensors on a CPU have freed."""

import ctypes
import platform

import torch

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have this process keep the memory of large tensors that it has freed, for the next ones.

    glibc returns blocks of 32 MiB and more to the system at once, which hands them out again page by page, each page
    cleared. On a CPU a training step spends a third of its time on that (docs/performance.md). A process that keeps
    them, and those that it forks, stay as large as they have been, so this is for the programs of this package;
    importing it changes nothing.

    Returns:
        bool: whether it does so now: on Linux with glibc, where torch has no CUDA device.
    """
    if platform.libc_ver()[0] != 'glibc' or torch.cuda.is_available():
        return False
    # No blocks outside the heap, and none of the heap given back. In this order: the second switches off that glibc
    # adapts these limits itself, but not what it has adapted already.
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
