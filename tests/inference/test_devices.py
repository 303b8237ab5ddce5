# SPDX-License-Identifier: Apache-2.0
"""Tests of the options device and precision."""

import contextlib
import types

import pytest
import torch

import fastds
from fastds import models
from fastds.archive import workers
from fastds.cli import main
from fastds.data import coarsen_dataset, synthetic_event
from fastds.inference.execution import ExecutionConfig, check_count, inference_context, resolve_execution
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator, gridded, nowcaster, radar_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NETWORK = torch.nn.Linear(1, 1)
ABSENT = "--device must be cpu or auto on this machine, where torch finds no GPU, got 'cuda'"


@pytest.fixture(params=[True, False], ids=["with a GPU", "without"])
def gpu_there(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("cores", "most"), [(2, 64), (100, 400)])
def test_threads_are_limited_to_four_times_the_cores(monkeypatch, cores, most):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    check_count("threads", most)
    with pytest.raises(ValueError, match=f"threads must be a whole number from 1 to {most} on this machine, got"):
        check_count("threads", most + 1)


def test_resolve_device_selection(gpu_there):
    there = (GPU, "bf16") if gpu_there else (CPU, "fp32")
    for options, expected in (
        ((None, None), (CPU, "fp32")),
        ((None, "auto"), there),
        (("fp32", "auto"), (there[0], "fp32")),
        (("bf16", "cpu"), (CPU, "bf16")),
        *([((None, "cuda"), there)] if gpu_there else []),
    ):
        settings = resolve_execution(NETWORK, 2, *options)
        assert settings[:3] == (2, *expected) and settings.graphs is not None
    assert resolve_execution(NETWORK, 2, None, None, "never").graphs is None
    assert resolve_execution(None, None, None, "auto") == ExecutionConfig(None, None, "fp32")
    assert resolve_execution(torch.nn.Identity(), None, None, None).device == CPU


def test_graph_option_is_checked():
    with pytest.raises(ValueError, match="graph must be auto or never, got 'always'"):
        resolve_execution(NETWORK, None, None, None, "always")


def test_resolve_device_rejects_unavailable_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=ABSENT.removeprefix("--")):
        resolve_execution(NETWORK, None, None, "cuda")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'gpu'"):
        resolve_execution(NETWORK, None, None, "gpu")


class Moved(torch.nn.Linear):
    """Records the devices it is moved to, without moving."""

    def __init__(self):
        super().__init__(1, 1)
        self.places = []

    def to(self, device):
        self.places.append(device.type)
        return self


def test_model_returns_to_its_device_after_an_error():
    model = Moved().train()
    with contextlib.suppress(KeyError), inference_context(model, ExecutionConfig(None, GPU, "bf16")):
        assert model.places == ["cuda"] and not model.training
        raise KeyError
    assert model.places == ["cuda", "cpu"] and model.training


def radar():
    return coarsen_dataset(synthetic_event(5, 5, (64, 64))[["reflectivity"]])


@pytest.fixture(scope="module")
def results():
    """Return a small computation for each task."""
    known = synthetic_event(3, frames=20, shape=(40, 44))[["reflectivity"]]
    return {
        "radar": lambda **o: fastds.downscale(radar_model(), radar(), **o),
        "fields": lambda **o: fastds.downscale(field_model(), gridded(TEMPERATURE), scale=1.5, **o),
        "humidity": lambda **o: fastds.downscale(generator(), gridded(HUMIDITY), **o),
        "nowcast": lambda **o: fastds.nowcast(nowcaster(), known, steps=2, **o),
    }


@pytest.mark.filterwarnings("ignore:.*trained")
@pytest.mark.parametrize("task", ["radar", "fields", "humidity", "nowcast"])
def test_result_records_device_and_precision(task, results, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exact, half = results[task](device="auto"), results[task](precision="bf16", device="cpu")
    assert [exact.attrs[f"fastds_{name}"] for name in ("device", "precision")] == ["cpu", "fp32"]
    assert [half.attrs[f"fastds_{name}"] for name in ("device", "precision")] == ["cpu", "bf16"]
    name = next(name for name in exact.data_vars if exact[name].ndim >= 3)
    assert half[name].dtype == exact[name].dtype and half[name].shape == exact[name].shape
    with pytest.raises(ValueError, match=ABSENT.removeprefix("--")):
        results[task](device="cuda")


COMMANDS = {
    "downscale": "in.nc out.nc --model radar.safetensors",
    "downscale of an archive": "in.nc out.zarr --model radar.safetensors --workers 1",
    "downscale of fields": "fields.nc out.nc --scale 2 --model fields.safetensors",
    "downscale of humidity": "humid.nc out.nc --model humid.safetensors",
    "nowcast": "in.nc out.nc --model rolling.safetensors --steps 1",
    "query": "fields.nc --points points.csv --output out.csv --model fields.safetensors",
    "demo": "--output demo --model radar.safetensors --size 64",
    "finetune": "radar.safetensors --data in.nc --output out",
    "train": "radar --data.path=in.nc --output=out --max-steps=1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    networks = {"radar": radar_model(), "fields": field_model(), "humid": generator(), "rolling": nowcaster()}
    for name, network in networks.items():
        models.save(network, folder / f"{name}.safetensors")
    for name, dataset in {"in": radar(), "fields": gridded(TEMPERATURE), "humid": gridded(HUMIDITY)}.items():
        dataset.to_netcdf(folder / f"{name}.nc", engine="h5netcdf")
    (folder / "points.csv").write_text("lat,lon\n45.2,110.1\n")
    return folder


@pytest.mark.parametrize("case", COMMANDS)
def test_every_command_refuses_a_gpu_that_is_not_there(case, folder, monkeypatch, capsys):
    if case in ("finetune", "train"):
        pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(path.name for path in folder.iterdir())
    assert main([case.split()[0], *COMMANDS[case].split(), "--device=cuda"]) == 2
    assert ABSENT in capsys.readouterr().err.splitlines()[-1]
    assert not {"out.nc", "out.zarr", "out.csv"} & {path.name for path in folder.iterdir()} - set(before)


@pytest.mark.parametrize(
    ("gpus", "name", "used"),
    [(0, 1, []), (1, 1, []), (2, 0, [0]), (2, 1, [1]), (2, 5, [1]), (3, 5, [2]), (2, "tcp://127.0.0.1:9", [])],
)
def test_each_worker_has_its_own_gpu(monkeypatch, gpus, name, used):
    """Worker k computes on GPU k modulo the number of GPUs."""
    distributed = pytest.importorskip("distributed", reason="several workers need the package distributed")
    inside, calls = [], []

    @contextlib.contextmanager
    def device(number):
        inside.append(number)
        yield
        inside.clear()

    monkeypatch.setattr(distributed, "get_worker", lambda: types.SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(workers, "process_chunk", lambda *piece: calls.append((*piece, *inside)))
    workers._compute_on_worker(types.SimpleNamespace(pipeline="pipeline", option_names=None), "store", "piece")
    assert calls == [("pipeline", "store", "piece", *used)] and not inside
