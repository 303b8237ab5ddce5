# SPDX-License-Identifier: Apache-2.0
"""Tests of kernel counts and memory traffic, including the tables of docs/kernels.md."""

import collections
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gpuless.counts import counted, estimated_ms
from gpuless.fake_cuda import on_cuda
from torch.utils.flop_counter import FlopCounterMode

import fastds
from fastds.models.export import deform
from fastds.models.graph import capture_mode, freeze_model
from fastds.ops import conv_gru_cell, conv_lstm_cell
from fastds.ops.core.registry import OPS
from fastds.ops.impl.deform_conv2d import guided

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


def draw(*shape):
    return torch.rand(shape, device="cuda")


INPUTS = {  # by network, as the table names them
    "fczsm": lambda: (draw(1, 2, 1, 200, 200),),
    "fczsm-small": lambda: (draw(1, 2, 1, 256, 256), None, draw(1, 1, 2, 2, 256, 256)),
    "nowcast-small": lambda: (draw(1, 3, 1, 256, 256), 12, draw(1, 2, 256, 256)),
    "ms-convlstm": lambda: (draw(1, 5, 1, 160, 160), 5),
    "db-predrnn": lambda: (draw(1, 5, 1, 160, 160), 5),
    "simvp": lambda: (draw(1, 5, 1, 160, 160), 5),
    "mlcast-convgru": lambda: (draw(2, 6, 1, 256, 256), 12),
    "wgan-gp": lambda: (draw(1, 4, 1, 32, 64),),
    "inr": lambda: (draw(1, 4, 180, 360), (720, 1440)),
    "inr-small": lambda: (draw(1, 4, 180, 360), (720, 1440)),
    "liif": lambda: (draw(1, 4, 180, 360), (720, 1440)),
    "edsr-x4": lambda: (draw(1, 4, 180, 360),),
    "unet": lambda: (draw(1, 2, 1, 200, 200),),
}


def rows(table):
    """Return a dictionary from the first cell of each row of a table of PAGE to the other cells."""
    text = PAGE.read_text().partition(f"| {table} |")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
    return {first.strip("`"): rest for first, *rest in lines}


def flops(monkeypatch, call):
    """Return the FLOPs of a call by the formulas in torch."""
    counter = FlopCounterMode(display=False)
    with monkeypatch.context() as patched:  # the same products in fewer operations
        patched.setattr(guided, "reference_deform_conv2d", deform.deform_conv2d)
        patched.setattr(OPS["deform_conv2d"], "reference", deform.deform_conv2d)
        with torch.no_grad(), capture_mode(torch.bfloat16), fastds.use_backend("reference"), counter:
            call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", INPUTS)
def test_launches_of_networks(name, fake_cuda, monkeypatch):
    model, given = on_cuda(name), INPUTS[name]()
    model = freeze_model(model, torch.bfloat16)
    kernels, work = counted(monkeypatch, lambda: model(*given)), flops(monkeypatch, lambda: model(*given))
    found = [str(len(kernels)), f"{sum(n for _, n in kernels) / 1e9:.1f}", f"{work / 1e12:.2f}"]
    assert rows("network")[name][1:] == [*found, f"{estimated_ms(kernels, work):.1f}"]


def lstm_of_torch(x, h, c, weight, bias):
    i, f, g, o = F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_of_torch(h, x, gates_weight, gates_bias, weight, bias):
    z, r = torch.sigmoid(F.conv2d(torch.cat([x, h], 1), gates_weight, gates_bias, padding=1)).chunk(2, 1)
    candidate = torch.tanh(F.conv2d(torch.cat([x, r * h], 1), weight, bias, padding=1))
    return (1 - z) * h + z * candidate


CELLS = {
    "conv_lstm_cell": (conv_lstm_cell, lstm_of_torch, 3, [(96, 48, 3, 3), (96,)]),
    "conv_gru_cell": (conv_gru_cell, gru_of_torch, 2, [(48, 48, 3, 3), (48,), (24, 48, 3, 3), (24,)]),
}


@pytest.mark.parametrize("name", CELLS)
def test_launches_of_cells_compared_with_torch(name, fake_cuda, monkeypatch):
    ours, of_torch, maps, parameters = CELLS[name]
    maps = [draw(4, 24, 160, 160).contiguous(memory_format=torch.channels_last) for _ in range(maps)]
    wide = [*(t.bfloat16() for t in maps[:2]), *maps[2:]]  # a memory of ours stays in float32
    parameters = [draw(*shape).bfloat16() for shape in parameters]
    work, found = flops(monkeypatch, lambda: of_torch(*maps, *parameters)), []
    for cell, given in ((ours, wide), (of_torch, [t.bfloat16() for t in maps])):
        kernels = counted(monkeypatch, lambda: cell(*given, *parameters))  # noqa: B023
        found += [str(len(kernels)), f"{sum(n for _, n in kernels) / 1e6:.0f}", f"{estimated_ms(kernels, work):.3f}"]
    assert rows("cell")[name] == found and float(found[5]) > 2 * float(found[2])


PRODUCTS = ("convolution", "_convolution_kernel", "guided_deform_conv2d")


def test_launches_and_traffic_of_fczsm(fake_cuda, monkeypatch):
    """Convolutions run with separate torch operators, with a fused epilogue kernel, and as one kernel."""
    after = ("_epilogue_kernel", "bias", "add_", "leaky_relu_", "relu_", "pixel_shuffle", "clone")
    model, ways = freeze_model(on_cuda("fczsm"), torch.bfloat16), []
    for algorithm, in_one_pass in (("direct", False), ("direct", True), ("auto", True)):
        with fastds.use_conv_algorithm(algorithm):
            ways.append(counted(monkeypatch, lambda: model(draw(1, 2, 1, 200, 200)), in_one_pass))
    launches = [collections.Counter(name for name, _ in kernels) for kernels in ways]
    assert [n["convolution"] for n in launches] == [276, 276, 8] and launches[2]["_convolution_kernel"] == 258
    assert [sum(n.values()) for n in launches] == [966, 777, 445], launches

    def gigabytes(chosen):
        return [round(sum(n for name, n in kernels if chosen(name)) / 1e9, 1) for kernels in ways]

    assert gigabytes(lambda name: name in after) == [7.6, 5.1, 0.0]
    assert gigabytes(lambda name: name not in PRODUCTS) == [10.0, 7.5, 1.2]
