# SPDX-License-Identifier: Apache-2.0
"""Runs the Python and shell blocks of the READMEs and the manual in a folder with the files they name.

Some commands are shortened (SHORTER) or left out (LEFT_OUT).
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fastds.cli import main
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from tests.support import forked

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {".git", ".pytest_cache", "build", "_build", "generated", "site-packages"}
PAGES = sorted(p for p in ROOT.rglob("*.md") if not GENERATED & set(p.relative_to(ROOT).parts))
MANUAL = [p for p in PAGES if p.is_relative_to(ROOT / "docs")]
READMES = [p for p in PAGES if p.name == "README.md" and p not in MANUAL]
# Opening line, language or directive in braces, and content of a block.
FENCE = re.compile(r"^(<!-- ci -->\n)?```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONAL_MODULES = ("pysteps",)  # a block that imports one of them needs it
MOST_LINES = {"README.md": 120, "bench/README.md": 100}  # of any other README 60
# What a test shortens: minutes of training and benchmarks. pip and sanitizer builds are left to .ci/run and to hand.
SHORTER = (
    (r"(train (?:radar|nowcast|humidity) .*--max-minutes=\d+)", r"\1 --data.validation-samples=4"),
    (r"(train .*)--max-minutes=\d+", r"\1--max-steps=2 --threads=1 --data.batch-size=2"),
    (r"(study fczsm .*)--budget=\d+min", r"\1--max-steps=2 --threads=1 --data.test-samples=2 --run=[UNet]"),
    (r"^pytest bench/(\S+).*$", r"pytest -q --collect-only bench/\1"),
    (r"^pytest tests/(\S+).*$", r"test -e tests/\1"),  # this run collects it
    (r"--calls \d+", "--calls 60"),  # one of each op and kind
    (r"--loads \d+", "--loads 20"),
    (r"--workers 2", "--workers 1"),  # two are two processes that import everything: test_archive.py
    (
        r"^python -m (tests\.(?:sanitize|mutants|faulty|kills)|bench\.(?:report|scaling|sweep)).*$",
        r"python -m \1 --help",
    ),
)
# `python -m MODULE ...` in a folder.
MODULE = """
import os, runpy, sys
os.chdir(sys.argv.pop(1))
sys.path.insert(0, os.getcwd())
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
LEFT_OUT = ("python -m pip install", "FASTDS_DEBUG=", "LD_PRELOAD=", "PYTHONPATH=build/")
LEFT_OUT += ("fastds study nowcast",)  # of the test radars by name: test_study_ensembles.py
LEFT_OUT += ("fastds study domain", "fastds study input-ranges")  # of public files by name: test_study_domain.py
LEFT_OUT += ("python -m fastds.models.mlcast", "mlcast train")  # they need mlcast: test_mlcast_train.py runs them


def blocks(language):
    for path in READMES + MANUAL:
        found = [
            (k, text)
            for k, (ci, kind, text) in enumerate(FENCE.findall(path.read_text()))
            if kind == language and not ci
        ]
        name = path.relative_to(ROOT).as_posix()
        if path in MANUAL and language == "python" and found:  # the blocks of a page are one program
            yield pytest.param(name, "\n".join(text for _, text in found), id=name)
            continue
        for k, text in found:
            yield pytest.param(name, text, id=f"{name}-{k}")


def run(command, folder):
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Make the files that the examples name, in a folder.

    The files are IN.nc, TRUTH.nc, ERA5.nc, ERA5-FINE.nc, T2M.nc and STATIONS.csv; FOLDER and ARCHIVE are folders of
    radar files.
    """
    folder = tmp_path_factory.mktemp("readme")
    truth = synthetic_event(seed=3, frames=13, shape=(96, 96))
    save_dataset(truth, folder / "TRUTH.nc")
    save_dataset(coarsen_dataset(truth), folder / "IN.nc")
    (folder / "FOLDER").mkdir()
    save_dataset(synthetic_event(seed=1, frames=24, shape=(160, 160)), folder / "FOLDER" / "event1.nc")
    shutil.copy(folder / "FOLDER" / "event1.nc", folder / "FOLDER" / "event2.nc")
    (folder / "ARCHIVE").mkdir()
    for number, part in enumerate(np.array_split(np.arange(7), 3)):
        save_dataset(coarsen_dataset(truth).isel(time=part), folder / "ARCHIVE" / f"{number}.nc")
    save_dataset(_fields(2.0), folder / "ERA5.nc")
    save_dataset(_fields(1.0), folder / "ERA5-FINE.nc")
    save_dataset(_fields(4.0)[["t"]], folder / "T2M.nc")
    (folder / "STATIONS.csv").write_text("name,lat,lon\nA,10.5,20.25\nB,-33.0,151.2\n")
    for name in ("bench", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def _fields(step):
    """Return 8 smooth global fields with the names and units of ERA5 at 500 hPa on a grid of `step` degrees."""
    latitude, longitude = np.arange(90, -90 - step / 2, -step), np.arange(-180, 180, step)
    x, y = np.meshgrid(np.radians(longitude), np.radians(latitude))
    means = {"r": (50, 30, "%", "relative_humidity"), "t": (255, 10, "K", "air_temperature"),
             "u": (10, 15, "m s**-1", "eastward_wind"), "z": (54000, 1500, "m**2 s**-2", "geopotential")}  # fmt: skip
    times = np.datetime64("2020-01-01", "ns") + np.arange(8) * np.timedelta64(6, "h")
    variables = {}
    for k, (name, (mean, spread, units, standard)) in enumerate(means.items()):
        waves = [np.sin((2 + k) * x + 0.3 * t) * np.cos(3 * y) + 0.3 * np.sin(7 * x - 5 * y) for t in range(8)]
        attributes = {"units": units, "standard_name": standard}
        variables[name] = (
            ("time", "latitude", "longitude"),
            (mean + spread * np.stack(waves)).astype("f4"),
            attributes,
        )
    coordinates = {
        "time": times,
        "latitude": ("latitude", latitude, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", longitude, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    return xr.Dataset(variables, coordinates)


@pytest.mark.parametrize("readme, text", blocks("python"))
def test_python_examples_run(readme, text, tmp_path, monkeypatch):
    for module in OPTIONAL_MODULES:
        if re.search(rf"^import {module}\b", text, re.MULTILINE):
            pytest.importorskip(module, reason=f"{module} is not installed (optional peer)")
    (tmp_path / "block.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        runpy.run_path("block.py", run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    shown = {Path(target).name for target in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / readme).read_text())}
    assert pictures <= shown, "run: python docs/make_pictures.py"


@pytest.mark.parametrize("readme, text", blocks("bash"))
def test_command_examples_run(readme, text, files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    typed = readme == "README.md"
    for line in text.replace("\\\n", " ").splitlines():
        line = line.split("  #")[0].strip()
        if not line or line.startswith(LEFT_OUT):
            continue
        for pattern, shorter in SHORTER:
            line = re.sub(pattern, shorter, line)
        shutil.rmtree(files / "training", ignore_errors=True)
        module = re.fullmatch(r"python -m (\S+) ([^|&;<>$*?`]*)", line)
        if module:
            done = forked.run(MODULE, files, module[1], *shlex.split(module[2]))
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        elif typed or not re.fullmatch(r"fastds [^|&;<>$*?`]*", re.sub("'.*?'", "", line)):
            run(["bash", "-c", line], files)
            typed = False
        else:
            assert main(shlex.split(line)[1:]) == 0, f"{line}\n{capfd.readouterr().err[-2000:]}"


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_readmes_are_short(path):
    most = MOST_LINES.get(path.relative_to(ROOT).as_posix(), 60)
    assert len(path.read_text().splitlines()) <= most, "details belong in docs"


def test_pictures_are_small():
    assert [path.name for path in (ROOT / "docs").rglob("*.png") if path.stat().st_size > 100_000] == []


def test_links_are_valid():
    for path in READMES + MANUAL:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
            assert target.startswith("http") or (path.parent / target).exists(), f"{path}: {target}"


def test_benchmark_pages_agree_with_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from bench import report

    for path, text in report.make_pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python -m bench.report --pages"
