# SPDX-License-Identifier: Apache-2.0
"""Build the native module _fastds: find the compilers, write build.ninja and run ninja, without importing torch.

Rebuild in a checkout: python setup.py -q build_ext --inplace

Environment variables:
    CXX: C++ compiler.
    FASTDS_CUDA: auto (build CUDA kernels if nvcc is found), 0 or 1 (fail without nvcc).
    CUDA_HOME: folder of the CUDA toolkit; default: search PATH and /usr/local/cuda.
    FASTDS_CUDA_ARCHS: compute capabilities such as "80 90"; PTX is added.
    FASTDS_DEBUG: 0, 1, asan or tsan.
    MAX_JOBS: number of parallel compilations.
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# No fast-math flags: they change denormals for the whole process and break the NaN rules.
HOST_FLAGS = ["-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wall"]
HOST_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
DEBUG_FLAGS = {
    "0": ["-O3", "-DNDEBUG"],
    "1": ["-O0", "-g"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address", "-fsanitize=undefined"]
    + ["-fno-sanitize-recover=undefined"],
    "tsan": ["-O1", "-g", "-fsanitize=thread", "-DFASTDS_TSAN=1"],
}
# csrc/core/isa.cpp tests the processor for the same features. The AVX-512 objects need BF16; AVX-512 processors without
# it (Skylake-X to Ice Lake) run the AVX2 objects.
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"],
}
# Sources with code for newer GPUs only, such as vector atomics of sm_90; they need PTX for each architecture.
PTX_PER_ARCH = {"deform_conv2d/cuda_backward.cu", "deform_conv2d/cuda_scatter.cu"}
# Ops for which baseline objects are built only if there are no vector objects; otherwise "auto" never selects baseline,
# and forcing it is an error.
VECTOR_OPS = {"conv1x1", "conv3x3", "conv_rnn"}
# Ops that are slower with -O2 than with -O3.
FULLY_OPTIMISED = {"conv3x3", "deform_conv2d", "inr_query"}
INSTALL_COMPILER = (
    "install a C++17 compiler with OpenMP (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
    "conda: conda install cxx-compiler) and run the same command again"
)


def stop(sentence):
    sys.exit(f"\nfastds: {sentence}.\n")


def probe(compiler, flags, code):
    """None when `code` compiles and links into a shared library, else the compiler's words."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(code)
        command = [*compiler, "-std=c++17", *flags, "-shared", str(source), "-o", str(Path(folder, "probe.so"))]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        return None if run.returncode == 0 else run.stderr.strip() or f"exit status {run.returncode}"


def find_cxx():
    """The C++ compiler as a command list: CXX, else the first of g++, c++, clang++; it must build an OpenMP program."""
    named = shlex.split(os.environ.get("CXX", ""))
    names = [named[0]] if named else ["g++", "c++", "clang++"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        stop(f"no C++ compiler found (looked for {', '.join(names)}); {INSTALL_COMPILER}")
    words = probe([path, *named[1:]], HOST_FLAGS, "#include <omp.h>\nint f() { return omp_get_max_threads(); }\n")
    if words is not None:
        stop(f"the C++ compiler {path} cannot build a two-line OpenMP program ({words[-500:]}); {INSTALL_COMPILER}")
    return [path, *named[1:]]


def host_compiler(cxx):
    """Split a C++ compiler command into the compiler and its options for nvcc, and drop a launcher such as ccache.

    For "ccache g++ -pthread" the result is the path of g++ and ["-pthread"].
    """
    options = next((k for k, word in enumerate(cxx) if word.startswith("-")), len(cxx))
    compiler = cxx[max(options - 1, 0)]
    return shutil.which(compiler) or compiler, cxx[options:]


def find_isas(cxx):
    """Return the instruction sets that the (possibly cross) compiler supports; on 64-bit Arm the baseline is NEON."""
    target = subprocess.run([*cxx, "-dumpmachine"], capture_output=True, text=True).stdout
    if not target.startswith("x86_64"):
        return ["baseline"]
    known = ["baseline"]
    for isa in ("avx2", "avx512"):
        if probe(cxx, [*HOST_FLAGS, *ISA_FLAGS[isa]], "int f() { return 0; }\n") is not None:
            print(f"fastds: {cxx[0]} does not know {' '.join(ISA_FLAGS[isa])}; building without {isa}")
            break
        known.append(isa)
    return known


def find_nvcc():
    """Return the path of nvcc or None; a GPU is not needed."""
    wish = os.environ.get("FASTDS_CUDA", "auto")
    if wish not in {"auto", "0", "1"}:
        stop(f"FASTDS_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    places = [os.path.join(home, "bin")] if home else [None, "/usr/local/cuda/bin"]
    nvcc = next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)
    if nvcc is None and wish == "1":
        place = f"CUDA_HOME={home}" if home else "PATH and /usr/local/cuda"
        stop(
            f"FASTDS_CUDA=1, but there is no nvcc in {place}; install the CUDA toolkit, set CUDA_HOME or FASTDS_CUDA=0"
        )
    return nvcc


def find_cuda_archs(nvcc):
    """Return the compute capabilities: FASTDS_CUDA_ARCHS, by default 80 and 90.

    Newer GPUs compile the PTX at first use. Machine code for them would more than double the compilation time.
    """
    wish = re.split(r"[ ,;]+", os.environ.get("FASTDS_CUDA_ARCHS", "").replace(".", "").strip())
    if wish != [""]:
        for arch in wish:
            if not re.fullmatch(r"\d{2,3}[af]?", arch):
                stop(f"FASTDS_CUDA_ARCHS must list numbers such as '80 90', got {arch!r}")
        return wish
    run = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    numbers = sorted({int(n) for n in re.findall(r"sm_(\d+)\b", run.stdout)})
    archs = [str(n) for n in (80, 90) if n in numbers]
    if not archs:
        stop(f"{nvcc} --list-gpu-code names neither sm_80 nor sm_90; set FASTDS_CUDA_ARCHS or FASTDS_CUDA=0")
    return archs


class Ninja:
    """Writer of build.ninja: every .cpp once, csrc/*/cpu*.cpp once per instruction set, every .cu by nvcc, one link.

    All bindings are in one object, csrc/bind.cpp, so that pybind11 is parsed once; it includes ops.h, which lists each
    csrc/<op>/bind.h.
    """

    def __init__(self, folder, target, include_dirs):
        self.folder, self.target = folder, target
        self.debug = os.environ.get("FASTDS_DEBUG") or "0"
        if self.debug not in DEBUG_FLAGS:
            stop(f"FASTDS_DEBUG must be one of {', '.join(DEBUG_FLAGS)}, got {self.debug!r}")
        self.cxx, self.nvcc = find_cxx(), find_nvcc()
        self.isas = find_isas(self.cxx)
        self.archs = find_cuda_archs(self.nvcc) if self.nvcc else []
        self.version = subprocess.run([*self.cxx, "--version"], capture_output=True, text=True).stdout.partition("\n")[
            0
        ]
        self.host = HOST_FLAGS + DEBUG_FLAGS[self.debug]
        parts = {"AVX2": "avx2" in self.isas, "AVX512": "avx512" in self.isas, "CUDA": self.nvcc is not None}
        self.defines = [f"-DFASTDS_BUILD_{name}={int(built)}" for name, built in parts.items()]
        # Bindings do no arithmetic; -O1 saves compilation time.
        self.bind_flags = [f"-I{folder}"] + [flag for path in include_dirs for flag in ("-isystem", str(path))]
        self.bind_flags += ["-isystem", str(self.pybind11_headers())]
        self.bind_flags += ["-O1"] if self.debug == "0" else []
        self.objects, self.lines = [], []

    def pybind11_headers(self):
        """Copy pybind11's headers to a fixed folder: pip's isolated builds have them in a new folder each time,
        which would recompile everything.
        """
        copy = self.folder / f"pybind11-{pybind11.__version__}"
        if not copy.exists():
            unfinished = self.folder / f"pybind11.{os.getpid()}"
            shutil.copytree(pybind11.get_include(), unfinished)
            unfinished.rename(copy)
        return copy

    def write(self):
        cuda = f"sm_{', sm_'.join(self.archs)}" if self.nvcc else "not built (no nvcc or FASTDS_CUDA=0)"
        print(f"fastds: {self.version}; instruction sets {', '.join(self.isas)}; CUDA {cuda}", flush=True)
        self.rules()
        self.compile("cxx", self.build_info(), "build_info")
        self.ops()
        for source in sorted(CSRC.rglob("*.cpp")):
            stem = source.relative_to(CSRC).with_suffix("").as_posix()
            if source.name.startswith("cpu"):
                # Kernels do not throw, and exception tables are weak symbols, which the linker could take from another
                # instruction set. No vector is passed between functions, so -Wpsabi does not apply. Alignment makes
                # the speed of hot loops independent of the code before them.
                quiet = ["-fno-exceptions", "-Wno-psabi", "-falign-functions=64"]
                for isa in self.isas_of(source.parent.name):
                    defines = [f"-DFASTDS_ISA={isa}", f"-DFASTDS_DOUBLE={int(isa == 'baseline')}"]
                    flags = [*defines, *quiet, *ISA_FLAGS[isa], *self.level(isa, source)]
                    self.compile("cxx", source, f"{stem}.{isa}", flags)
            else:
                # Only bindings include pybind11, so that a changed path of it recompiles no kernel.
                self.compile("cxx", source, stem, self.bind_flags if stem == "bind" else ())
        if self.nvcc:
            for source in sorted(CSRC.rglob("*.cu")):
                name = source.relative_to(CSRC).as_posix()
                self.compile("nvcc", source, name, self.gencode(name))
        self.lines.append(f"build {self.escape(self.target)}: link {' '.join(self.objects)}\n")
        (self.folder / "build.ninja").write_text("\n".join(self.lines))

    def isas_of(self, op):
        return self.isas[1:] if op in VECTOR_OPS and len(self.isas) > 1 else self.isas

    def level(self, isa, source):
        """Return the optimisation flags.

        Most kernels are unrolled and vectorised by hand, so that -O3 only takes longer to compile. If there are AVX2
        objects, baseline objects serve only x86 processors from before 2013 and are compiled with -O1.
        """
        if self.debug != "0":
            return []
        if isa == "baseline" and len(self.isas) > 1:
            return ["-O1"]
        return ["-O3"] if source.parent.name in FULLY_OPTIMISED else ["-O2", "-fpeel-loops"]

    def gencode(self, source):
        """Return the code generation flags: one PTX for all GPUs, which runs nvcc's front end once, or one for each."""
        numbers = [arch.rstrip("af") for arch in self.archs]
        if source in PTX_PER_ARCH:
            flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
            return [*flags, f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}"]
        lowest = min(numbers, key=int)
        codes = ",".join([*(f"sm_{arch}" for arch in self.archs), f"compute_{lowest}"])
        return [f"-gencode=arch=compute_{lowest},code=[{codes}]"]

    def rules(self):
        flags = ["-std=c++17", *self.host, *self.defines, f"-I{CSRC}"]
        self.rule("cxx", f"{self.words([*self.cxx, *flags])} $extra -MMD -MF $out.d -c $in -o $out")
        link = [*self.cxx, *self.host, "-shared"]
        if self.nvcc:
            compiler, options = host_compiler(self.cxx)
            nvcc = [self.nvcc, "-ccbin", compiler, f"-Xcompiler={','.join([*options, *self.host])}"]
            flags = ["-std=c++17", "-O3", *self.defines, f"-I{CSRC}"]
            self.rule("nvcc", f"{self.words(nvcc + flags)} $extra -MD -MF $out.d -c $in -o $out")
            link = [*nvcc, "-shared", "-cudart", "static"]
        self.lines.append(f"rule link\n  command = {self.words(link)} $in -o $out\n  description = $out")

    def rule(self, name, command):
        self.lines.append(f"rule {name}\n  command = {command}\n  depfile = $out.d\n  deps = gcc\n  description = $out")

    def compile(self, rule, source, stem, extra=()):
        self.objects.append(f"{stem}.o")
        self.lines.append(f"build {stem}.o: {rule} {self.escape(source)}")
        if extra:
            self.lines.append(f"  extra = {self.words(extra)}")

    @staticmethod
    def words(command):
        """Quote a command for the shell that ninja starts; ninja needs dollar signs doubled."""
        return shlex.join(command).replace("$", "$$")

    @staticmethod
    def escape(path):
        return re.sub(r"([$ :])", r"$\1", str(path))

    def build_info(self):
        """Write the constants of csrc/core/common.h to their own source, so that a new hash recompiles only it."""
        source_hash = runpy.run_path(str(ROOT / "fastds" / "_source_hash.py"))["source_hash"]
        constants = {
            "build_source_hash": source_hash(ROOT),
            "build_compiler": self.version,
            "build_debug": self.debug,
            "build_cuda_archs": " ".join(self.archs),
        }
        text = '#include "core/common.h"\nnamespace fastds {\n'
        for name, value in constants.items():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            text += f'const char* const {name} = "{escaped}";\n'
        text += "}  // namespace fastds\n"
        return self.generate("build_info.cpp", text)

    def ops(self):
        """Write ops.h, which csrc/bind.cpp includes: the bind.h of each op and the list of their names."""
        names = sorted(path.parent.name for path in CSRC.glob("*/bind.h"))
        text = "#pragma once\n" + "".join(f'#include "{name}/bind.h"\n' for name in names)
        self.generate("ops.h", f"{text}#define FASTDS_OPS(X) {' '.join(f'X({name})' for name in names)}\n")

    def generate(self, name, text):
        path = self.folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path


class NinjaBuildExt(build_ext):
    def build_extension(self, ext):
        if importlib.util.find_spec("ninja") is None:
            stop("the Python package ninja is missing; run: python -m pip install ninja")
        folder = Path(self.build_temp, "native").resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        Ninja(folder, target, self.include_dirs).write()
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        run = subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), "-j", jobs])
        if run.returncode:
            stop(
                "a native source failed to compile; the compiler's words are above (FASTDS_CUDA=0 builds without nvcc)"
            )


class CleanBuild(build):
    def run(self):
        # A module of an earlier build in build_lib would be packed into the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["fastds", "fastds.*"]), "fastds.kernels"],
    ext_modules=[
        Extension(
            "_fastds",
            # With headers, because this list determines the content of the source distribution.
            sources=sorted(
                p.relative_to(ROOT).as_posix() for p in CSRC.rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"}
            ),
        )
    ],
    cmdclass={"build_ext": NinjaBuildExt, "build": CleanBuild},
)
