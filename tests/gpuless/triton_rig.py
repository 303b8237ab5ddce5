# SPDX-License-Identifier: Apache-2.0
"""Runs Triton kernels in the interpreter and compiles them for GPUs, on a machine without a GPU.

compiled_launches calls a launcher with CPU or meta tensors and compiles the kernels that it launches, with the types,
constants and alignments of the call, without running them:

    kernels = compiled_launches(90, lambda: launch_forward(x, weight, y))
    for kernel in kernels:
        kernel.check(registers=255, shared=160 << 10)

The sizes and strides must be those of a real call, because divisibility by 16 is compiled in.

A test module with `pytestmark = pytest.mark.interpreted` runs in a subprocess with TRITON_INTERPRET=1 on CPU tensors.
In the interpreter, tl.dot of bfloat16 operands is wrong, so test float32 and float16, or kernels that convert bfloat16
first. guard() surrounds a tensor with NaN to detect reads out of bounds, and untouched() detects writes. The
interpreter is slow: keep problems tiny.
"""

import re
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from tests.support import forked

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHS = (80, 90, 100)
TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}  # machine instructions of bfloat16 products


def tool(name, *arguments):
    """Return the output of a binary utility that the triton wheel contains."""
    run = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return run.stdout


@dataclass(frozen=True)
class Compiled:
    """One kernel of one launch as compiled for one GPU."""

    name: str
    arch: int
    ttir: str
    ptx: str
    cubin: bytes
    shared: int  # bytes per block, dynamic
    warps: int
    signature: dict

    def usage(self):
        """Read the registers, the stack bytes and the local bytes per thread from the machine code."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            text = tool("cuobjdump", "-res-usage", file.name)
        return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}

    @property
    def sass(self):
        """Disassembled machine code."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            return tool("nvdisasm", "-c", file.name)

    @property
    def counts(self):
        """Count machine instructions by full name, such as "LDG.E.128"."""
        found = {}
        for name in re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]+)", self.sass, re.M):
            found[name] = found.get(name, 0) + 1
        return found

    def lost_addresses(self):
        """Find 64-bit sums whose two halves come from the same register.

        The assembler of CUDA 12.8, which Triton 3.6 uses, makes them from a base address that two products share.
        inr_query then gave wrong results on an H200.
        """
        lines = (re.sub(r"^\s*/\*[0-9a-f]+\*/\s+", "", s) for s in self.sass.splitlines() if re.match(r"\s*/\*", s))
        lines, found = list(lines), []
        for i, line in enumerate(lines):
            low = re.match(r"UIADD3(?:\.\w+)? UR\d+, UP\d, (UR\d+), 0x\w+, URZ", line)
            for k, later in enumerate(lines[i + 1 : i + 12] if low else ()):
                high = re.match(r"UIADD3\.X UR\d+, (UR\d+),", later)
                if high is None:
                    continue
                between = lines[i : i + 1 + k]
                if high[1] == low[1] and not any(re.match(rf"[A-Z0-9.]+ {low[1]},", z) for z in between):
                    found.append((line, later))
                break
        return found

    def check(self, registers=255, shared=160 << 10, stack=0):
        """Fail on spills, local memory, float64 arguments, and more registers or shared memory than the limits."""
        where, usage = f"{self.name} for sm_{self.arch}", self.usage()
        assert not self.lost_addresses(), f"{where}: an assembler lost a part of an address: {self.lost_addresses()}"
        spilled = usage["STACK"] > stack or usage["LOCAL"]
        assert not spilled, f"{where} spills or keeps arrays in local memory: {usage}"
        assert usage["REG"] <= registers, f"{where} takes {usage['REG']} registers, limit {registers}"
        assert self.shared <= shared, f"{where} takes {self.shared} bytes of shared memory, limit {shared}"
        wide = [name for name, kind in self.signature.items() if "fp64" in str(kind)]
        assert not wide, f"{where}: arguments {', '.join(wide)} arrive as float64"
        line = next((line.strip() for line in self.ttir.splitlines() if re.search(r"\bf64\b", line)), None)
        assert line is None, f"{where} computes in float64: {line}"


class _NoGPU:
    """Replaces the driver of Triton: has a target to compile for and no device to launch on."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return self.arch  # part of the key of Triton's compiled kernels

    def get_current_stream(self, device):
        return 0


def compiled_launches(arch, launcher):
    """Compile the kernels that launcher() launches, without running them.

    Args:
        arch: compute capability, 10 * major + minor.
        launcher: function without arguments that calls kernels as kernel[grid](...) on CPU or meta tensors.

    Returns:
        A list of Compiled in the order of the launches, without repetitions.
    """
    run, active, found = JITFunction.run, driver._active, {}

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        if kernel.hash not in found:
            found[kernel.hash] = Compiled(
                kernel.name, arch, kernel.asm["ttir"], kernel.asm["ptx"], kernel.asm["cubin"], kernel.metadata.shared,
                kernel.metadata.num_warps, dict(kernel.src.signature),
            )  # fmt: skip
        return kernel

    driver._active, JITFunction.run = _NoGPU(arch), compile_only
    try:
        launcher()
    finally:
        driver._active, JITFunction.run = active, run
    return list(found.values())


def guard(tensor, width=4096):
    """Copy a tensor with its strides into memory that is filled with NaN, or with the largest integer."""
    filler = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    memory = torch.full((extent + 2 * width,), filler, dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), width).copy_(tensor)


def untouched(guarded, width=4096):
    """Return True if the memory around the elements of a guarded tensor still holds the filler."""
    memory = guarded.as_strided((guarded.untyped_storage().nbytes() // guarded.element_size(),), (1,), 0).clone()
    filler = memory[0].clone()
    memory.as_strided(guarded.shape, guarded.stride(), width).fill_(filler)
    same = memory.isnan() if memory.is_floating_point() else memory == filler
    return bool(same.all())


# Imports that take seconds: opcheck imports torch._dynamo, and FakeTensorMode imports 900 modules.
_IMPORTS = """
import fastds.models, pytest, torch._dynamo, torch._subclasses, triton
with torch._subclasses.FakeTensorMode():
    pass
"""
# The root comes last on sys.path: test modules outside it find tests.support, and fastds stays the installed package.
_PYTEST = """
import os, sys, pytest
root = sys.argv.pop(1)
os.chdir(root)
sys.path.append(root)
sys.exit(pytest.main(sys.argv[1:]))
"""


def interpret(root, path, names):
    """Run tests of one module in a subprocess under the interpreter.

    Returns:
        A dictionary from the name of a test to (outcome, text). The outcome is "passed", "failure", "error" or
            "skipped". The key "" has the reason why tests are missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        selected = [f"{path}::{name}" for name in names]
        options = ["-q", "-o", "addopts=", "--import-mode=importlib", f"--junitxml={report}"]
        options += ["-c", f"{root}/pyproject.toml", f"--rootdir={root}", "-p", "no:cacheprovider"]
        run = forked.run(
            _PYTEST, root, *options, *selected, imports=_IMPORTS, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""
        )
        outcomes = {"": f"no report; pytest printed:\n{(run.stdout + run.stderr)[-4000:]}"}
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):
                part = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
                text = "" if part is None else f"{part.get('message', '')}\n{part.text or ''}"
                outcomes[case.get("name")] = ("passed" if part is None else part.tag, text.strip())
        return outcomes
