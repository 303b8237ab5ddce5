# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.memory.set_malloc_retention in a separate process: page faults and resident memory."""

import os
import subprocess
import sys
import threading

import pytest

import fastds
from fastds import memory

glibc = pytest.mark.skipif(memory.get_unsupported_reason() is not None, reason=str(memory.get_unsupported_reason()))

FAULTS = """
import resource, sys, torch, fastds
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 << 20)  # 48 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
faults()
default, start = faults(), resident()
fastds.memory.set_malloc_retention()
retained = min([faults() for _ in range(8)][4:])
held = resident()
fastds.memory.return_freed_memory()
between, again = resident(), faults()
fastds.memory.set_malloc_retention(False)
returned = resident()
print(default, retained, again, faults(), start, held, between, returned)
"""


@glibc
def test_malloc_retention_reuses_and_releases_memory():
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    default, retained, again, after, start, held, between, returned = map(int, out.split())
    pages = (48 << 20) // os.sysconf("SC_PAGE_SIZE")
    least = pages - 2  # the first and the last page may be those of neighbours, which are there
    assert default >= least and after >= least, "the default does not give memory back: nothing to test"
    assert retained < pages // 100
    assert 40 <= held - start <= 4 * 48 and returned - start <= 8
    assert between - start <= 8 and again >= pages // 2, "return_freed_memory has not returned it"


@glibc
def test_other_threads_are_refused():
    errors = []

    def run():
        try:
            fastds.memory.set_malloc_retention()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(errors) == 1 and "main thread" in errors[0]


def test_other_libraries_are_refused(monkeypatch):
    monkeypatch.setattr(memory.os, "confstr", lambda name: "musl 1.2", raising=False)
    with pytest.raises(RuntimeError, match="not glibc"):
        fastds.memory.set_malloc_retention()
    monkeypatch.delattr(memory.os, "confstr")
    with pytest.raises(RuntimeError, match="not glibc"):
        fastds.memory.set_malloc_retention()


def test_other_allocator_is_detected(monkeypatch):
    done = []

    class Library:
        def mallopt(self, name, value):
            done.append((name, value))

        def malloc_trim(self, pad):
            done.append("trimmed")

        def malloc(self, size):
            return 2**47 - 1

        def free(self, block):
            pass

        def sbrk(self, change):
            return 2**46

    monkeypatch.setattr(memory, "get_unsupported_reason", lambda: None)
    monkeypatch.setattr(memory, "_load_c_library", Library)
    with pytest.raises(RuntimeError, match="another allocator"):
        fastds.memory.set_malloc_retention()
    assert done[0] == (-4, 0) and (-4, 65536) in done and done[-1] == "trimmed"
