# SPDX-License-Identifier: Apache-2.0
"""Record what a refactoring must not change, and compare two records.

    python -m tests.freeze record OUT.json [--only ops networks weights commands]
    python -m tests.freeze compare BEFORE.json AFTER.json

A record holds one hash per item: outputs and gradients of ops and networks, keys of weights and fields of cards, and
the values and attributes in the files that the commands write. Bits depend on the machine and on torch, so both records
have to be made on one machine, each with its checkout first in PYTHONPATH. `compare` prints every difference and exits
with 1. Only public names are used here, so that the script runs unchanged on both checkouts.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import fastds
from fastds import models, nn, ops

VOLATILE = {
    "history",
    "mlcast_created_on",
    "date_created",
    "date_modified",
    "date_metadata_modified",
    "created",
    "fastds_version",
}
SHIPPED = sorted(p.stem for p in (Path(models.__file__).parent / "weights").glob("*.safetensors"))
TRAINED_FROM_SEED = {  # name: shapes of the inputs and the further arguments of a forward
    "fczsm-small": ([(1, 2, 1, 32, 48)], {}),
    "db-convlstm-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-convgru-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-trajgru-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-predrnn++-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-mim-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-motionrnn-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-preciplstm-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-sa-convlstm-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "db-mk-lstm-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "ms-predrnn-v2-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "ms-convlstm-s": ([(1, 5, 1, 32, 32)], {"steps": 1}),
    "nowcast-small": ([(1, 5, 1, 32, 48)], {"steps": 2}),
    "mlcast-convgru": ([(1, 6, 1, 32, 32)], {"steps": 2}),
    "simvp": ([(1, 5, 1, 32, 32)], {}),
    "inr-small": ([(1, 4, 20, 24)], {"scale": 2.5}),
    "liif": ([(1, 4, 12, 14)], {"scale": 2.0}),
    "lte": ([(1, 4, 12, 14)], {"scale": 2.0}),
    "ciaosr": ([(1, 4, 12, 14)], {"scale": 2.0}),
    "metasr": ([(1, 4, 12, 14)], {"scale": 2.0}),
    "edsr-x2": ([(1, 4, 12, 14)], {}),
    "srcnn": ([(1, 1, 16, 20)], {}),
    "srgan-small": ([(1, 1, 16, 20)], {}),
    "unet-32": ([(1, 2, 1, 32, 32)], {}),
    "wgan-gp-small": ([(1, 4, 1, 8, 8)], {"noise": "zero"}),
}


def hash_bytes(*parts: bytes | str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def hash_tensors(value: object) -> str:
    """Return the hash of all tensors in a nested result, in order, with their dtypes and shapes."""
    if isinstance(value, Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return hash_bytes(str(value.dtype), str(tuple(value.shape)), raw)
    if isinstance(value, (tuple, list)):
        return hash_bytes(*(hash_tensors(v) for v in value))
    return str(value)


def iterate_tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from iterate_tensors(v)


def run_with_gradients(call: Callable[[], object], leaves: list[Tensor]) -> str:
    """Return the hash of a result and of its gradients with respect to the leaves, for a fixed random cotangent."""
    result = call()
    generator = torch.Generator().manual_seed(7)
    outputs = [y for y in iterate_tensors(result) if y.requires_grad]
    cotangents = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    gradients = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True) if outputs else ()
    return hash_tensors([result, [g for g in gradients if g is not None]])


def record_ops() -> Iterator[tuple[str, str]]:
    """Yield forward and backward bits of every op, for both dtypes and memory formats, and of the modules."""
    for dtype in (torch.float32, torch.bfloat16):
        for channels_last in (False, True):
            yield from record_ops_of(dtype, channels_last)
    torch.manual_seed(3)
    for name, module in (
        ("ConvLSTMCell", nn.ConvLSTMCell(8, 16)),
        ("ConvGRUCell", nn.ConvGRUCell(8, 16)),
        ("DeformConv2d", nn.DeformConv2d(8, 16, 3, padding=1)),
        ("ResidualBlock", nn.ResidualBlock(8)),
    ):
        x = torch.randn(2, 8, 24, 20, requires_grad=True)
        more = (torch.randn(2, 18, 24, 20),) if name == "DeformConv2d" else ()
        yield f"nn {name}", run_with_gradients(partial(module, x, *more), [x, *module.parameters()])
        yield f"nn {name} keys", json.dumps(list(module.state_dict()))


def record_ops_of(dtype: torch.dtype, channels_last: bool) -> Iterator[tuple[str, str]]:
    """Yield forward and backward bits of every op for one dtype and memory format."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        x = scale * torch.randn(shape, generator=generator)
        x = x.to(dtype)
        if channels_last and len(shape) == 4:
            x = x.to(memory_format=torch.channels_last)
        return x.requires_grad_()

    def call(name: str, function: Callable[..., object], *tensors: Tensor, **options: object) -> tuple[str, str]:
        leaves = [*tensors, *(v for v in options.values() if isinstance(v, Tensor))]
        key = f"{name} {str(dtype).removeprefix('torch.')} {'channels_last' if channels_last else 'contiguous'}"
        return key, run_with_gradients(lambda: function(*tensors, **options), leaves)

    for c, k, h, w in ((16, 24, 20, 28), (64, 64, 33, 40), (3, 8, 7, 9)):
        x, b = draw(2, c, h, w), draw(k)
        yield call(f"conv3x3 {c}-{k} {h}x{w}", ops.conv3x3, x, draw(k, c, 3, 3, scale=0.1), b)
        yield call(f"conv1x1 {c}-{k} {h}x{w}", ops.conv1x1, x, draw(k, c, 1, 1, scale=0.1), b)
        yield call(f"conv2d {c}-{k} {h}x{w}", ops.conv2d, x, draw(k, c, 5, 5, scale=0.1), b)
        offset, mask = draw(2, 18, h, w), draw(2, 9, h, w)
        weight = draw(k, c, 3, 3, scale=0.1)
        yield call(f"deform_conv2d {c}-{k} {h}x{w}", lambda x, o, w, b, mask: ops.deform_conv2d(
            x, o, w, b, padding=1, mask=mask), x, offset, weight, b, mask=mask)  # fmt: skip
    for c, h, w in ((16, 20, 28), (32, 33, 17)):
        x, state, cell = draw(2, c, h, w), draw(2, c, h, w), draw(2, c, h, w)
        four, bias = draw(4 * c, 2 * c, 3, 3, scale=0.1), draw(4 * c)
        yield call(f"conv_lstm_cell {c} {h}x{w}", ops.conv_lstm_cell, x, state, cell, four, bias)
        two, gate_bias, one = draw(2 * c, 2 * c, 3, 3, scale=0.1), draw(2 * c), draw(c, 2 * c, 3, 3, scale=0.1)
        yield call(f"conv_gru_cell {c} {h}x{w}", ops.conv_gru_cell, x, state, two, gate_bias, one, draw(c))
        yield call(f"conv_st_lstm_gates {c} {h}x{w}", ops.conv_st_lstm_gates, x, state, cell, four, bias)
        yield call(f"lstm_gates {c}", ops.lstm_gates, draw(2, 4 * c, h, w), cell)
        yield call(f"st_lstm_gates {c}", ops.st_lstm_gates, draw(2, 4 * c, h, w), cell)
        yield call(f"memory_gates {c}", ops.memory_gates, draw(2, 3 * c, h, w), cell)
        yield call(f"output_gate {c}", ops.output_gate, draw(2, c, h, w), cell)
        yield call(f"gru_reset {c}", ops.gru_reset, draw(2, c, h, w), draw(2, c, h, w), state)
        yield call(f"gru_update {c}", ops.gru_update, draw(2, c, h, w), draw(2, c, h, w), state)
        yield call(f"traj_gru_gates {c}", ops.traj_gru_gates, draw(2, 3 * c, h, w), draw(2, 3 * c, h, w), state)
        yield call(f"pixel_shuffle {c}", lambda x: ops.pixel_shuffle(x, 2), x)
        yield call(f"pixel_unshuffle {c}", lambda x: ops.pixel_unshuffle(x, 2), draw(2, c, 2 * h, 2 * w))
        yield call(f"window_attention2d {c}", lambda q, k, v: ops.window_attention2d(q, k, v, window=10),
                   draw(2, c, 20, 30), draw(2, c, 20, 30), draw(2, c, 20, 30))  # fmt: skip


def record_networks() -> Iterator[tuple[str, str]]:
    """Yield keys and shapes of every preset, and the bits of a forward and backward pass of the small ones."""
    for name in models.available():
        with torch.device("meta"):
            state = models.create(name).state_dict()
        yield f"keys {name}", hash_bytes(json.dumps({k: list(v.shape) for k, v in state.items()}, sort_keys=True))
    for name, (shapes, options) in TRAINED_FROM_SEED.items():
        torch.manual_seed(5)
        model = models.create(name).eval()
        inputs = [torch.rand(shape, requires_grad=True) for shape in shapes]
        parameters = [p for p in model.parameters() if p.requires_grad]
        yield f"initial {name}", hash_tensors(list(model.state_dict().values()))
        call = partial(model, *inputs, **options)
        yield f"forward and backward {name}", run_with_gradients(call, inputs + parameters)
        with torch.inference_mode():
            yield f"inference {name}", hash_tensors(call())


def record_weights() -> Iterator[tuple[str, str]]:
    """Yield keys, bits and card of each shipped weights file."""
    for name in SHIPPED:
        model = models.load(name)
        yield f"keys {name}", hash_bytes(json.dumps(list(model.state_dict())))
        yield f"tensors {name}", hash_tensors(list(model.state_dict().values()))
        yield f"card {name}", hash_bytes(json.dumps(vars(models.load_card(name)), sort_keys=True, default=str))


def describe(value: object) -> object:
    """Return an attribute of a file as something that json writes."""
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def record_file(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the hashes of a file or Zarr store that a command has written."""
    if path.suffix in (".nc", ".zarr"):
        engine = "zarr" if path.suffix == ".zarr" else "h5netcdf"
        options = {"consolidated": False} if engine == "zarr" else {}
        with xr.open_dataset(path, engine=engine, mask_and_scale=False, decode_times=False, **options) as data:
            attributes = {k: describe(v) for k, v in data.attrs.items() if k not in VOLATILE}
            yield "attributes", json.dumps(attributes, sort_keys=True)
            for name, variable in sorted(data.variables.items()):
                values = np.ascontiguousarray(variable.values)
                raw = json.dumps(values.tolist()) if values.dtype.kind in "OUS" else values.tobytes()
                yield f"values of {name}", hash_bytes(str(values.dtype), str(variable.sizes), raw)
                described = {k: describe(v) for k, v in variable.attrs.items()}
                yield f"attributes of {name}", json.dumps(described, sort_keys=True)
    elif path.suffix == ".csv":
        with path.open() as file:
            yield "rows", hash_bytes(json.dumps(list(csv.reader(file))))
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            yield "tensors", hash_bytes(*(key + hash_tensors(file.get_tensor(key)) for key in sorted(file.keys())))
            yield "metadata", json.dumps(sorted(file.metadata()))
    else:
        yield "is there", str(path.exists())


def make_inputs(folder: Path, data: Path) -> None:
    """Write the small inputs of the commands: parts of real files where `data` has them, and drawn fields."""

    def crop(source: str, target: str, **parts: slice) -> None:
        with xr.open_dataset(data / source) as file:
            file.isel({k: v for k, v in parts.items() if k in file.dims}).load().to_netcdf(folder / target)

    crop("radar_fmi_20160928_5min.nc", "fmi.nc", time=slice(0, 11), y=slice(256, 352), x=slice(192, 304))
    crop("radar_knmi_20100826_5min.nc", "knmi.nc", time=slice(0, 24), y=slice(300, 428), x=slice(200, 328))
    crop("era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc", "era5.nc", time=slice(0, 4), valid_time=slice(0, 4),
         latitude=slice(20, 84), longitude=slice(100, 260), lat=slice(20, 84), lon=slice(100, 260))  # fmt: skip
    with xr.open_dataset(folder / "fmi.nc") as fine:
        means = fine.isel(time=slice(None, None, 2)).coarsen(y=2, x=2).mean(keep_attrs=True)
        means.drop_encoding().to_netcdf(folder / "coarse.nc")
    random = np.random.default_rng(4)
    y, x = np.mgrid[0:40, 0:52]
    t = 280 + 5 * np.sin(x / 9) + 3 * np.cos(y / 7) + random.normal(0, 0.1, (2, 40, 52))
    axis = ("lat", np.linspace(60, 50.25, 40), {"units": "degrees_north"})
    other = ("lon", np.linspace(0, 12.75, 52), {"units": "degrees_east"})
    fields = xr.Dataset(
        {"t2m": (("time", "lat", "lon"), t.astype("f4"), {"units": "K", "standard_name": "air_temperature"})},
        {"time": np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h"), "lat": axis, "lon": other},
    )
    fields.to_netcdf(folder / "fields.nc")
    (folder / "points.csv").write_text("name,lat,lon\na,55.1,3.3\nb,52.02,11.7\nc,58.5,0.4\n")


def list_commands() -> list[tuple[str, list[str]]]:
    """Return a name and the arguments of each command; outputs are the words that begin with `out`."""
    train = "--max_steps=3 --threads=1 --seed=1 --progress=false --output=out"
    lines = {
        "downscale": "downscale fmi.nc out.nc --threads 1",
        "downscale coarse": "downscale coarse.nc out.nc --threads 1",
        "downscale smooth": "downscale fmi.nc out.nc --smooth --threads 1",
        "downscale members": "downscale fmi.nc out.nc --members 2 --seed 3 --threads 1",
        "downscale linear_z": "downscale fmi.nc out.nc --coarsened linear_z --threads 1",
        "downscale tiles bf16": "downscale fmi.nc out.nc --tile 32 --precision bf16 --threads 1",
        "downscale time factor 4": "downscale fmi.nc out.nc --time-factor 4 --dtype float32 --threads 1",
        "downscale advection": "downscale fmi.nc out.nc --model advection --threads 1",
        "downscale pure": "downscale fmi.nc out.nc --model fczsm-small-pure --threads 1",
        "downscale zarr": "downscale fmi.nc out.zarr --threads 1",
        "downscale mlcast": "downscale fmi.nc out.zarr --to mlcast --license CC-BY-4.0 --creator A<a@b.org> "
        "--identifier FI-FMI-reflectivity --threads 1",
        "downscale fields": "downscale fields.nc out.nc --scale 2.5 --threads 1",
        "downscale fields grid": "downscale fields.nc out.nc --grid 0.1 --coarsened mean --threads 1",
        "downscale fields lanczos": "downscale fields.nc out.nc --model lanczos --scale 3 --threads 1",
        "downscale humidity": "downscale era5.nc out.nc --var r --model wgan-gp-small-x2 --members 2 --threads 1",
        "nowcast": "nowcast knmi.nc out.nc --steps 4 --threads 1",
        "nowcast members": "nowcast knmi.nc out.nc --steps 3 --members 3 --seed 2 --threads 1",
        "nowcast probability": "nowcast knmi.nc out.nc --steps 2 --probability 0.5,2 --members 4 --threads 1",
        "nowcast rate": "nowcast knmi.nc out.nc --steps 3 --quantity rate --threads 1",
        "nowcast extrapolation": "nowcast knmi.nc out.nc --steps 3 --model extrapolation --threads 1",
        "nowcast zarr": "nowcast knmi.nc out.zarr --every 10min --steps 2 --threads 1",
        "query": "query fields.nc --points points.csv --output out.csv --threads 1",
        "evaluate": "evaluate out_of_coarse.nc fmi.nc --csv out.csv",
        "convert": "convert knmi.nc out.nc",
        "convert mlcast": "convert knmi.nc out.zarr --to mlcast --license CC-BY-4.0 --creator A<a@b.org> "
        "--identifier NL-KNMI-reflectivity",
        "check": "check fmi.nc",
        "demo": "demo --size 64 --output out --threads 1",
        "export": "export fczsm-small out.onnx",
        "finetune": "finetune fczsm-small --data fmi.nc --max-steps 2 --output out --threads 1",
        "train radar": f"train radar --model.name=fczsm-small --data.path=fmi.nc --data.crop=32 {train}",
        "train nowcast": f"train nowcast --model.name=db-convlstm-small --data.path=knmi.nc --data.crop=32 {train}",
        "train fields": f"train fields --model.name=inr-small --data.path=era5.nc --data.crop=24 {train}",
    }
    return [(name, line.split()) for name, line in lines.items()]


def record_commands() -> Iterator[tuple[str, str]]:
    """Yield the exit status of each command and the hashes of what it has written."""
    data = Path(os.environ["FASTDS_DATA"]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, data)
        before = set(folder.iterdir())
        for command, words in list_commands():
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(
                [sys.executable, "-m", "fastds", *words], cwd=folder, capture_output=True, text=True, env=environment
            )
            yield f"{command}: status", str(done.returncode)
            if done.returncode:
                print(f"{command}: {done.stderr.strip()[-300:]}", file=sys.stderr)
            for path in sorted(set(folder.iterdir()) - before):
                files = sorted(p for p in path.rglob("*") if p.is_file()) if path.name == "out" else [path]
                for file in files:
                    kind = file.suffix in (".nc", ".csv", ".safetensors", ".zarr", ".onnx")
                    if kind and "checkpoints" not in file.parts and "csv" not in file.parts:
                        for what, value in record_file(file):
                            yield f"{command}: {file.relative_to(folder)}: {what}", value
                if command == "downscale coarse":
                    path.rename(folder / "out_of_coarse.nc")
                    before.add(folder / "out_of_coarse.nc")
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


RECORDERS = {"ops": record_ops, "networks": record_networks, "weights": record_weights, "commands": record_commands}


def compare(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return one line for each item that differs or is only in one of two records."""
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("output", type=Path)
    record.add_argument("--only", nargs="+", choices=RECORDERS, default=list(RECORDERS))
    against = commands.add_parser("compare")
    against.add_argument("before", type=Path)
    against.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        torch.set_num_threads(1)
        print(f"recording {fastds.__file__}", file=sys.stderr)
        items = {f"{part}: {key}": value for part in options.only for key, value in RECORDERS[part]()}
        options.output.write_text(json.dumps(items, indent=1, sort_keys=True) + "\n")
        print(f"{len(items)} items", file=sys.stderr)
        return 0
    differences = compare(json.loads(options.before.read_text()), json.loads(options.after.read_text()))
    print("\n".join(differences) or "no difference")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
