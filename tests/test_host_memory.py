"""Freed memory stays with the programs of this package, and nothing changes for those that only import it."""

import platform
import subprocess
import sys

import pytest
import torch

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
# 64 MiB, 16384 pages of 4 KiB, written 16 times. How many of them does the system hand out the last time? (Not the
# first times: what else is allocated meanwhile may lie in a block that was freed, five times in a row as seen.)
PROGRAM = """
import resource
import mmdet_diffusion
from mmdet_diffusion.host_memory import keep_freed_memory
import torch
{call}
def faults():
    torch.zeros(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(14):
    faults()
before = faults()
print(faults() - before)
"""


def last_time(call):
    done = subprocess.run([sys.executable, '-c', PROGRAM.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@GLIBC
@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU computes')
def test_freed_memory_is_used_again():
    assert last_time('assert keep_freed_memory()') < 100


@GLIBC
def test_importing_the_package_changes_nothing():
    assert last_time('') > 1000  # fewer than 16384 where pages are larger


@pytest.mark.parametrize(('library', 'has_gpu'), [('musl', False), ('glibc', True)])
def test_elsewhere_it_does_nothing(monkeypatch, library, has_gpu):
    from mmdet_diffusion import host_memory
    monkeypatch.setattr(host_memory.platform, 'libc_ver', lambda: (library, ''))
    monkeypatch.setattr(host_memory.torch.cuda, 'is_available', lambda: has_gpu)
    monkeypatch.setattr(host_memory.ctypes, 'CDLL', None)  # calling it would fail
    assert not host_memory.keep_freed_memory()
