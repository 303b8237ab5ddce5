# SPDX-License-Identifier: Apache-2.0
"""Runs CUDA kernels without a GPU: g++ builds csrc/<op>/*.cu with the emulator in csrc/emu.

A test requests the fixture `emulated` and calls the public function with CPU tensors. The call then runs the CUDA path
of the op, from the checks of the arguments to the kernels:

    def test_emulated(emulated):
        emulated("pixel_shuffle")
        torch.testing.assert_close(pixel_shuffle(x, 2), reference(x, 2))

emulated(op, ..., seed=0, banks=False) returns the Emulator. Its attribute `launches` lists the kernels that were
started. `seed` sets the order of threads and blocks: 0 is ascending, and the results of a correct kernel do not depend
on it. A kernel with a divergent barrier raises RuntimeError with the source line. With `banks` the attribute
`bank_uses` lists the accesses to shared memory and the conflicts of banks that a GPU would have (csrc/emu/banks.h).

Requirements for the sources of an op: bind.h has its CUDA functions under #if FASTDS_BUILD_CUDA. Kernels are started by
FASTDS_LAUNCH and declare shared memory by FASTDS_SHARED and FASTDS_DYNAMIC_SHARED (core/launch.h). All code is in an
anonymous namespace, as in csrc/null_op.

Tests marked `sanitized` also run in a subprocess with AddressSanitizer and UndefinedBehaviorSanitizer, see
test_sanitizers.py.
"""

import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pybind11
import pytest

from fastds.ops.core import native as _native

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulated"
LAUNCHED = "FASTDS_EMULATED_LAUNCHED"  # file to which a run under the sanitizers adds the names of kernels it started
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wno-unknown-pragmas"]
# More of "undefined" doubles the build; a left shift out of an int's range is what C++20 defines and exp() needs.
CHECKS = "address,alignment,bounds,signed-integer-overflow,integer-divide-by-zero"
SANITIZERS = [f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all"]
# Calls before each access to memory, see csrc/emu/banks.h, without splitting copies of vectors.
BANK_FLAGS = ["-fsanitize=thread", "-fno-tree-sra"]
MODULE = """#include "%(op)s/bind.h"
#include "emu/emulator.h"
#if FASTDS_EMU_BANKS
#include "emu/banks.h"
#endif
namespace py = pybind11;
PYBIND11_MODULE(%(name)s, m) {
    using fastds::emu::emulator;
    fastds::register_%(op)s(m);
    m.def("set_seed", [](uint64_t seed) { emulator.seed = seed; });
    m.def("clear_launches", [] { emulator.launches.clear(); });
#if FASTDS_EMU_BANKS
    using fastds::emu::bank_counter;
    emulator.finish_block = [](const std::string& kernel) { bank_counter.finish_block(kernel); };
    m.def("clear_bank_uses", [] { bank_counter.uses.clear(); });
    m.def("bank_uses", [] {
        py::list all;
        for (const auto& [at, use] : bank_counter.uses)
            all.append(py::make_tuple(at.first, at.second, use.writes, use.bytes, use.accesses, use.wavefronts,
                                      use.least));
        return all;
    });
#endif
    m.def("launches", [] {
        py::list all;
        for (const auto& l : emulator.launches)
            all.append(py::make_tuple(l.kernel, py::make_tuple(l.grid.x, l.grid.y, l.grid.z),
                                      py::make_tuple(l.block.x, l.block.y, l.block.z), l.shared_bytes));
        return all;
    });
}
"""


def sanitizing():
    """Return True in a process that sanitized_run started."""
    return os.environ.get("FASTDS_EMULATED_SANITIZE") == "1"


def compiler():
    return os.environ.get("CXX", "").split() or [shutil.which("g++") or "c++"]


def _run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-6000:]}")


def _pybind11(flags):
    """Compile pybind11 as a precompiled header for these flags, because the modules compile it otherwise."""
    command = [*compiler(), *FLAGS, *flags, "-x", "c++-header"]
    key = repr((command, pybind11.__version__, sys.version)).encode()
    header = BUILD / f"pybind11_{hashlib.sha256(key).hexdigest()[:16]}.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        header.write_text("#include <pybind11/pybind11.h>\n")
        fresh = header.with_suffix(f".{os.getpid()}")
        _run([*command, header, "-o", fresh])
        fresh.rename(compiled)
    return header


def _make_changes(changes):
    """Return a folder with changed copies of headers of csrc, for the include path; its name depends on their text."""
    changed = {}
    for file, old, new in changes:
        text = changed.get(file) or (CSRC / file).read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
        changed[file] = text.replace(old, new)
    together = "".join(changed.values())
    root = BUILD / f"changed_{hashlib.sha256(together.encode()).hexdigest()[:16]}"
    for file, text in changed.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


def _find_folders(folder):
    """Return the folders of csrc whose headers the files of a folder include, with that folder."""
    found, left = {}, [folder]
    while left:
        folder = left.pop()
        found[folder.name] = folder
        text = "".join(p.read_text() for p in folder.iterdir())
        left += [CSRC / name for name in set(re.findall(r'#include "(\w+)/', text)) - found.keys()]
    return sorted(found.values())


def _find_headers(source, found=None):
    """Return the names of the headers of csrc that a file includes, also by other headers."""
    found = set() if found is None else found
    for name in set(re.findall(r'#include "(\w+/[\w.]+)"', source.read_text())) - found:
        if (CSRC / name).exists():
            found.add(name)
            _find_headers(CSRC / name, found)
    return found


def _units(folder, name, banks, changes=()):
    """Return (object file, command) for the bindings and for each .cu file of a folder.

    The file names contain a hash of the sources and flags.
    """
    op = folder.name
    headers = [p for f in _find_folders(folder) for p in sorted(f.iterdir()) if p.suffix in (".h", ".cuh")]
    text = MODULE % {"op": op, "name": name}
    # The namespace differs from that of _fastds, so that pybind11 does not confuse the classes of both modules.
    common = ["-DFASTDS_EMU=1", "-DFASTDS_BUILD_AVX2=0", "-DFASTDS_BUILD_CUDA=1"]
    common += [f"-Dfastds={name[1:]}", f"-I{CSRC}", f"-I{folder.parent}"]
    common += ["-DFASTDS_EMU_BANKS=1"] if banks else []
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in headers))

    def unit(source, flags, content, first=()):
        command = [*compiler(), *FLAGS, *first, *common, *flags]
        source_digest = digest.copy()
        source_digest.update(repr((command, sys.version)).encode() + content)
        target = BUILD / f"{op}_{Path(source).name}_{source_digest.hexdigest()[:16]}.o"
        if content == text.encode():
            source = target.with_suffix(".cpp")
            source.write_text(text)
        return target, [*command, "-x", "c++", "-c", source, "-o"]

    python = ["-O0", f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    yield unit("module.cpp", [*python, "-include", _pybind11(python)], text.encode())
    changed_files = {file for file, *_ in changes}
    for path in sorted(folder.glob("*.cu")):
        changed = not changed_files.isdisjoint(_find_headers(path))
        level = "-O0" if changed or sanitizing() else "-O1"  # a changed kernel runs a few small calls
        flags = ["-g1", level, *(SANITIZERS if sanitizing() else []), *(BANK_FLAGS if banks else [])]
        first = [f"-I{_make_changes(changes)}"] if changed else []
        yield unit(path, [*flags, "-include", CSRC / "emu" / "cuda.h"], path.read_bytes(), first)


def build(op, banks=False, changes=()):
    """Build the extension module with the CUDA kernels of an op.

    Args:
        op: name of a folder in csrc, or the path of another folder.
        banks: whether the module counts conflicts of banks.
        changes: tuples (header in csrc, text, text that replaces it), such as an error that a test must find.
    """
    folder = op if isinstance(op, Path) else CSRC / op
    BUILD.mkdir(parents=True, exist_ok=True)
    name = f"_emulated_{folder.name}" + "_banks" * banks
    units = list(_units(folder, name, banks, changes))

    def compiled(unit):
        target, command = unit
        if not target.exists():
            fresh = target.with_suffix(f".{os.getpid()}")
            _run([*command, fresh])
            fresh.rename(target)  # two processes may build at once

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(compiled, units))
    digest = hashlib.sha256("".join(target.name for target, _ in units).encode()).hexdigest()[:16]
    library = BUILD / f"{name}_{digest}.so"
    if not library.exists():
        fresh = library.with_suffix(f".{os.getpid()}")
        _run([*compiler(), "-shared", *(SANITIZERS if sanitizing() else []), *(t for t, _ in units), "-o", fresh])
        fresh.rename(library)
    if changes:
        name = f"{digest}.{name}"  # pybind11 returns a loaded module of the same name
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int

    @property
    def name(self):
        """Name of the kernel without template arguments."""
        return self.kernel.strip("()").partition("<")[0]


@dataclass(frozen=True)
class BankUse:
    """Accesses of all warps to shared memory by one instruction.

    Attributes:
        kernel: name of the kernel as in Launch.
        instruction: address of the instruction in this process.
        writes: whether it writes.
        bytes: bytes of a lane.
        accesses: number of accesses of a warp.
        wavefronts: number of times at which the banks are read or written.
        least: the same without conflicts.
    """

    kernel: str
    instruction: int
    writes: bool
    bytes: int
    accesses: int
    wavefronts: int
    least: int

    @property
    def name(self):
        """Name of the kernel without template arguments."""
        return self.kernel.strip("()").partition("<")[0]


class Emulator:
    """Replaces _fastds: functions are those of the emulated ops, then those of the real module."""

    def __init__(self, modules):
        self._modules = modules

    def __getattr__(self, name):
        for module in (*self._modules, _native._module):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"{name} is neither in the emulated ops nor in _fastds")

    @property
    def launches(self):
        return [Launch(*row) for module in self._modules for row in module.launches()]

    @property
    def bank_uses(self):
        return [BankUse(*row) for module in self._modules for row in module.bank_uses()]

    def clear(self):
        for module in self._modules:
            module.clear_launches()
            if hasattr(module, "clear_bank_uses"):
                module.clear_bank_uses()

    @property
    def seed(self):
        raise AttributeError("seed can only be set")

    @seed.setter
    def seed(self, value):
        for module in self._modules:
            module.set_seed(value)


@pytest.fixture
def emulated(monkeypatch):
    """Return emulated("op", ...), which makes CPU tensors use the CUDA kernels of these ops during the test."""
    used = []

    def use(*ops, seed=0, banks=False):
        emulator = Emulator([build(op, banks) for op in ops])
        used.append(emulator)
        emulator.clear()
        emulator.seed = seed
        monkeypatch.setattr(_native, "get_module", lambda: emulator)
        monkeypatch.setattr(_native, "unsupported_reason", lambda functions, tensor: None)
        monkeypatch.setattr(_native, "runs_on_cuda", lambda tensor: True)
        monkeypatch.setattr(_native, "get_cuda_launch_arguments", lambda tensor: (0, 0))
        return emulator

    yield use
    if sanitizing() and LAUNCHED in os.environ:
        with open(os.environ[LAUNCHED], "a") as names:
            names.writelines(f"{launch.name}\n" for emulator in used for launch in emulator.launches)


def kernels_of(op):
    """Return the names of the kernels in csrc/<op>/*.cuh."""
    pattern = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("
    return {name for path in (CSRC / op).glob("*.cuh") for name in re.findall(pattern, path.read_text())}


def sanitized_run(command):
    """Run a Python command line with the sanitizers loaded and return the finished process."""
    runtime = [
        subprocess.run([*compiler(), f"-print-file-name={lib}"], capture_output=True, text=True).stdout.strip()
        for lib in ("libasan.so", "libstdc++.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "FASTDS_EMULATED_SANITIZE": "1",
    }
    command = [sys.executable, "-P", *map(str, command)]  # the installed fastds, as in this process
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@dataclass(frozen=True)
class KernelUse:
    """Resources of a kernel as reported by ptxas.

    Attributes:
        name: mangled name of the kernel.
        registers: registers per thread.
        spills: bytes of spills.
        stack: bytes of stack.
        shared: bytes of static shared memory.
    """

    name: str
    registers: int
    spills: int
    stack: int
    shared: int


def ptxas_report(op, *archs, source="cuda.cu"):
    """Compile csrc/<op>/<source> with nvcc and return what ptxas reports; skip the test without nvcc.

    Args:
        op: name of a folder in csrc.
        archs: architectures, 90 for sm_90.
        source: name of the file.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    command = [nvcc, "-std=c++17", "-O3", *codes, f"-t{len(archs)}", "-DFASTDS_BUILD_CUDA=1", f"-I{CSRC}", "-fatbin"]
    command += ["-Xptxas", "-v", "-o", os.devnull, CSRC / op / source]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = []
    for block in done.stderr.split("Compiling entry function ")[1:]:
        number = {
            key: int(match[1]) if (match := re.search(pattern, block)) else 0
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "stack": r"(\d+) bytes stack frame",
                "stores": r"(\d+) bytes spill stores",
                "loads": r"(\d+) bytes spill loads",
                "shared": r"(\d+) bytes smem",
            }.items()
        }
        name = block.split("'")[1]
        kernels.append(
            KernelUse(name, number["registers"], number["stores"] + number["loads"], number["stack"], number["shared"])
        )
    assert kernels and all(kernel.registers for kernel in kernels), done.stderr
    return kernels
