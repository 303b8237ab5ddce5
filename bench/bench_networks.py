# SPDX-License-Identifier: Apache-2.0
"""Whole networks at several sizes against what else a user would run them with, in turn in one process.

Peers: the network on plain torch ("torch_eager": every op of ours by its formula, FC-ZSM's by its oracle with
grid_sample), and the file that `fastds export` writes of it, in onnxruntime and in OpenVINO. bfloat16 is autocast for
torch and OpenVINO's inference precision. Inputs are those of the export's own check. FLOPs are those that torch counts
in the plain network. A training step is mean squared error, backward and Adam, against plain torch. "graph": ours
captured by fastds.compile_graph, as the files are compiled.

FASTDS_BENCH_SECONDS: contenders whose one call takes longer are left out (default 20).
FASTDS_BENCH_FOLDER: where exported files stay, for the next run (default: a folder of this run).
"""

import functools
import os
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastds
from bench.in_turn import medians
from fastds.models import create
from fastds.models.export.signatures import signature
from fastds.models.fczsm import FCZSM
from fastds.models.fczsm.oracle import ReferenceFCZSM

SIZES = {  # pixels of the input, each way
    "fczsm": (48, 100, 200),
    "fczsm-small": (64, 200, 400),
    "ms-convlstm": (64, 160, 256),
    "ms-mim": (64, 160),
    "ms-predrnn": (64, 160),
    "db-predrnn": (64, 160),
    "simvp": (64, 128, 256),
    "nowcast-small": (64, 256, 512),
    "wgan-gp": (8, 16, 32),
    "edsr-x2": (48, 96, 192),
    "inr-small": (48, 96, 180),
}
STEPS = 5  # of a nowcast, as many as it knows
FORWARD = [
    ("fastds", torch.float32), ("fastds", torch.bfloat16), ("torch_eager", torch.float32),
    ("torch_eager", torch.bfloat16), ("onnxruntime", torch.float32), ("openvino", torch.float32),
    ("openvino", torch.bfloat16),
]  # fmt: skip
PEERS = {"forward": FORWARD, "graph": [*FORWARD[:2], *FORWARD[4:]], "training step": FORWARD[:4]}


def modes_of(sizes: tuple[int, ...], size: int) -> list[str]:
    """A graph where maps are small, a training step where they are not large."""
    return ["forward", *["graph"] * (size == sizes[0]), *["training step"] * (size != sizes[-1])]


ROWS = [
    (name, size, mode, peer, dtype)
    for name, sizes in SIZES.items()
    for size in sizes
    for mode in modes_of(sizes, size)
    for peer, dtype in PEERS[mode]
]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
FOLDER = "FASTDS_BENCH_FOLDER"
MOST_SECONDS = float(os.environ.get("FASTDS_BENCH_SECONDS", 20))


def model_of(name: str) -> torch.nn.Module:
    """With weights of a seed; a nowcast lies in the middle of its range, which it would else be cut off at."""
    torch.manual_seed(5)
    model = create(name).eval()
    for parameter, values in model.named_parameters():
        if parameter.endswith("output.bias"):
            torch.nn.init.constant_(values, 0.5)
    return model


def steps_of(model: torch.nn.Module) -> dict[str, int]:
    return {"steps": STEPS} if hasattr(model, "forecast") else {}


def inputs_of(given, size: int) -> tuple[torch.Tensor, ...]:
    return given.draw({"batch": 1, "height": size, "width": size, "points": (2 * size) ** 2}, seed=7)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Of the exported files, for the fresh processes, too, in which memory is measured."""
    os.environ.setdefault(FOLDER, str(tmp_path_factory.mktemp("networks")))


def exported(name: str) -> Path:
    """The network as an ONNX file, made once."""
    path, model = Path(os.environ[FOLDER], f"{name}.onnx"), model_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fastds.export(model, path, **steps_of(model))
    return path


@functools.cache
def has_deform_conv(name: str) -> bool:
    """Whether the exported network samples at points it chooses."""
    import onnx

    return any(node.op_type == "DeformConv" for node in onnx.load(exported(name), load_external_data=False).graph.node)


def onnxruntime(name: str, size: int):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(exported(name), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    feed = dict(zip(names, (x.numpy() for x in given_inputs(name, size)), strict=True))
    return lambda: session.run(None, feed)[0]


def openvino(name: str, size: int, dtype: torch.dtype):
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16"}
    settings |= {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    inputs = [x.numpy() for x in given_inputs(name, size)]
    graph = ov.Core().read_model(exported(name))
    graph.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
    compiled = ov.Core().compile_model(graph, "CPU", settings)
    return lambda: compiled(inputs)[0]


def given_inputs(name: str, size: int) -> tuple[torch.Tensor, ...]:
    model = model_of(name)
    return inputs_of(signature(model, **steps_of(model)), size)


def torch_network(peer: str, model: torch.nn.Module):
    """forward(*inputs) of our network, or of the same on plain torch."""
    if peer == "fastds":
        return signature(model, **steps_of(model)).module
    if isinstance(model, FCZSM) and not model.config["flow_guided"]:
        return ReferenceFCZSM(dict(model.named_parameters()), model.config)
    module = signature(model, **steps_of(model)).module

    def plainly(*inputs):
        with fastds.backend("reference"), fastds.convolution("direct"):
            return module(*inputs)

    return plainly


def build(name: str, size: int, mode: str, peer: str, dtype: torch.dtype):
    """The callable to time: the output, or the loss and all gradients in one vector."""
    if peer == "onnxruntime":
        return onnxruntime(name, size)
    if peer == "openvino":
        return openvino(name, size, dtype)
    model = model_of(name).requires_grad_(mode == "training step")
    network, inputs = torch_network(peer, model), given_inputs(name, size)
    if mode == "graph":
        graph = fastds.compile_graph(network, *inputs, dtype=dtype)
        return lambda: graph(*inputs).float()

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return network(*inputs).float()

    if mode == "forward":
        return torch.no_grad()(run)
    optimiser = torch.optim.Adam(model.parameters(), 1e-9)

    def step():
        optimiser.zero_grad()
        loss = run().square().mean()
        loss.backward()
        optimiser.step()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    return step


@functools.lru_cache(maxsize=1)
def timed(name: str, size: int, mode: str) -> dict:
    """{(peer, dtype): median seconds} in turn, of those whose call is not too long."""
    runs, alone = {}, {}
    for peer, dtype in PEERS[mode]:
        if peer == "openvino" and has_deform_conv(name):
            continue  # its reader does not know it
        run = build(name, size, mode, peer, dtype)
        run()
        start = time.perf_counter()
        run()
        alone[peer, dtype] = time.perf_counter() - start
        if alone[peer, dtype] < MOST_SECONDS / 10:
            runs[peer, dtype] = run
    return {row: seconds for row, seconds in alone.items() if seconds < MOST_SECONDS} | medians(runs)


@functools.lru_cache(maxsize=1)
def expected(name: str, size: int, mode: str):
    """By other code than ours: onnxruntime's, or plain torch's."""
    return build(name, size, mode, "torch_eager" if mode == "training step" else "onnxruntime", torch.float32)()


@functools.lru_cache(maxsize=1)
def flops(name: str, size: int, mode: str) -> float:
    with FlopCounterMode(display=False) as counter:
        build(name, size, "forward" if mode == "graph" else mode, "torch_eager", torch.float32)()
    return counter.get_total_flops()


NAMES = ["-".join(map(str, (*row[:4], str(row[4])[6:]))).replace(" ", "_") for row in ROWS]


@pytest.mark.parametrize(("name", "size", "mode", "peer", "dtype"), ROWS, ids=NAMES)
def test_network(measure, name, size, mode, peer, dtype):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    seconds = timed(name, size, mode)
    if (peer, dtype) not in seconds:
        pytest.skip(f"one call takes more than {MOST_SECONDS:.0f} s, or the peer cannot run the network")
    measure(
        build, (name, size, mode, peer, dtype), op=name, case=f"whole, {size} x {size}", mode=mode, peer=peer,
        dtype=str(dtype)[6:], flops=flops(name, size, mode), bytes=0, expected=expected(name, size, mode),
        tolerance=TOLERANCE[dtype], least_rounds=1, median=lambda: seconds[peer, dtype],
    )  # fmt: skip
