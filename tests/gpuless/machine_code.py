# SPDX-License-Identifier: Apache-2.0
"""Compiles single CUDA kernels for several GPUs and reads their machine code, without a GPU.

    (kernel,) = compile_kernels("gates/cuda.cuh", ("gates_run_kernel<LstmGates, FastFloat>(GatesParams, ...)",), 90)

A source with explicit instantiations compiles in a second. nvcc compiles it, and the disassembler of Triton reads the
machine code.
"""

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from gpuless.emu import CSRC
from gpuless.triton_rig import TOOLS, tool

ARCHS = (80, 90, 100)

SOURCE = """#include "core/launch.h"
#include "{header}"
namespace fastds {{ namespace FASTDS_ISA {{ namespace {{
{instances}
}} }} }}
"""
# Address, predicate, name, operands.
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.a-z]*)([^;]*);")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "" for none
    name: str  # with modifiers, as LDG.E.128
    operands: str

    @property
    def registers(self) -> list[int]:
        """Numbers of the registers in the order of the operands."""
        return [int(n) for n in re.findall(r"\bR(\d+)\b", self.operands)]

    @property
    def width(self) -> int:
        """Bytes that a load or store moves for each thread."""
        return 16 if ".128" in self.name else 8 if ".64" in self.name else 2 if "16" in self.name else 4


@dataclass(frozen=True)
class MachineKernel:
    """Machine code of a kernel.

    Attributes:
        registers: registers per thread.
        stack: bytes of stack and local memory per thread, 0 without spills.
        code: all instructions.
    """

    registers: int
    stack: int
    code: tuple[Instruction, ...]

    def find(self, name: str) -> list[Instruction]:
        """Return the instructions whose name starts with `name`."""
        return [i for i in self.code if i.name.startswith(name)]

    def find_loop(self, name: str) -> tuple[Instruction, ...]:
        """Return the shortest loop that contains an instruction whose name starts with `name`."""
        addresses = [i.address for i in self.code]
        loops = []
        for end, branch in enumerate(self.code):
            target = re.search(r"0x([0-9a-f]+)", branch.operands) if branch.name == "BRA" else None
            if target is not None and int(target[1], 16) < branch.address:
                body = self.code[addresses.index(int(target[1], 16)) : end + 1]
                loops += [body] if any(i.name.startswith(name) for i in body) else []
        return min(loops, key=len)

    def count_longest_skip(self, loop: tuple[Instruction, ...]) -> int:
        """Return the number of instructions of the longest part of a loop that a branch skips."""
        lengths = [0]
        for branch in loop:
            target = re.search(r"0x([0-9a-f]+)", branch.operands) if branch.name == "BRA" else None
            if target is not None and branch.address < int(target[1], 16) <= loop[-1].address:
                lengths.append(sum(branch.address < i.address < int(target[1], 16) for i in loop))
        return max(lengths)

    def find_early_use(self) -> Instruction | None:
        """Return the first instruction before the last load from global memory that uses a loaded value, or None."""
        loaded: set[int] = set()
        last = max(k for k, i in enumerate(self.code) if i.name.startswith("LDG"))
        for i in self.code[: last + 1]:
            is_store = i.name.startswith("ST")
            if loaded & set(i.registers if is_store else i.registers[1:]):
                return i
            if i.name.startswith("LDG"):
                loaded |= set(range(i.registers[0], i.registers[0] + max(i.width // 4, 1)))
        return None


def find_nvcc() -> str:
    """Return the path of nvcc; skip the test if it is not installed."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    return nvcc


@functools.cache
def _list_archs(nvcc: str) -> str:
    return subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout


@functools.cache
def compile_kernels(header: str, instances: tuple[str, ...], arch: int) -> tuple[MachineKernel, ...]:
    """Compile kernels for one GPU and return their machine code in the order of `instances`.

    Args:
        header: file in csrc that defines the kernels.
        instances: kernels with template arguments and parameter types.
        arch: compute capability, 90 for sm_90. The test is skipped if this nvcc does not have it.
    """
    nvcc = find_nvcc()
    if f"sm_{arch}" not in _list_archs(nvcc).split():
        pytest.skip(f"this nvcc does not compile for sm_{arch}")
    assert (TOOLS / "cuobjdump").exists(), "the wheel of triton, a requirement of the tests, contains cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        lines = "\n".join(f"template __global__ void {instance};" for instance in instances)
        source.write_text(SOURCE.format(header=header, instances=lines))
        command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-DFASTDS_BUILD_CUDA=1", f"-I{CSRC}", "-cubin"]
        done = subprocess.run(list(map(str, [*command, "-o", binary, source])), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        usage, sass = tool("cuobjdump", "-res-usage", binary), tool("cuobjdump", "-sass", binary)
    resources = dict(re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", usage))
    found = {}
    for part in sass.split("Function : ")[1:]:
        name = part.split()[0]
        values = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", resources[name]))
        code = [Instruction(int(a, 16), p.strip(), n, o) for a, p, n, o in INSTRUCTION.findall(part)]
        kernel = MachineKernel(int(values["REG"]), int(values["STACK"]) + int(values["LOCAL"]), tuple(code))
        found[_demangle(name)] = kernel
    return tuple(found[instance.partition("(")[0]] for instance in instances)


def _demangle(name: str) -> str:
    """Return kernel<arguments> without namespaces."""
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)  # of binutils, as the linker
    plain = re.sub(r"fastds::|once::|\(anonymous namespace\)::|^void ", "", done.stdout.removeprefix("void "))
    return plain.partition("(")[0]
