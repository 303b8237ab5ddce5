# SPDX-License-Identifier: Apache-2.0
"""Tests of the packages that commands on files import, and of xarray's type checks in the process of a command."""

import numpy as np
import pytest
import xarray as xr

from fastds.data import save_dataset, synthetic_event
from tests.support import forked

# Packages whose import takes long, and readers of other formats than those of the files here.
FORBIDDEN = {
    "IPython", "PIL", "cfgrib", "dask", "distributed", "eccodes", "jinja2", "lightning", "matplotlib", "netCDF4",
    "onnx", "pint", "rasterio", "rich", "scipy.fft", "scipy.interpolate", "scipy.signal", "scipy.sparse", "skimage",
    "tensorboard", "torchmetrics",
}  # fmt: skip
RUN = """
import runpy, sys
sys.argv = ["-m", *sys.argv[1:]]
sys.orig_argv = ["python", "-m", "fastds", *sys.argv[1:]]
status = 0
try:
    runpy.run_module("fastds", run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
assert status == 0, status
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Make a folder with radar fields, as NetCDF, as a Zarr store and as one file for each time, and other fields."""
    folder = tmp_path_factory.mktemp("files")
    event = synthetic_event(5, 6, (64, 64))
    save_dataset(event, folder / "radar.nc")
    save_dataset(event, folder / "radar.zarr")
    (folder / "series").mkdir()
    for number in range(event.sizes["time"]):
        save_dataset(event.isel(time=[number]), folder / "series" / f"{number}.nc")
    axes = {"latitude": np.linspace(60.0, 50.0, 11), "longitude": np.linspace(0.0, 10.0, 11)}
    attributes = {"standard_name": "air_temperature", "units": "K"}
    values = 280 + np.random.default_rng(0).random((11, 11), np.float32)
    fields = xr.Dataset({"t2m": (list(axes), values, attributes)}, axes)
    fields.latitude.attrs["units"], fields.longitude.attrs["units"] = "degrees_north", "degrees_east"
    save_dataset(fields, folder / "fields.nc")
    (folder / "points.csv").write_text("lat,lon\n55.2,4.1\n")
    return folder


@pytest.mark.parametrize(
    ("words", "used"),
    [
        ("nowcast {0}/radar.nc {0}/nowcast.nc", set()),
        ("downscale {0}/radar.nc {0}/fine.nc", set()),
        ("downscale {0}/fields.nc {0}/fine-fields.nc --scale 2", set()),
        ("query {0}/fields.nc --points {0}/points.csv --output {0}/out.csv", set()),
        ("check {0}/radar.nc", set()),
        ("check {0}/radar.zarr", {"zarr"}),
    ],
)
def test_commands_on_files_import_no_package_that_they_do_not_use(files, words, used):
    forbidden = FORBIDDEN | ({"zarr"} - used)
    code = f"{RUN}\nfound = {forbidden} & set(sys.modules)\nassert not found, found"
    done = forked.run(code, *words.format(files).split(), imports=forked.TORCH)
    assert done.returncode == 0, done.stderr


def test_lazy_arrays_are_recognised_in_the_process_of_a_command(files):
    """The files of a series are read as arrays of dask, after xarray has checked types without dask."""
    code = f"""{RUN}
import xarray
assert "dask" not in sys.modules
from fastds.data import open_dataset
with open_dataset({str(files / "series")!r}) as series, open_dataset({str(files / "radar.nc")!r}) as whole:
    assert series.reflectivity.chunks is not None and xarray.DataArray([1.0]).chunk().chunks == ((1,),)
    xarray.testing.assert_equal(series.reflectivity.compute(), whole.reflectivity)
    assert series.reflectivity[0].mean().compute().dtype == whole.reflectivity.dtype
"""
    done = forked.run(code, "check", f"{files}/radar.nc", imports=forked.TORCH)
    assert done.returncode == 0, done.stderr


def test_commands_read_several_files(files):
    words = "nowcast", f"{files}/series", f"{files}/of-series.nc"
    done = forked.run(RUN, *words, imports=forked.TORCH)
    assert done.returncode == 0, done.stderr
    done = forked.run(RUN, "nowcast", f"{files}/radar.nc", f"{files}/of-file.nc", imports=forked.TORCH)
    assert done.returncode == 0, done.stderr
    with xr.open_dataset(files / "of-series.nc") as one, xr.open_dataset(files / "of-file.nc") as other:
        xr.testing.assert_equal(one.rainfall_rate, other.rainfall_rate)


def test_check_prints_the_contents_of_a_file_before_it_imports_torch(files):
    code = f"""
import importlib.abc, sys
class Reporter(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("torch is imported")
sys.meta_path.insert(0, Reporter())
{RUN}
assert "torch" in sys.modules
"""
    done = forked.run(code, "check", f"{files}/radar.nc", imports="import sys\n")
    assert done.returncode == 0, done.stderr
    lines = [line.split()[0] for line in done.stdout.splitlines()]
    assert lines.index("format") < lines.index("variable") < lines.index("grid") < lines.index("torch")
    assert lines.index("torch") < lines.index("can")


def test_check_of_a_file_that_cannot_be_read_imports_no_torch(files):
    (files / "text.nc").write_text("no NetCDF")
    code = f"{RUN.replace('assert status == 0', 'assert status == 2')}\nassert 'torch' not in sys.modules"
    done = forked.run(code, "check", f"{files}/text.nc", imports="import sys\n")
    assert done.returncode == 0 and "cannot be read" in done.stdout, done.stderr
