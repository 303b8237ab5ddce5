# SPDX-License-Identifier: Apache-2.0
"""Builds the native module _fastds: finds the compilers, writes one build.ninja, runs ninja. Never imports torch.

Quick rebuild in a checkout: python setup.py build_ext --inplace

Environment: FASTDS_CUDA=auto|0|1 (1: fail without nvcc), CUDA_HOME, FASTDS_CUDA_ARCHS="80 90" (PTX of the last is added),
MAX_JOBS, FASTDS_DEBUG=0|1|asan|tsan; and CXX, which setuptools knows too.
"""

import hashlib
import os
import platform
import re
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

CXX_FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall".split()
OPTIMISE = {
    "0": ["-O3", "-DNDEBUG"],
    "1": ["-O0", "-g"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-O1", "-g", "-fsanitize=thread", "-DFASTDS_TSAN=1"],
}
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16".split(),
}
INSTALL_COMPILER = (
    "install a C++17 compiler with OpenMP (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
    "conda: conda install cxx-compiler), then run the same command again"
)


def stop(sentence):
    sys.exit(f"\nfastds: {sentence}.\n")


def source_hash():
    """Hash of csrc and kernels; fastds._native computes the same over a checkout."""
    digest = hashlib.sha256()
    for path in sorted(p for top in ("csrc", "kernels") for p in (ROOT / top).rglob("*") if p.is_file()):
        if path.suffix in {".cpp", ".h", ".cu", ".cuh", ".py"}:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiles(compiler, flags, code, link=False):
    """None when `code` compiles, else the compiler's words."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(code)
        mode = ["-shared"] if link else ["-c"]
        try:
            run = subprocess.run(
                [compiler, *flags, *mode, str(source), "-o", str(Path(folder, "probe.out"))], capture_output=True, text=True
            )
        except OSError as error:
            return str(error)
        return None if run.returncode == 0 else (run.stderr.strip() or f"exit status {run.returncode}")


def find_cxx():
    named = os.environ.get("CXX")
    compiler = shutil.which(named) if named else next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        stop(f"no C++ compiler found ({'CXX=' + named if named else 'g++, c++ or clang++'} is not on PATH); {INSTALL_COMPILER}")
    words = compiles(compiler, CXX_FLAGS, "#include <omp.h>\nint f() { return omp_get_max_threads(); }\n", link=True)
    if words is not None:
        stop(f"the C++ compiler {compiler} cannot build a three-line OpenMP program; {INSTALL_COMPILER}. It said: {words[-600:]}")
    return compiler


def find_nvcc():
    """Path of nvcc or None, by FASTDS_CUDA and CUDA_HOME; whether a GPU is visible does not matter."""
    wish = os.environ.get("FASTDS_CUDA", "auto")
    if wish not in {"auto", "0", "1"}:
        stop(f"FASTDS_CUDA must be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else (
        shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    )
    if nvcc is None and wish == "1":
        place = f"CUDA_HOME={home}" if home else "PATH"
        stop(f"FASTDS_CUDA=1 but no nvcc under {place}; install the CUDA toolkit, set CUDA_HOME, or build with FASTDS_CUDA=0")
    return nvcc


def cuda_archs(nvcc):
    """Compute capabilities to build: FASTDS_CUDA_ARCHS, else 80, 90 and the first of each newer major that nvcc lists."""
    wish = os.environ.get("FASTDS_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").replace(".", "").split()
    if wish:
        if bad := [arch for arch in wish if not re.fullmatch(r"\d{2,3}a?", arch)]:
            stop(f"FASTDS_CUDA_ARCHS must be numbers such as '80 90', got {bad[0]!r}")
        return wish
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    numbers = sorted({int(n) for n in re.findall(r"sm_(\d+)\b", listed)})
    newer = {n // 10: n for n in reversed(numbers) if n >= 100}
    return [str(n) for n in (80, 90) if n in numbers] + [str(n) for n in sorted(newer.values())]


def gencode(archs):
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    return flags + [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def isas(cxx):
    if platform.machine() not in {"x86_64", "AMD64"}:
        return ["baseline"]
    known = ["baseline"]
    for isa in ("avx2", "avx512"):
        if compiles(cxx, ISA_FLAGS[isa], "int f() { return 0; }\n") is not None:
            print(f"fastds: {cxx} does not know {' '.join(ISA_FLAGS[isa])}; building without {isa}")
            break
        known.append(isa)
    return known


def escape(text):
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def write_ninja(folder, target, include_dirs):
    """Writes folder/build.ninja: every .cpp once, csrc/*/cpu*.cpp once per instruction set, .cu by nvcc, one link."""
    debug = os.environ.get("FASTDS_DEBUG", "0") or "0"
    if debug not in OPTIMISE:
        stop(f"FASTDS_DEBUG must be one of {', '.join(OPTIMISE)}, got {debug!r}")
    cxx, nvcc = find_cxx(), find_nvcc()
    built, archs = isas(cxx), cuda_archs(nvcc) if nvcc else []
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    print(f"fastds: {version}; instruction sets {', '.join(built)}; CUDA {' '.join(archs) if nvcc else 'not built'}")

    hash_source = folder / "source_hash.cpp"
    text = "".join(
        f'extern "C" const char* const {name};\nextern "C" const char* const {name} = "{value}";\n'
        for name, value in (("fastds_source_hash", source_hash()), ("fastds_cuda_archs", " ".join(archs)))
    )
    if not hash_source.exists() or hash_source.read_text() != text:
        hash_source.write_text(text)

    defines = [
        f"-DFASTDS_BUILD_AVX2={int('avx2' in built)}",
        f"-DFASTDS_BUILD_AVX512={int('avx512' in built)}",
        f"-DFASTDS_BUILD_CUDA={int(nvcc is not None)}",
    ]
    names = [f"'-DFASTDS_COMPILER=\"{version}\"'", f"'-DFASTDS_DEBUG_NAME=\"{debug}\"'"]
    includes = [f"-I'{CSRC}'", *(f"-isystem '{path}'" for path in include_dirs)]
    host = CXX_FLAGS + OPTIMISE[debug]
    lines = [
        f"cxx = '{cxx}'",
        f"flags = {' '.join([*host, *defines, *includes])}",
        "rule cxx\n  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
        "  description = $out",
    ]
    if nvcc:
        through = ",".join(host[1:])
        lines += [
            f"nvcc = '{nvcc}' -ccbin '{cxx}'",
            f"cuflags = -std=c++17 -O3 {' '.join(gencode(archs))} -Xcompiler={through} {' '.join(defines)} -I'{CSRC}'",
            "rule nvcc\n  command = $nvcc $cuflags -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
            "  description = $out",
        ]
        link = f"$nvcc -shared -cudart static -Xcompiler={through} $in -o $out"
    else:
        link = f"$cxx -shared {' '.join(host)} $in -o $out"
    lines.append(f"rule link\n  command = {link}\n  description = _fastds")

    objects = []

    def add(rule, source, stem, extra=""):
        objects.append(f"{stem}.o")
        lines.append(f"build {stem}.o: {rule} {escape(source)}" + (f"\n  extra = {extra}" if extra else ""))

    add("cxx", hash_source, "source_hash")
    for source in sorted(CSRC.rglob("*.cpp")):
        stem = source.relative_to(CSRC).with_suffix("").as_posix()
        if source.name.startswith("cpu"):
            for isa in built:
                add("cxx", source, f"{stem}.{isa}", " ".join([f"-DFASTDS_ISA={isa}", *ISA_FLAGS[isa]]))
        else:
            add("cxx", source, stem, " ".join(names) if source == CSRC / "bind.cpp" else "")
    if nvcc:
        for source in sorted(CSRC.rglob("*.cu")):
            add("nvcc", source, source.relative_to(CSRC).as_posix())
    lines.append(f"build {escape(target)}: link {' '.join(objects)}\ndefault {escape(target)}\n")
    (folder / "build.ninja").write_text("\n".join(lines))


class NinjaBuildExt(build_ext):
    def build_extension(self, ext):
        folder = Path(self.build_temp, "native").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        write_ninja(folder, target, [*self.include_dirs, pybind11.get_include()])
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        run = subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), "-j", jobs])
        if run.returncode:
            stop("a native source failed to compile (the compiler's words are above; if they come from nvcc, FASTDS_CUDA=0 "
                 "builds without CUDA)")


class CleanBuild(build):
    def run(self):
        # A module of an earlier build left in build_lib would be packed into the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


sources = sorted(p.relative_to(ROOT).as_posix() for p in CSRC.rglob("*") if p.suffix in {".cpp", ".cu", ".cuh", ".h"})
setup(
    packages=[*find_packages(include=["fastds", "fastds.*"]), "fastds.kernels"],
    ext_modules=[Extension("_fastds", sources=sources)],
    cmdclass={"build_ext": NinjaBuildExt, "build": CleanBuild},
)
