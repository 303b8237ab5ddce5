# SPDX-License-Identifier: Apache-2.0
"""Small data files for the paper studies, and their command lines."""

import numpy as np
import xarray as xr

from fastds import data
from tests.support.meteonet_files import make_radar


def make_meteonet(folder):
    """Write two archives of MeteoNet, and static fields in masks/."""
    for part, (frames, seed) in enumerate(((20, 3), (17, 8)), 1):
        make_radar(folder, frames=frames, seed=seed, part=part)
    (folder / "masks").mkdir()
    lat = ("latitude", 50.05 - 0.05 * np.arange(18), {"units": "degrees_north", "standard_name": "latitude"})
    lon = ("longitude", -3.05 + 0.05 * np.arange(18), {"units": "degrees_east", "standard_name": "longitude"})
    height = (("latitude", "longitude"), np.random.default_rng(0).random((18, 18), np.float32), {"units": "m"})
    xr.Dataset({"height": height}, {"latitude": lat, "longitude": lon}).to_netcdf(
        folder / "masks" / "relief.nc", engine="h5netcdf"
    )
    return folder


def make_events(folder):
    """Write two rain events, one of which is too short."""
    for name, frames, seed in (("rain", 38, 3), ("short", 20, 4)):
        event = data.synthetic_event(seed=seed, frames=frames, shape=(64, 64), cadence_minutes=6.0)
        data.save_dataset(event[["reflectivity"]], folder / f"{name}.nc")
    return folder


def make_humidity(folder):
    """Write wave-like humidity fields, and a training configuration of tiny networks."""
    rows, columns = np.arange(24.0)[:, None], np.arange(61.0)
    waves = np.stack([np.sin(1.1 * rows + 0.3 * t) * np.cos(0.9 * columns - t) for t in range(5)])
    attrs = {"standard_name": "relative_humidity", "units": "%"}
    fields = xr.Dataset({"r": (("time", "latitude", "longitude"), 50 + 30 * waves, attrs)})
    fields.to_netcdf(folder / "rh.nc", engine="h5netcdf")
    (folder / "tiny.yaml").write_text(TINY_HUMIDITY)
    return folder


TINY_HUMIDITY = """
model:
  name: wgan-gp-small
  options: {scale: 2, width: 8, post_width: 8, pre_blocks: 1, post_blocks: 1, reduction: 4}
critic: {options: {width: 4, down_blocks: 1, post_blocks: 0, reduction: 2}}
data:
  path: .
  sources: {rh.nc: {train: [[0, 24, 0, 24]], validation: [[0, 24, 24, 36]], test: [[0, 23, 48, 61]]}}
  steps: 2
  crop: 8
  batch_size: 2
  epoch_samples: 8
  validation_samples: 4
loss: {content: crps}
optimiser: {warmup_epochs: 1}
"""


def make_waves(folder):
    """Write wave-like fields of two variables, with enough columns for every part."""
    rows, columns, g = np.arange(168.0)[:, None], np.arange(216.0), np.random.default_rng(0)
    waves = np.stack([np.sin(0.6 * rows + 0.3 * t) * np.cos(0.5 * columns - t) for t in range(2)])
    waves += 0.05 * g.standard_normal(waves.shape)
    dims = ("time", "latitude", "longitude")
    fields = {"t": (dims, 280 + 5 * waves, {"units": "K"}), "u": (dims, 10 * waves**2, {"units": "m s-1"})}
    xr.Dataset(fields).to_netcdf(folder / "waves.nc", engine="h5netcdf")
    return folder


# Study -> what makes its files, and its options.
CASES = {
    "fczsm": (
        make_meteonet,
        {"run": "[UNet,ZSM-DS]", "data.test_samples": 2, "data.statics": "[FOLDER/masks/relief.nc:height]"},
    ),
    "db-rnn": (
        make_events,
        {
            "run": "[MS-ConvLSTM-S]",
            "data.test_samples": 2,
            "data.scale": 1,
            "data.window": 32,
            "data.block": "6min",
            "long_leads": 1,
        },
    ),
    "wgan-gp": (
        make_humidity,
        {"run": "[SRCNN,WGAN-GP]", "training": "FOLDER/tiny.yaml", "data.tile": 11, "members": 2},
    ),
    "inr": (
        make_waves,
        {"run": "[EDSR-x2,ours-mask]", "data.path": "FOLDER/waves.nc", "data.variables": "[t,u]", "data.crop": 32}
        | {"data.per_cell": 1},
    ),
}


def words(name, folder, output, **options):
    """Return the command line of a tiny study."""
    chosen = {"max_steps": 3, "threads": 1, "progress": "false", "data.path": folder, "output": output}
    chosen |= CASES[name][1] | options
    return ["study", name, *(f"--{key}={value}".replace("FOLDER", str(folder)) for key, value in chosen.items())]


def outputs(folder):
    """Return the outputs of a study by name, which an interruption must not change."""
    kinds = ("*.md", "*.csv", "*.txt", "*.png", "scores/*", "runs/*/*.safetensors", "runs/*/*.csv")
    found = (p for kind in kinds for p in folder.glob(kind) if p.name[0] != ".")  # a kill leaves hidden parts
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}
