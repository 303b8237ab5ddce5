# SPDX-License-Identifier: Apache-2.0
"""Tests that kernels do not compute with uninitialised scratch memory, even if they discard the results.

Denormal numbers in such memory would slow the kernels down. Subprocesses run with an aligned_alloc that fills memory
with signalling NaNs, which set a flag of the processor when they are used. tests/ops/test_conv3x3.py tests the shared
workspace in the same manner.
"""

import os
import subprocess
import sys

import numpy as np
import torch

FILLING = """
#include <stdint.h>
#include <stdlib.h>
void* __libc_memalign(size_t alignment, size_t size);
static volatile int filling;
void fill_allocations(int on) { filling = on; }
void* aligned_alloc(size_t alignment, size_t size) {
    uint32_t* memory = __libc_memalign(alignment, size);
    for (size_t i = 0; filling && memory && i < size / 4; i++) memory[i] = 0x7fa00000;
    return memory;
}
"""

PROGRAM = """
import ctypes, sys
import torch
from fastds import ops
from fastds.ops.core import native
from tests.support.inr_cases import KINDS, random_case

allocator, maths, invalid = ctypes.CDLL(None), ctypes.CDLL("libm.so.6"), 1
torch.set_num_threads(1)  # the flags are a thread's own
native.get_module().set_isa(sys.argv[1])

def maps(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()

def deform(batch, inputs, height, width, outputs, groups, size):
    taps = groups * size * size
    tensors = maps(batch, inputs, height, width), maps(batch, 2 * taps, height, width), maps(batch, taps, height, width)
    weight = torch.randn(outputs, inputs, size, size, requires_grad=True)
    bias = torch.randn(outputs, requires_grad=True)
    x, offset, mask = tensors
    run = lambda: ops.deform_conv2d(x, offset, weight, bias, padding=size // 2, mask=mask)
    return run, (*tensors, weight, bias)

def query(kind):
    source, trunk, options = random_case(kind, dtype=torch.float32)
    leaves = [source.requires_grad_(), *(weight.requires_grad_() for weight, _ in trunk)]
    return lambda: ops.inr_query(source, ops.GridSpec.cells((7, 9), (15, 19)), trunk, **options), leaves

def shuffle(channels, factor):
    x, bias = maps(1, channels * factor**2, 9, 11), torch.randn(channels * factor**2, requires_grad=True)
    return lambda: ops.pixel_shuffle(x, factor, bias, "relu"), (x, bias)

def attention(channels):
    leaves = [maps(1, channels, 9, 11) for _ in range(3)]
    return lambda: ops.window_attention2d(*leaves, window=5), leaves

sizes = (1, 16, 9, 11, 20, 2, 3), (2, 5, 7, 8, 3, 1, 3), (1, 64, 12, 13, 64, 8, 3), (1, 6, 5, 5, 33, 3, 1)
cases = [("deform_conv2d", s, deform(*s)) for s in sizes] + [("inr_query", kind, query(kind)) for kind in KINDS]
cases += [("pixel_shuffle", s, shuffle(*s)) for s in ((16, 2), (5, 3), (5, 5))]
cases += [("window_attention2d", c, attention(c)) for c in (12, 24)]
for name, case, (run, leaves) in cases:
    y = run()
    along = torch.ones_like(y)
    runs = [run, *(lambda leaf=leaf: torch.autograd.grad(y, leaf, along, retain_graph=True) for leaf in leaves)]
    for number, call in enumerate(runs):
        call()
        allocator.fill_allocations(1)
        maths.feclearexcept(invalid)
        call()
        if maths.fetestexcept(invalid):
            print(name, case, "forward" if number == 0 else f"gradient {number}")
        allocator.fill_allocations(0)
"""


def test_results_do_not_depend_on_scratch_contents(tmp_path, isa):
    (tmp_path / "filling.c").write_text(FILLING)
    library = tmp_path / "filling.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, tmp_path / "filling.c"], check=True)
    preloaded = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", PROGRAM, isa], env=preloaded, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_uninitialised_outputs_are_nan_in_tests():
    for made in (torch.empty(3), torch.empty_like(torch.ones(2)), torch.ones(1).new_empty(4)):
        assert made.isnan().all()
    for made in (np.empty(3), np.empty_like(np.ones(2, np.float32)), np.empty(2, complex)):
        assert np.isnan(made).all()
    assert np.empty(2, "datetime64[ns]").dtype == "datetime64[ns]" and np.empty(2, int).dtype == int
