# SPDX-License-Identifier: Apache-2.0
"""Tests that converted MS-RNN weights give the results of the published formulas."""

import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds import models
from fastds.data import synthetic_event
from fastds.models.db_rnn.convert import from_published

C, LINKS = 4, 3
f64 = torch.float64
LAYERS = {  # of a cell: outputs over C, inputs over C, side of the kernel
    "convlstm": {"_conv_x2h": (4, 1, 3), "_conv_h2h": (4, 1, 3)},
    "predrnn": {
        "_conv_x2h": (4, 1, 3), "_conv_h2h": (4, 1, 3), "_conv_c2o": (1, 1, 3), "_conv_x2h_m": (3, 1, 3),
        "_conv_m2h_m": (3, 1, 3), "_conv_m2o": (1, 1, 3), "_conv_c_m": (1, 2, 1),
    },
    "trajgru": {
        "_conv_x2h": (3, 1, 3), "_conv_x2f": (1, 1, 3), "_conv_h2f": (1, 1, 3), "_conv_flow": (2 * LINKS / C, 1, 3),
        "project": (3, LINKS, 1),
    },
}  # fmt: skip


def published(cell):
    """Return a random state with the keys and shapes of a published checkpoint."""
    torch.manual_seed(3)
    shapes = {"embed.conv_embed": (C, 1, 1, 1), "fc.conv_fc": (1, C, 1, 1)}
    for layer in range(6):
        for name, (outputs, inputs, k) in LAYERS[cell].items():
            shapes[f"rnns.lstm.{layer}.{name}"] = (int(outputs * C), inputs * C, k, k)
    state = {}
    for name, shape in shapes.items():
        state[f"module.{name}.weight"] = torch.randn(shape) / (shape[1] * shape[2] ** 2) ** 0.5
        state[f"module.{name}.bias"] = 0.3 * torch.randn(shape[0])
    return state


class Cell:
    """Computes a published cell by its formulas."""

    def __init__(self, kind, state, layer):
        self.kind, self.state, self.prefix, self.h, self.c = kind, state, f"module.rnns.lstm.{layer}.", None, None

    def conv(self, name, x):
        weight, bias = (self.state[f"{self.prefix}{name}.{part}"].double() for part in ("weight", "bias"))
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def __call__(self, x, m):
        zero = torch.zeros_like(x)
        h, c, m = (zero if value is None else value for value in (self.h, self.c, m))
        if self.kind == "trajgru":
            self.h = self.gathered(x, h)
            return self.h, None
        i, f, g, o = (self.conv("_conv_x2h", x) + self.conv("_conv_h2h", h)).chunk(4, 1)
        self.c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        if self.kind == "convlstm":
            self.h = o.sigmoid() * self.c.tanh()
            return self.h, None
        i, f, g = (self.conv("_conv_x2h_m", x) + self.conv("_conv_m2h_m", m)).chunk(3, 1)
        m = f.sigmoid() * m + i.sigmoid() * g.tanh()
        o = (o + self.conv("_conv_c2o", self.c) + self.conv("_conv_m2o", m)).sigmoid()
        self.h = o * self.conv("_conv_c_m", torch.cat([self.c, m], 1)).tanh()
        return self.h, m

    def gathered(self, x, h):
        flows = self.conv("_conv_flow", F.leaky_relu(self.conv("_conv_x2f", x) + self.conv("_conv_h2f", h), 0.2))
        height, width = h.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        links = []
        for u, v in (flow.unbind(1) for flow in flows.unflatten(1, (-1, 2)).unbind(1)):
            place = torch.stack([2 * (columns - u) / (width - 1) - 1, 2 * (rows - v) / (height - 1) - 1], -1)
            links.append(F.grid_sample(h, place, align_corners=False))
        zx, rx, nx = self.conv("_conv_x2h", x).chunk(3, 1)
        zh, rh, nh = self.conv("project", torch.cat(links, 1)).chunk(3, 1)
        z = (zx + zh).sigmoid()
        return (1 - z) * F.leaky_relu(nx + (rx + rh).sigmoid() * nh, 0.2) + z * h


def rolled(kind, state, frames, steps):
    """Run the published network and return all its outputs (B, m + steps - 1, 1, H, W)."""
    cells, m, y, found = [Cell(kind, state, layer) for layer in range(6)], None, None, []
    embed, fc = ([state[f"module.{name}.{part}"].double() for part in ("weight", "bias")]
                 for name in ("embed.conv_embed", "fc.conv_fc"))  # fmt: skip

    def resized(x, layer):
        if x is None or layer == 2 or layer == 5:
            return x
        return F.max_pool2d(x, 2) if layer < 2 else F.interpolate(x, scale_factor=2, mode="bilinear")

    for k in range(frames.shape[1] + steps - 1):
        x, outputs = F.conv2d(frames[:, k] if k < frames.shape[1] else y, *embed), []
        for layer, cell in enumerate(cells):
            h, m = cell(x, m)
            outputs.append(h)
            x, m = resized(h, layer), resized(m, layer)
            if layer == 3:
                x = x + outputs[1]
            elif layer == 4:
                x = x + outputs[0]
        y = F.conv2d(x, *fc)
        found.append(y)
    return torch.stack(found, 1)


@pytest.mark.parametrize("kind", LAYERS)
def test_published_weights_give_the_published_numbers(kind):
    state, frames = published(kind), torch.rand(2, 3, 1, 16, 24, dtype=f64)
    model = from_published(state).double()
    (y,) = model(frames, steps=3)
    torch.testing.assert_close(y, rolled(kind, state, frames, 3), rtol=1e-6, atol=1e-8)
    assert model.config["cell"] == kind and model.config["hidden"] == C


def test_converted_networks_nowcast(tmp_path):
    model = from_published(published("convlstm"), input_steps=4)
    assert (model.card.name, model.card.floor_dbz, model.card.ceiling_dbz) == ("ms-convlstm", -10.0, 60.0)
    models.save(model, tmp_path / "w.safetensors")
    out = fastds.nowcast(tmp_path / "w.safetensors", synthetic_event(1, frames=5, shape=(32, 40)), steps=2)
    assert out.rainfall_rate.shape == (2, 32, 40)


def test_convert_rejects_unsuitable_checkpoints():
    state = published("predrnn")
    with pytest.raises(
        ValueError, match="state must be that of MS-ConvLSTM, MS-PredRNN or MS-TrajGRU of MS-RNN, got a cell"
    ):
        from_published({k: v for k, v in state.items() if "_conv_c_m" not in k})
    with pytest.raises(ValueError, match=r"state does not fit an MS-RNN with predrnn cells: 'rnns.lstm.5._conv_x2h"):
        from_published({k: v for k, v in state.items() if ".5._conv_x2h." not in k})
    with pytest.raises(ValueError, match="predrnn cells: it has further keys, such as rnns.lstm.6.x"):
        from_published(state | {"module.rnns.lstm.6.x": torch.zeros(1)})
    state["module.fc.conv_fc.weight"] = torch.zeros(2, C, 1, 1)
    with pytest.raises(ValueError, match="predrnn cells: Error.* size mismatch for output.weight"):
        from_published(state)
    with pytest.raises(ValueError, match="got a cell with the layers"):
        from_published({"a": torch.zeros(1)})
