# SPDX-License-Identifier: Apache-2.0
"""Calls of ops, cells and networks that bench.contention times, by fastds, PyTorch, onnxruntime and OpenVINO."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import fastds
from bench import deform_conv2d_peers
from bench.onnx_files import export_function, load_onnxruntime, load_openvino
from bench.torch_cells import compute_lstm_cell
from fastds import nn, ops
from fastds.models.export.signatures import build_signature

PEERS = ("torch", "onnxruntime", "openvino")
# module whose absence leaves out the rows of a peer
_PACKAGES = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "onnxscript")}


@dataclasses.dataclass(frozen=True)
class Call:
    """A computation by one library.

    Attributes:
        name: name of the computation.
        library: "fastds" or one of PEERS.
        build: function of the number of threads that returns the callable to time.
    """

    name: str
    library: str
    build: Callable[[int], Callable[[], object]]

    @property
    def label(self) -> str:
        """Name of the row."""
        return self.name if self.library == "fastds" else f"{self.library}: {self.name}"


def find_missing(peers: tuple[str, ...] = PEERS) -> dict[str, str]:
    """Return the packages that peers need and that are not installed, by peer."""
    missing = {peer: [name for name in _PACKAGES[peer] if importlib.util.find_spec(name) is None] for peer in peers}
    return {peer: " and ".join(names) for peer, names in missing.items() if names}


def list_calls(folder: Path, peers: tuple[str, ...] = PEERS, only: str = "") -> Iterator[Call]:
    """Yield the calls. Peers that are not installed are left out.

    Args:
        folder: folder of the exported files, which are written for the peers that read them.
        peers: libraries besides fastds.
        only: part of the name of the computation.
    """
    found = [peer for peer in peers if peer not in find_missing(peers)]
    for number, (name, make) in enumerate(_COMPUTATIONS.items()):
        if only in name:
            torch.manual_seed(0)
            builders = make(folder / f"{number}.onnx")
            yield from (Call(name, library, builders[library]) for library in ("fastds", *found) if library in builders)


Builders = dict[str, Callable[[int], Callable[[], object]]]


def _share(call: Callable[[], object]) -> Callable[[int], Callable[[], object]]:
    """Return the function `build` of a call that follows the number of threads of torch."""
    return lambda threads: call


def _read_file(export: Callable[[], Path], inputs: tuple[torch.Tensor, ...], openvino: bool = True) -> Builders:
    """Return the builders of the peers that read an ONNX file, which is written when it is first needed."""
    written: list[Path] = []

    def write() -> Path:
        if not written:
            written.append(export())
        return written[0]

    builders: Builders = {"onnxruntime": lambda threads: load_onnxruntime(write(), inputs, threads)}
    if openvino:
        builders["openvino"] = lambda threads: load_openvino(write(), inputs, threads)
    return builders


def _make_deform_conv2d(channels: int, side: int) -> Builders:
    case = deform_conv2d_peers.Case(
        "contention", "", 1, channels, channels, side, side, 1, kernel=(3, 3), padding=(1, 1), dilation=1
    )
    x, offset, mask, weight, bias = case.make_args()
    x = x.to(memory_format=torch.channels_last)

    def build(peer: str) -> Callable[[int], Callable[[], object]]:
        def with_threads(threads: int) -> Callable[[], object]:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)  # read by the peer when it is built
            try:
                return deform_conv2d_peers.PEERS[peer](case, "forward", torch.float32)
            finally:
                torch.set_num_threads(before)

        return with_threads

    own = _share(lambda: ops.deform_conv2d(x, offset, weight, bias, mask=mask, padding=1))
    return {"fastds": own, "onnxruntime": build("onnxruntime"), "openvino": build("openvino")}


def _make_conv3x3(path: Path, channels: int, side: int) -> Builders:
    x, weight = torch.rand(1, channels, side, side), torch.rand(channels, channels, 3, 3)
    own = [value.to(memory_format=torch.channels_last) for value in (x, weight)]

    def convolve(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=1)

    return {
        "fastds": _share(lambda: ops.conv3x3(*own)),
        "torch": _share(lambda: F.conv2d(*own, padding=1)),
        **_read_file(lambda: export_function(convolve, [x], path), (x,)),
    }


def _make_lstm_cell(path: Path) -> Builders:
    cell = nn.ConvLSTMCell(32, 32).requires_grad_(False)
    x, *state = (torch.rand(1, 32, 64, 64) for _ in range(3))
    own = [value.to(memory_format=torch.channels_last) for value in (x, *state)]

    def compute(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return compute_lstm_cell(x, h, c, cell.gates.weight, cell.gates.bias)

    return {
        "fastds": _share(lambda: cell(own[0], (own[1], own[2]))),
        "torch": _share(lambda: compute(*own)),
        **_read_file(lambda: export_function(compute, [x, *state], path), (x, *state)),
    }


def _make_network(path: Path, model: torch.nn.Module, openvino: bool, **options: int) -> Builders:
    signature = build_signature(model.eval(), **options)
    inputs = signature.draw({"batch": 1, "height": 64, "width": 64}, seed=0)

    def run_reference() -> object:
        with fastds.use_backend("reference"), fastds.use_conv_algorithm("direct"):
            return signature.module(*inputs)

    def export() -> Path:
        fastds.export(model, path, **options)
        return path

    return {
        "fastds": _share(lambda: signature.module(*inputs)),
        "torch": _share(run_reference),
        **_read_file(export, inputs, openvino),
    }


_COMPUTATIONS: dict[str, Callable[[Path], Builders]] = {
    "deform_conv2d, 32 channels, 32 x 32": lambda path: _make_deform_conv2d(32, 32),
    "deform_conv2d, 64 channels, 100 x 100": lambda path: _make_deform_conv2d(64, 100),
    "conv3x3, 16 channels, 32 x 32": lambda path: _make_conv3x3(path, 16, 32),
    "conv3x3, 64 channels, 100 x 100": lambda path: _make_conv3x3(path, 64, 100),
    "ConvLSTMCell, 32 channels, 64 x 64": _make_lstm_cell,
    # OpenVINO cannot read the deformable convolutions of FC-ZSM
    "fczsm-small, 64 x 64": lambda path: _make_network(path, fastds.load("fczsm-small"), openvino=False),
    "network of nowcast-small, 64 x 64": lambda path: _make_network(
        path, fastds.load("nowcast-small").network, openvino=True, frames=4, steps=6
    ),
}
