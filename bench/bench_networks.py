# SPDX-License-Identifier: Apache-2.0
"""Whole networks at several sizes compared with torch, onnxruntime and OpenVINO, timed interleaved in one process.

The peer "torch_eager" is the network with the backend "reference", and for FC-ZSM the reference implementation with
grid_sample. onnxruntime and OpenVINO run the ONNX file of `fastds export`. bfloat16 means autocast for torch and the
inference precision of OpenVINO. The inputs are those that the export draws for its check. FLOPs are counted by torch in
the peer "torch_eager". A training step is forward, mean square, backward and Adam. The mode "graph" runs
fastds.compile_graph.

FASTDS_BENCH_SECONDS: peers whose call takes longer are left out (default 20).
FASTDS_BENCH_FOLDER: folder of the exported files, which later runs use again (default: a temporary folder).
"""

import functools
import os
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import fastds
from bench.interleaved_timing import measure_medians
from bench.onnx_files import load_onnxruntime, load_openvino
from fastds.models import create
from fastds.models.export.signatures import build_signature
from fastds.models.fczsm import FCZSM
from tests.references.fczsm import ReferenceFCZSM

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
STEPS = 5  # forecast frames
FORWARD = [
    ("fastds", torch.float32), ("fastds", torch.bfloat16), ("torch_eager", torch.float32),
    ("torch_eager", torch.bfloat16), ("onnxruntime", torch.float32), ("openvino", torch.float32),
    ("openvino", torch.bfloat16),
]  # fmt: skip
PEERS = {"forward": FORWARD, "graph": [*FORWARD[:2], *FORWARD[4:]], "training step": FORWARD[:4]}


def list_modes(sizes: tuple[int, ...], size: int) -> list[str]:
    """Return the modes of a size: graphs only for the smallest one, training steps for all but the largest one."""
    return ["forward", *["graph"] * (size == sizes[0]), *["training step"] * (size != sizes[-1])]


ROWS = [
    (name, size, mode, peer, dtype)
    for name, sizes in SIZES.items()
    for size in sizes
    for mode in list_modes(sizes, size)
    for peer, dtype in PEERS[mode]
]
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
FOLDER = "FASTDS_BENCH_FOLDER"
MAX_SECONDS = float(os.environ.get("FASTDS_BENCH_SECONDS", 20))


def make_model(name: str) -> torch.nn.Module:
    """Return a network with random weights. Output biases of 0.5 keep nowcasts inside the range that clips them."""
    torch.manual_seed(5)
    model = create(name).eval()
    for parameter, values in model.named_parameters():
        if parameter.endswith("output.bias"):
            torch.nn.init.constant_(values, 0.5)
    return model


def get_step_options(model: torch.nn.Module) -> dict[str, int]:
    return {"steps": STEPS} if hasattr(model, "forecast") else {}


def draw_inputs(export_signature, size: int) -> tuple[torch.Tensor, ...]:
    return export_signature.draw({"batch": 1, "height": size, "width": size, "points": (2 * size) ** 2}, seed=7)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Set the folder of the exported files in the environment, which fresh processes inherit."""
    os.environ.setdefault(FOLDER, str(tmp_path_factory.mktemp("networks")))


def export_once(name: str) -> Path:
    """Return the network as an ONNX file, which is written if it does not exist."""
    path, model = Path(os.environ[FOLDER], f"{name}.onnx"), make_model(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fastds.export(model, path, **get_step_options(model))
    return path


@functools.cache
def has_deform_conv(name: str) -> bool:
    """Return True if the exported network contains deformable convolutions."""
    import onnx

    return any(
        node.op_type == "DeformConv" for node in onnx.load(export_once(name), load_external_data=False).graph.node
    )


def make_inputs(name: str, size: int) -> tuple[torch.Tensor, ...]:
    model = make_model(name)
    return draw_inputs(build_signature(model, **get_step_options(model)), size)


def make_forward(peer: str, model: torch.nn.Module):
    """Return the forward pass of the network of fastds, or of the same network in PyTorch."""
    if peer == "fastds":
        return build_signature(model, **get_step_options(model)).module
    if isinstance(model, FCZSM) and not model.config["flow_guided"]:
        return ReferenceFCZSM(dict(model.named_parameters()), model.config)
    module = build_signature(model, **get_step_options(model)).module

    def run_reference(*inputs):
        with fastds.use_backend("reference"), fastds.use_conv_algorithm("direct"):
            return module(*inputs)

    return run_reference


def build(name: str, size: int, mode: str, peer: str, dtype: torch.dtype):
    """Build the callable to time.

    Args:
        name: preset.
        size: pixels of the input, each way.
        mode: "forward" or "graph" for the output, "training step" for the loss and all gradients in one vector.
        peer: peer of the row.
        dtype: bfloat16 for autocast or the inference precision of OpenVINO.
    """
    if peer == "onnxruntime":
        return load_onnxruntime(export_once(name), make_inputs(name, size), torch.get_num_threads())
    if peer == "openvino":
        return load_openvino(export_once(name), make_inputs(name, size), torch.get_num_threads(), dtype)
    model = make_model(name).requires_grad_(mode == "training step")
    network, inputs = make_forward(peer, model), make_inputs(name, size)
    if mode == "graph":
        graph = fastds.compile_graph(network, *inputs, dtype=dtype)
        return lambda: graph(*inputs).float()

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return network(*inputs).float()

    if mode == "forward":
        return torch.no_grad()(run)
    optimizer = torch.optim.Adam(model.parameters(), 1e-9)

    def step():
        optimizer.zero_grad()
        loss = run().square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    return step


@functools.lru_cache(maxsize=1)
def measure_seconds(name: str, size: int, mode: str) -> dict:
    """Return the median seconds by (peer, dtype).

    Calls below MAX_SECONDS / 10 are timed interleaved, longer ones once, and those above MAX_SECONDS are left out.
    """
    runs, alone = {}, {}
    for peer, dtype in PEERS[mode]:
        if peer == "openvino" and has_deform_conv(name):
            continue  # OpenVINO cannot read the op
        run = build(name, size, mode, peer, dtype)
        run()
        start = time.perf_counter()
        run()
        alone[peer, dtype] = time.perf_counter() - start
        if alone[peer, dtype] < MAX_SECONDS / 10:
            runs[peer, dtype] = run
    return {row: seconds for row, seconds in alone.items() if seconds < MAX_SECONDS} | measure_medians(runs)


@functools.lru_cache(maxsize=1)
def compute_expected(name: str, size: int, mode: str):
    """Compute the expected result by onnxruntime, or by PyTorch for a training step."""
    return build(name, size, mode, "torch_eager" if mode == "training step" else "onnxruntime", torch.float32)()


@functools.lru_cache(maxsize=1)
def count_flops(name: str, size: int, mode: str) -> float:
    with FlopCounterMode(display=False) as counter:
        build(name, size, "forward" if mode == "graph" else mode, "torch_eager", torch.float32)()
    return counter.get_total_flops()


NAMES = ["-".join(map(str, (*row[:4], str(row[4])[6:]))).replace(" ", "_") for row in ROWS]


@pytest.mark.parametrize(("name", "size", "mode", "peer", "dtype"), ROWS, ids=NAMES)
def test_network(measure, name, size, mode, peer, dtype):
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    seconds = measure_seconds(name, size, mode)
    if (peer, dtype) not in seconds:
        pytest.skip(f"one call takes more than {MAX_SECONDS:.0f} s, or the peer cannot run the network")
    measure(
        build, (name, size, mode, peer, dtype), op=name, case=f"whole, {size} x {size}", mode=mode, peer=peer,
        dtype=str(dtype)[6:], flops=count_flops(name, size, mode), bytes=0, expected=compute_expected(name, size, mode),
        tolerance=TOLERANCE[dtype], least_rounds=1, get_median=lambda: seconds[peer, dtype],
    )  # fmt: skip
