# SPDX-License-Identifier: Apache-2.0
"""Tests of the command line: exit status, one-line errors, warnings and the quick start."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastds
from fastds import models
from fastds.cli import main
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from tests.support import forked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make truth.nc, in.nc and the weights of a small network."""
    folder = tmp_path_factory.mktemp("cli")
    truth = synthetic_event(5, 3, (64, 64))
    save_dataset(truth, folder / "truth.nc")
    save_dataset(coarsen_dataset(truth), folder / "in.nc")
    torch.manual_seed(0)
    model = models.create("fczsm-small", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)
    model.card.name, model.card.floor_dbz, model.card.ceiling_dbz = "tiny", 15.0, 70.0
    model.card.grid_spacing_m = (3000.0, 4000.0)
    models.save(model, folder / "tiny.safetensors")
    (folder / "broken.nc").write_bytes((folder / "in.nc").read_bytes()[:2000])
    (folder / "broken.safetensors").write_bytes(b"\x00" * 100)
    return folder


def test_downscale_with_truth_prints_the_table(folder, tmp_path, capsys):
    out = tmp_path / "out.nc"
    options = ["--tile", "16", "--halo", "0", "--threads", "1", "--precision", "bf16"]
    files = [f"{folder}/in.nc", str(out), "--model", f"{folder}/tiny.safetensors", "--truth", f"{folder}/truth.nc"]
    code = main(["downscale", *files, *options])
    printed = capsys.readouterr()
    assert code == 0 and out.exists()
    for word in ("model tiny", "seam error", f"wrote {out}", "Errors above 15 dBZ", "advection"):
        assert word in printed.out
    assert "warning: the grid spacing of 2000 m is outside the range that tiny was trained for" in printed.err
    assert "UserWarning" not in printed.err
    with open_dataset(out) as dataset:
        assert dataset.attrs["fastds_tile"] == 16 and dataset.attrs["fastds_precision"] == "bf16"


def test_evaluate_writes_a_csv(folder, tmp_path, capsys):
    truth = f"{folder}/truth.nc"
    assert main(["evaluate", truth, truth, "--input", f"{folder}/in.nc", "--csv", f"{tmp_path}/t.csv"]) == 0
    assert "prediction" in capsys.readouterr().out and (tmp_path / "t.csv").read_text().startswith("method,")


def test_version_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastds {fastds.__version__}\n"


WEIGHTS = ["--model", "{folder}/tiny.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], 'expected "subcommand"'),
        (["sharpen"], "there is no command 'sharpen' (see fastds --help)"),
        (["downscale", "{folder}/in.nc"], "fastds downscale: OUT.nc is missing (see fastds downscale --help)"),
        (["downscale", "{folder}/in.nc", "o.nc", "--tyle", "16"], "unknown option --tyle; did you mean --tile?"),
        (["downscale", "{folder}/in.nc", "o.nc", "--tile", "big"], "--tile must be a whole number, got 'big'"),
        (["downscale", "{folder}/none.nc", "o.nc", *WEIGHTS], "no such file: {folder}/none.nc"),
        (["downscale", "{folder}/broken.nc", "o.nc", *WEIGHTS], "may be truncated or damaged"),
        (["downscale", "{folder}/in.nc", "o.nc", "--model", "none"], "'none'"),
        (["downscale", "{folder}/in.nc", "o.nc", "--model", "{folder}/broken.safetensors"], "damaged or truncated"),
        (["downscale", "{folder}/in.nc", "o.nc", "--var", "tp", *WEIGHTS], "no variable 'tp' in the file"),
        (["downscale", "{folder}/in.nc", "o.nc", "--time-factor", "3", *WEIGHTS], "--time-factor must be 2 or 4"),
        (["downscale", "{folder}/in.nc", "o.nc", "--tile", "20", *WEIGHTS], "--tile must be a multiple of 16"),
        (["downscale", "{folder}/in.nc", "no/o.nc", *WEIGHTS], "no such folder: no"),
        (["evaluate", "{folder}/in.nc", "{folder}/truth.nc"], "the grids differ"),
        (["demo", "--size", "100", *WEIGHTS], "--size must be a multiple of 32"),
        (["models", "nowhere"], "fastds models: 'nowhere' is no file, no weights of the package (downscaling-errors, "),
        (["models", "inr", "liif"], "one name is expected, got inr liif"),
        (["info", "--all"], "takes no arguments, got '--all'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_user_error_gives_one_line_and_exit_code_2(folder, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(folder=folder) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert sentence.format(folder=folder) in printed.err and "Traceback" not in printed.err
    assert printed.err.strip().count("\n") == 0 and printed.err.startswith("fastds")
    assert not list(tmp_path.iterdir())


def test_interrupt_exits_130(folder, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastds.tasks.radar.pipeline.to_reflectivity", interrupt)
    arguments = ["downscale", f"{folder}/in.nc", f"{tmp_path}/o.nc", "--model", f"{folder}/tiny.safetensors"]
    assert main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_models_lists_weights_presets_and_cards(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for name in models.available(pretrained=True):
        values = sum(tensor.numel() for tensor in models.load(name).state_dict().values())
        assert re.search(rf"^{name} .* {values:,} values .* kB  Apache-2.0$", listed, re.MULTILINE)
    assert main(["models", "--presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == models.available()
    assert main(["models", "nowcast-small"]) == 0
    printed = capsys.readouterr().out
    assert "input_steps: 5\n" in printed and "radar_opera_20180824_15min.nc:\n" in printed and "deblur" not in printed
    assert main(["models", "edsr-x2"]) == 0 and "without shipped weights" in capsys.readouterr().out


def test_info_prints_versions(capsys):
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


def test_help_imports_no_heavy_modules():
    code = (
        "import sys; from fastds.cli import main\n"
        "for words in (['--help'], ['train', '--help'], ['study', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "heavy = {'xarray', 'matplotlib', 'cv2', 'lightning', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = forked.run(code, imports=forked.TORCH)
    assert done.returncode == 0, done.stderr
    for command in ("downscale", "nowcast", "query", "evaluate", "demo", "train", "study", "models", "info"):
        assert command in done.stdout
    module = "import runpy; runpy.run_module('fastds', run_name='__main__', alter_sys=True)"
    run = forked.run(module, "downscale", imports=forked.TORCH)
    assert run.returncode == 2 and "Traceback" not in run.stderr


# Reading a file imports these.
FILES = ("numpy", "torch", "xarray", "pandas")


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("--help", ()), ("--version", ()), ("downscale --help", ()), ("nowcast --help", ()), ("finetune --help", ()),
        ("train --help", ()), ("study --help", ()), ("downscale a b --tile big", ()), ("nowcast a", ()),
        ("downscale --scal 2", ()), ("info --all", ("numpy", "torch")), ("models --presets", ("numpy", "torch")),
        ("models", ("numpy",)), ("models fczsm-small", ("numpy",)), ("models --leaderboard", ("numpy",)),
        ("check {folder}/in.nc", (*FILES, "cv2")),
        ("convert {folder}/in.nc {folder}/converted.nc", ("numpy", "xarray", "pandas")),
        ("convert {folder}/in.nc {folder}/converted.zarr --to cf", ("numpy", "xarray", "pandas", "dask")),
    ],
)  # fmt: skip
def test_commands_import_only_what_they_use(folder, words, allowed):
    heavy = ("numpy", "torch", "xarray", "pandas", "dask", "lightning", "matplotlib", "cv2", "scipy.ndimage",
             "scipy.fft", "scipy.signal", "scipy.interpolate")  # fmt: skip
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('fastds', run_name='__main__', alter_sys=True)\n"
        f"except SystemExit:\n    print('imported', *(name for name in {heavy} if name in sys.modules))"
    )
    given = words.format(folder=folder).split()
    program = f"import sys; sys.argv = {['-m', *given]}; sys.orig_argv = {['python', '-m', 'fastds', *given]}"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{code}"], capture_output=True, text=True, timeout=120)
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert imported <= set(allowed), done.stderr


def test_downscale_command_start_imports_and_garbage_collection():
    code = (
        "import gc, sys; sys.argv[0] = 'fastds'\n"
        "from fastds.cli import _import_ops; _import_ops()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000\n"
        "import fastds.tasks.radar.run, fastds.tasks.fields.run\n"
        "heavy = {'scipy.fft', 'scipy.ndimage', 'scipy.sparse', 'matplotlib', 'dask.array'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def moved(folder, tmp_path, change):
    """Write a changed copy of the truth."""
    with open_dataset(folder / "truth.nc") as truth:
        save_dataset(change(truth.load()), tmp_path / "other.nc")
    return str(tmp_path / "other.nc")


WRONG_TRUTHS = {
    "coarse": (lambda t: t.isel(y=slice(0, 32)), "the grids differ: it has .32, 64. pixels, the {} .64, 64."),
    "elsewhere": (lambda t: t.assign_coords(x=t.x + 5000), "the grids differ: its coordinate x and"),
    "later": (lambda t: t.assign_coords(time=t.time + np.timedelta64(1, "D")), "{}"),
    "no radar": (lambda t: t[["crs"]], "no variable of reflectivity was found"),
}


@pytest.mark.parametrize("kind", WRONG_TRUTHS)
def test_downscale_rejects_unsuitable_truth_before_the_run(folder, tmp_path, capsys, monkeypatch, kind):
    change, sentence = WRONG_TRUTHS[kind]
    other, out = moved(folder, tmp_path, change), str(tmp_path / "o.nc")
    weights = ["--model", f"{folder}/tiny.safetensors", "--truth", other]
    assert main(["downscale", f"{folder}/in.nc", out, *weights]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("fastds downscale: --truth: "), message
    words = "it has nowhere all times" if kind == "later" else sentence.format("output will have")
    assert re.search(words, message) and not os.path.exists(out), message
    hindcast = [f"{folder}/truth.nc", out, "--model", "persistence", "--steps", "1"]
    monkeypatch.setattr("fastds.tasks.nowcast.evaluation._list_installed", lambda: ["persistence"])
    start = str(synthetic_event(5, 3, (64, 64)).time.values[1])
    assert main(["nowcast", *hindcast, "--start", start, "--truth", other]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    words = "no start has 1 observed fields" if kind == "later" else sentence.format("input")
    assert message.startswith("fastds nowcast: --truth: ") and re.search(words, message) and not os.path.exists(out), (
        message
    )
    assert main(["nowcast", *hindcast, "--start", start, "--truth", f"{folder}/truth.nc"]) == 0
