# SPDX-License-Identifier: Apache-2.0
"""Tests of training fastds nowcasters with `mlcast train`, and of using the result in fastds.nowcast."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastds
import fastds.models
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.models.mlcast.interface import MLCastNetwork, from_mlcast

NOWCASTERS = ["ms-convlstm-small", "db-predrnn-small", "ms-convgru-s", "nowcast-small", "simvp", "mlcast-convgru"]
OPTIONS = {"simvp": {"spatial": 8, "temporal": 16}, "mlcast-convgru": {"num_blocks": 2}}
NEEDED = ("fiddle", "mlflow", "cf_xarray", "torchvision", "loguru")  # by mlcast, and by no test of ours
# This code is run as `python -c START MODULE ARGUMENTS`. Package mlcast imports torchvision, whose wheel cannot be
# imported with a CPU build of torch unless the operators below are defined.
START = """
import runpy, sys, torch
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def wrapped(name):
    return MLCastNetwork(name, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", NOWCASTERS)
def test_every_nowcaster_has_mlcasts_interface(name):
    torch.manual_seed(0)
    network, frames = wrapped(name), torch.rand(2, 5, 1, 24, 20)
    forecast = network.network.forecast
    y = network(2 * frames - 1, steps=3, ensemble_size=2)
    assert network.input_channels == 1 and y.shape == (2, 3, 2, 24, 20)
    y.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert sum(p.grad is not None for p in network.parameters()) > 1
    one = network.eval()(2 * frames - 1, steps=3)
    # Training knows no rim: what comes from outside is changed in forecasts alone.
    expected = network.network(frames, 3).clamp(0, 1) if name == "nowcast-small" else forecast(frames, 3)
    torch.testing.assert_close(((one + 1) / 2).clamp(0, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ms-convlstm-small", "nowcast-small", "mlcast-convgru"])
def test_checkpoint_names_its_network(name, tmp_path):
    network = wrapped(name)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "one.ckpt")
    model = from_mlcast(tmp_path / "one.ckpt", input_steps=4)
    assert type(model) is type(network.network) and model.config == network.network.config
    assert model.card.task == "nowcast" and model.card.input_steps == 4 and model.card.name == name
    frames = torch.rand(1, 4, 1, 16, 16)
    assert torch.equal(model.forecast(frames, 2), network.network.eval().forecast(frames, 2))
    network.load_state_dict(network.state_dict())

    state.popitem()
    with pytest.raises(ValueError, match=f"checkpoint does not fit a {name}: "):
        from_mlcast(state)


def test_non_checkpoint_is_rejected(tmp_path):
    (tmp_path / "notes.ckpt").write_text("a bar")
    torch.save({"epoch": 3}, tmp_path / "other.ckpt")
    for name in ("notes.ckpt", "other.ckpt"):
        with pytest.raises(ValueError, match=f"{name} is no checkpoint of `mlcast train`"):
            from_mlcast(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        from_mlcast(tmp_path / "none.ckpt")


def test_untrainable_networks_are_rejected():
    with pytest.raises(ValueError, match="name must be a nowcaster's, .* got 'fczsm-small'"):
        MLCastNetwork("fczsm-small")
    with pytest.raises(ValueError, match="input_channels must be 1, .* for ms-convlstm-small, got 2"):
        MLCastNetwork("ms-convlstm-small", input_channels=2)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Convert forty fields of rain to an MLCast archive with the command."""
    pytest.importorskip("zarr", reason="archives need the package zarr")
    pyproj = pytest.importorskip("pyproj", reason="archives need the package pyproj")
    folder = tmp_path_factory.mktemp("mlcast")
    event = synthetic_event(1, frames=40, shape=(80, 72))
    event["crs"] = ((), 0, pyproj.CRS.from_epsg(3067).to_cf())
    rain = ((10 ** (event.reflectivity / 10) / 200) ** (1 / 1.6)).where(event.reflectivity > 5, 0).astype("float32")
    rain.attrs = {"units": "mm h-1", "standard_name": "rainfall_rate", "grid_mapping": "crs"}
    save_dataset(event[["crs"]].assign(rain=rain), folder / "rain.nc")
    origin = ["--license=CC-BY-4.0", "--creator=A B <a@b.org>", "--identifier=FI-FMI-rain"]
    assert main(["convert", str(folder / "rain.nc"), str(folder / "rain.zarr"), *origin]) == 0
    return folder / "rain.zarr"


def started(folder, *words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", START, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "option"),
    [("ms-convlstm-small", "hidden=8"), ("nowcast-small", "hidden=8"), ("mlcast-convgru", "num_blocks=2")],
)
def test_trains_inside_mlcast(archive, tmp_path, name, option):
    lacking = [name for name in ("mlcast", *NEEDED) if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"{' and '.join(lacking)} of mlcast not installed (optional peer)")
    (tmp_path / "ours.yaml").write_text(started(tmp_path, "fastds.models.mlcast", name)[0])
    data = {"zarr_path": f"'{archive}'", "input_steps": 4, "forecast_steps": 2, "epoch_size": 4}
    data |= {"width": 64, "height": 64}
    chosen = [f"set:data.dataset_factory.{key}={value}" for key, value in data.items()]
    chosen += ["set:data.batch_size=2", "set:data.num_workers=0", "set:trainer.max_epochs=2"]
    chosen += [f"set:pl_module.network.{option}"]
    fiddlers = ["fiddler:use_random_sampler", "fiddler:set_variables(standard_names=['rainfall_flux'])"]
    words = [f"--config={word}" for word in ("ours.yaml", *fiddlers, *chosen)]
    _, stderr = started(tmp_path, "mlcast", "train", *words)
    assert "completely masked" not in stderr, stderr

    path = sorted(tmp_path.rglob("*.ckpt"))[0]
    model = from_mlcast(path, input_steps=4)
    key, value = option.split("=")
    assert model.config[key] == int(value) and model.card.name == name
    fresh = fastds.models.create(name, **model.config)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    fastds.models.save(model, tmp_path / "trained.safetensors")
    out = fastds.nowcast(tmp_path / "trained.safetensors", synthetic_event(3, frames=6, shape=(64, 64)), steps=2)
    assert out.rainfall_rate.shape == (2, 64, 64) and np.isfinite(out.rainfall_rate).all()
