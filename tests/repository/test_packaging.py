# SPDX-License-Identifier: Apache-2.0
"""Tests of setup.py on different machines, and of the content of the wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "kernels", "fastds")
# Source of an empty module. Builds that do not test the bindings use it, because compiling the bindings is slow.
BARE = """#include <Python.h>
static PyModuleDef bare = {PyModuleDef_HEAD_INIT, "_fastds"};
PyMODINIT_FUNC PyInit__fastds() { return PyModule_Create(&bare); }
"""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def run(command, cwd, **environment):
    """Run a command with only the given FASTDS_ variables; None unsets a variable."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith("FASTDS_") and environment.get(k, v) is not None
    }
    given = {k: str(v) for k, v in environment.items() if v is not None}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=inherited | given, capture_output=True, text=True)


def copy_sources(to):
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, to)
    return to


def build(tree, out="out", temp=None, **environment):
    """Build the module of a source tree without optimisation into tree/out; return the finished process."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", out, "--build-temp", temp or f"{out}/temp"]
    return run(command, tree, **{"FASTDS_DEBUG": 1} | environment)


def load(folder, code="import _fastds; print(_fastds.build_info())"):
    return run([sys.executable, "-S", "-c", code], folder)


@pytest.fixture(scope="session")
def full_build(tmp_path_factory):
    """Build a wheel for CPUs, without optimisation and with an empty bind.cpp.

    The object files stay under build/.
    """
    tree = copy_sources(tmp_path_factory.mktemp("full"))
    (tree / "csrc" / "bind.cpp").write_text("")
    stale = tree / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "stale_module.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    done = run([sys.executable, "setup.py", "-q", "bdist_wheel"], tree, FASTDS_DEBUG=1, FASTDS_CUDA=0)
    assert done.returncode == 0, done.stderr[-4000:]
    return tree


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory):
    """Make a source tree with null_op as its only op, which builds fast."""
    tree = copy_sources(tmp_path_factory.mktemp("small"))
    for folder in (tree / "csrc").iterdir():
        if folder.is_dir() and folder.name not in {"core", "null_op"}:
            shutil.rmtree(folder)
    return tree


@pytest.fixture
def tools(tmp_path):
    """Make an empty folder for PATH, to which tests add programs by links."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def test_setup_imports_setuptools_and_pybind11_only(tmp_path):
    names = set()
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    assert names - sys.stdlib_module_names == {"setuptools", "pybind11"}
    (tmp_path / "torch.py").write_text("raise RuntimeError('setup.py imported torch')\n")
    done = run([sys.executable, "setup.py", "-q", "--version"], ROOT, PYTHONPATH=tmp_path)
    assert done.returncode == 0 and "imported torch" not in done.stderr, done.stderr


def test_wheel_content(full_build):
    (wheel,) = (full_build / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        f"_fastds{SUFFIX}",
        "fastds/__init__.py",
        "fastds/py.typed",
        "fastds/kernels/__init__.py",
        "fastds/ops/impl/null_op/op.py",
    } <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"fastds", f"_fastds{SUFFIX}"}
    for pattern in ("fastds/models/weights/*.safetensors", "fastds/*/**/configs/*.yaml", "fastds/report/*.*"):
        assert {p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern)} <= names
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", "stale_module.py"))]
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "\nName: fastds-weather\n" in text and "\nRequires-Dist: torch>=2.10\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    points = zipfile.ZipFile(wheel).read(entry).decode()
    assert "fastds = fastds.__main__:main" in points
    assert "[pysteps.plugins.diagnostic]\nfastds = fastds.tasks.radar.pysteps_diagnostic:diagnostic_fastds" in points


def test_sdist_has_what_a_build_needs(tmp_path):
    tree = copy_sources(tmp_path)
    done = run([sys.executable, "setup.py", "-q", "sdist"], tree)
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for top in ("csrc", "kernels", "fastds"):
        expected = {p.relative_to(tree).as_posix() for p in (tree / top).rglob("*") if p.is_file()}
        assert {n for n in expected if "__pycache__" not in n and not n.endswith((".md", ".png"))} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE"} <= names


def test_no_weak_symbols_in_objects_per_instruction_set(full_build):
    objects = sorted(full_build.glob("build/temp*/native/*/cpu*.o"))
    per_isa = list((ROOT / "csrc").glob("*/cpu*.cpp"))
    vectors = {"conv1x1", "conv3x3", "conv_rnn"}  # without baseline objects
    everywhere = len(per_isa) - sum(p.parent.name in vectors for p in per_isa)
    assert len(objects) in {len(per_isa), everywhere + len(per_isa), everywhere + 2 * len(per_isa)}
    for path in objects:
        listing = run(["nm", "-C", path], full_build).stdout
        weak = [line for line in listing.splitlines() if re.match(r"[0-9a-f ]* [WVu] ", line)]
        assert not weak, f"{path.name}: {weak[:5]}"


def test_weak_symbol_check_detects_one(tmp_path):
    source = tmp_path / "cpu.cpp"
    source.write_text("inline int weak() { return 1; }\nint strong() { return weak(); }\n")
    done = run([shutil.which("g++") or "c++", "-c", source, "-o", tmp_path / "cpu.o"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^[0-9a-f ]* W ", run(["nm", "-C", tmp_path / "cpu.o"], tmp_path).stdout, re.M)


def test_module_has_no_torch_symbols_and_exports_only_its_entry(native, tmp_path):
    symbols = run(["nm", "-DC", native.__file__], tmp_path).stdout
    assert "PyInit__fastds" in symbols
    assert not re.search(r"\b(c10|at|torch|caffe2)::|aoti_torch", symbols)
    exported = {line.split(maxsplit=2)[2] for line in symbols.splitlines() if re.match(r"[0-9a-f]+ T ", line)}
    assert "PyInit__fastds" in exported and exported <= {"PyInit__fastds", "_init", "_fini"}, exported
    done = load(Path(native.__file__).parent)
    assert done.returncode == 0 and "'cuda': " in done.stdout, done.stderr


def test_build_without_cuda_if_disabled_or_without_nvcc(small_tree, tmp_path):
    for index, environment in enumerate(({"FASTDS_CUDA": 0}, {"CUDA_HOME": tmp_path})):
        done = build(small_tree, f"plain{index}", "plain0/temp", **environment)  # with the same objects
        assert done.returncode == 0, done.stderr[-3000:]
        assert "CUDA not built" in done.stdout
        assert "'cuda': False" in load(small_tree / f"plain{index}").stdout
    assert load(small_tree / "plain0", "import _fastds; _fastds.null_op_cuda").returncode != 0


def test_build_with_nvcc(small_tree):
    if not shutil.which("nvcc") and not shutil.which("nvcc", path="/usr/local/cuda/bin"):
        pytest.skip("no nvcc on this machine")
    done = build(small_tree, "cuda", FASTDS_CUDA=1, FASTDS_CUDA_ARCHS="80", CUDA_HOME=None)
    assert done.returncode == 0, done.stderr[-3000:]
    done = load(small_tree / "cuda", "import _fastds; print(_fastds.build_info(), _fastds.null_op_cuda)")
    assert done.returncode == 0 and "'cuda_archs': '80'" in done.stdout, done.stderr
    (module,) = (small_tree / "cuda").glob("_fastds*.so")
    needed = run(["readelf", "-d", module], small_tree).stdout
    assert "libcudart" not in needed and "libgomp" in needed


@pytest.mark.parametrize("cxx", ["{gxx} -pthread", "{launcher} {gxx}", "{launcher} {gxx} -pthread -m64", "{gxx}"])
def test_nvcc_gets_the_compiler_without_options(small_tree, tools, cxx):
    gxx, launcher = shutil.which("g++"), tools / "ccache"
    launcher.write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    for tool in (launcher, tools / "nvcc"):
        tool.chmod(0o755)
    named = cxx.format(gxx=gxx, launcher=launcher)
    done = build(small_tree, f"{tools}/out", CXX=named, FASTDS_CUDA_ARCHS="80", CUDA_HOME=tools.parent)
    assert "a native source failed to compile" in done.stderr  # by an nvcc that fails
    (ninja,) = (tools / "out").rglob("build.ninja")
    options = ",".join([*named.partition(gxx)[2].split(), ""])
    commands = [line for line in ninja.read_text().splitlines() if f"command = {tools}/nvcc" in line]
    assert len(commands) == 2 and all(f"-ccbin {gxx} -Xcompiler={options}-fPIC," in line for line in commands), commands


def test_build_in_a_folder_with_a_dollar_sign(small_tree, tmp_path):
    tree = tmp_path / "a $HOME b:c"
    shutil.copytree(small_tree, tree, ignore=shutil.ignore_patterns("build", "out", "plain*", "cuda"))
    (tree / "csrc" / "bind.cpp").write_text(f"#include <pybind11/pybind11.h>\n{BARE}")
    done = build(tree, FASTDS_CUDA=0)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert list((tree / "out").glob(f"_fastds{SUFFIX}"))


def test_cuda_required_without_nvcc(small_tree, tmp_path):
    done = build(small_tree, FASTDS_CUDA=1, CUDA_HOME=tmp_path)
    assert done.returncode != 0
    assert (
        f"fastds: FASTDS_CUDA=1, but there is no nvcc in CUDA_HOME={tmp_path}; install the CUDA toolkit" in done.stderr
    )


@pytest.mark.parametrize(
    "environment,sentence",
    [
        ({"FASTDS_CUDA": "yes"}, "FASTDS_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"FASTDS_DEBUG": "2"}, "FASTDS_DEBUG must be one of 0, 1, asan, tsan, got '2'"),
        ({"FASTDS_CUDA_ARCHS": "80 hopper"}, "FASTDS_CUDA_ARCHS must list numbers such as '80 90', got 'hopper'"),
    ],
    ids=["cuda", "debug", "archs"],
)
def test_invalid_build_settings(small_tree, tmp_path, environment, sentence):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nexit 0\n")
    nvcc.chmod(0o755)
    done = build(small_tree, **{"CUDA_HOME": tmp_path} | environment)
    assert done.returncode != 0 and f"fastds: {sentence}" in done.stderr


def test_no_compiler(small_tree, tools):
    done = build(small_tree, PATH=tools, CXX=None, FASTDS_CUDA=0)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "fastds: no C++ compiler found (looked for g++, c++, clang++); install a C++17 compiler" in done.stderr
    done = build(small_tree, CXX="no-such-compiler", FASTDS_CUDA=0)
    assert done.returncode != 0 and "no C++ compiler found (looked for no-such-compiler)" in done.stderr


def test_broken_compiler(small_tree, tools):
    broken = tools / "g++"
    broken.write_text("#!/bin/sh\necho 'cc1plus: not found' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = build(small_tree, PATH=f"{tools}:/usr/bin:/bin", CXX=None, FASTDS_CUDA=0)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert (
        f"fastds: the C++ compiler {broken} cannot build a two-line OpenMP program (cc1plus: not found)" in done.stderr
    )


def test_pip_shows_the_error_message(small_tree, tools):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tools, small_tree]
    done = run(command, tools, PATH=tools, CXX=None, FASTDS_CUDA=0)
    assert done.returncode != 0 and "fastds: no C++ compiler found" in done.stdout + done.stderr


def test_compile_error_is_reported(small_tree, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(small_tree, tree, ignore=shutil.ignore_patterns("build", "out", "plain*", "cuda"))
    (tree / "csrc" / "bind.cpp").write_text("")  # or the compiler is busy with it
    with (tree / "csrc" / "null_op" / "math.h").open("a") as file:
        file.write("not C++\n")
    done = build(tree, FASTDS_CUDA=0)
    assert done.returncode != 0 and "fastds: a native source failed to compile" in done.stderr


def test_editable_install(small_tree, tmp_path):
    tree, venv = tmp_path / "tree", tmp_path / "venv"
    shutil.copytree(
        small_tree, tree, ignore=shutil.ignore_patterns("build", "out", "plain*", "cuda", "dist", "*.egg-info")
    )
    (tree / "csrc" / "bind.cpp").write_text(BARE)
    assert run([sys.executable, "-m", "venv", "--without-pip", venv], tmp_path).returncode == 0
    python = venv / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).stdout.strip())
    # The build tools come from the environment that runs the tests, where another fastds may be installed.
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-build-isolation",
        "-e",
        tree,
    ]
    done = run(command, tmp_path, FASTDS_DEBUG=1, FASTDS_CUDA=0)
    assert done.returncode == 0, done.stdout + done.stderr
    (site / "outer.pth").unlink()
    code = "import sys, _fastds, fastds._version, fastds.kernels; print(_fastds.__file__, fastds.kernels.__file__)"
    # Without torch: empty modules in the place of those that fastds/__init__.py imports.
    stubs = {
        "fastds.ops": [], "fastds.ops.core": [], "fastds.ops.core.backends": ["use_backend"],
        "fastds.ops.explain": ["explain"], "fastds.ops.impl": [], "fastds.ops.impl.conv3x3": [],
        "fastds.ops.impl.conv3x3.algorithm": ["use_conv_algorithm"],
    }  # fmt: skip
    light = "import sys, types\n"
    for name, attributes in stubs.items():
        light += f"m = sys.modules['{name}'] = types.ModuleType('{name}')\n"
        light += f"vars(m).update(dict.fromkeys({attributes}))\n"
    done = run([python, "-c", light + code], tmp_path, PYTHONPATH=None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tree / f"_fastds{SUFFIX}"), str(tree / "kernels" / "__init__.py")]
