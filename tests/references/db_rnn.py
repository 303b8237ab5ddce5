# SPDX-License-Identifier: Apache-2.0
"""Reference implementation of the cells and networks of the DB-RNN family in plain PyTorch.

Each term of an equation is a separate convolution; nothing is merged or fused. The weights are those of the modules
under test. MACS counts multiply-adds as the paper does: convolutions without bias, and 11 per pixel of a bilinear
upsampling.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step: TypeAlias = tuple[Tensor, Any, Tensor | None]  # h, the state of the cell, zigzag memory

MACS = [0]
s, t = torch.sigmoid, torch.tanh


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    y = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, **options)
    MACS[0] += y.numel() * weight[0].numel()
    return y


def layer(x: Tensor, module: nn.Module) -> Tensor:
    return conv(x, module.weight, module.bias)


def summed(module: nn.Module, *sources: Tensor) -> Tensor:
    """Add separate convolutions with separate biases."""
    parts = zip(sources, module.weights(), module.bias, strict=True)
    return sum(conv(x, weight, bias) for x, weight, bias in parts)


def up(x: Tensor) -> Tensor:
    y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    MACS[0] += 11 * y.numel()
    return y


def down(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def sample(x: Tensor, flow: Tensor, align_corners: bool = False) -> Tensor:
    """Sample bilinearly at p + flow with zeros outside, by grid_sample.

    Args:
        x: (B, C, H, W).
        flow: (B, 2, H, W), (along x, along y) in pixels.
        align_corners: as for fastds.models.db_rnn.cells.sample_links.
    """
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height).to(x), torch.arange(width).to(x), indexing="ij")
    along_x = 2 * (columns + flow[:, 0]) / max(width - 1, 1) - 1
    along_y = 2 * (rows + flow[:, 1]) / max(height - 1, 1) - 1
    grid = torch.stack([along_x, along_y], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)


def zeros(x: Tensor, channels: int | None = None) -> Tensor:
    return x.new_zeros(x.shape[0], channels or x.shape[1], *x.shape[2:])


def conv_lstm(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h, c = state or (zeros(x), zeros(x))
    i, f, g, o = summed(cell.gates, x, h).chunk(4, 1)
    c = s(f) * c + s(i) * t(g)
    h = s(o) * t(c)
    return h, (h, c), None


def conv_gru(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h = zeros(x) if state is None else state
    z, r = s(summed(cell.gates, x, h)).chunk(2, 1)
    n = t(summed(cell.candidate, x, r * h))
    h = z * h + (1 - z) * n
    return h, h, None


def traj_gru(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h = zeros(x) if state is None else state
    zx, rx, nx = layer(x, cell.input).chunk(3, 1)
    flow = layer(F.leaky_relu(summed(cell.flow_hidden, x, h), 0.2), cell.flow)
    links = cell.project_weight.shape[2]
    warped = [sample(h, -flow[:, 2 * k : 2 * k + 2], cell.warp_align_corners) for k in range(links)]
    weight = cell.project_weight.permute(0, 2, 1).flatten(1)[:, :, None, None]  # links outside, channels inside
    zh, rh, nh = conv(torch.cat(warped, 1), weight, cell.project_bias).chunk(3, 1)
    z, r = s(zx + zh), s(rx + rh)
    n = F.leaky_relu(nx + r * nh, 0.2)
    h = (1 - z) * n + z * h
    return h, h, None


def spatial(module: nn.Module, x: Tensor, m: Tensor, q: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute m' and h' of an ST-LSTM, and the output gate."""
    i, f, g = summed(module.memory, x, m).chunk(3, 1)
    m = s(f) * m + s(i) * t(g)
    o = s(q + summed(module.output, c, m))
    return m, o * t(layer(torch.cat([c, m], 1), module.mix)), o


def pred_rnn(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h, c = state or (zeros(x), zeros(x))
    m = zeros(x) if m is None else m
    i, f, g, q = summed(cell.gates, x, h).chunk(4, 1)
    c = s(f) * c + s(i) * t(g)
    m, h, _ = spatial(cell.spatial, x, m, q, c)
    return h, (h, c), m


def pred_rnn_pp(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h, c, z = state or (zeros(x), zeros(x), zeros(x))
    m = zeros(x) if m is None else m
    if cell.layer == 1:
        p, q = summed(cell.highway.gates, x, z).chunk(2, 1)
        x = z = s(q) * t(p) + (1 - s(q)) * z
    i, f, g = layer(torch.cat([x, h, c], 1), cell.temporal).chunk(3, 1)
    c = s(f) * c + s(i) * t(g)
    i, f, g = layer(torch.cat([x, c, m], 1), cell.spatial).chunk(3, 1)
    m = s(f) * t(layer(m, cell.forget)) + s(i) * t(g)
    o = t(layer(torch.cat([x, c, m], 1), cell.output))
    h = o * t(layer(torch.cat([c, m], 1), cell.mix))
    return h, (h, c, z), m


def mim_core(
    cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None
) -> tuple[Tensor, Any, Tensor, Tensor]:
    h, c, n, memory = state or (zeros(x),) * 4
    m = zeros(x) if m is None else m
    if cell.layer == 0:
        i, f, g, q = summed(cell.gates, x, h).chunk(4, 1)
        c = s(f) * c + s(i) * t(g)
    else:
        cascade = cell.cascade
        d = x - (zeros(x) if previous is None else previous)
        i, f, g = summed(cascade.changing, d, n).chunk(3, 1)
        n = s(f) * n + s(i) * t(g)
        changed = s(summed(cascade.changing_output, d, n)) * t(n)
        i, f, g, q = summed(cascade.steady, changed, c).chunk(4, 1)
        memory = s(f) * memory + s(i) * t(g)
        steady = s(q + layer(memory, cascade.steady_output)) * t(memory)
        i, g, q = summed(cell.gates, x, h).chunk(3, 1)
        c = steady + s(i) * t(g)
    m, h, o = spatial(cell.spatial, x, m, q, c)
    return h, (h, c, n, memory), m, o


def mim(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    return mim_core(cell, x, state, m, previous)[:3]


def motion_gru(cell: nn.Module, h: Tensor, state: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    e = F.conv2d(h, cell.encode.weight, cell.encode.bias, stride=2)
    MACS[0] += e.numel() * cell.encode.weight[0].numel()
    flow, trend = state or (zeros(e, 18),) * 2
    u, r = s(layer(torch.cat([e, flow], 1), cell.gates)).chunk(2, 1)
    c = t(layer(torch.cat([e, r * flow], 1), cell.candidate))
    trend = trend + 0.5 * (flow - trend)
    flow = u * c + (1 - u) * flow + trend
    mask = s(layer(e, cell.mask))
    moved = [mask[:, j : j + 1] * sample(e, flow[:, 2 * j : 2 * j + 2], cell.warp_align_corners) for j in range(9)]
    moved = layer(torch.stack(moved, 2).flatten(1, 2), cell.gather)  # channels outside, links inside
    y = F.conv_transpose2d(moved, cell.decode.weight, cell.decode.bias, stride=2, padding=1)
    MACS[0] += y.numel() * moved.shape[1] * 16  # the paper's counter: every output as if all 16 taps met it
    g = s(layer(torch.cat([y, h], 1), cell.blend))
    return g * h + (1 - g) * y, (flow, trend)


def motion_rnn(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    inner, motion = state or (None, None)
    h, inner, m, o = mim_core(cell, x, inner, m, previous)
    if cell.layer < cell.layers - 1:
        moved, motion = motion_gru(cell.motion, h, motion)
        h = moved + (1 - o) * x
    return h, ((h, *inner[1:]), motion), m


def attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Compute window attention by unfolding all windows; the zeros outside the field take part."""
    batch, channels, height, width = q.shape
    half = window // 2
    pad = (half, window - half - 1) * 2
    unfold = [F.unfold(F.pad(x, pad), window).view(batch, channels, window**2, height * width) for x in (k, v)]
    weights = torch.einsum("bcp,bcnp->bnp", q.flatten(2), unfold[0]).softmax(1)
    return torch.einsum("bnp,bcnp->bcp", weights, unfold[1]).view_as(q)


def precip_lstm(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h, c, ms, mt = state or (zeros(x),) * 4
    m = zeros(x) if m is None else m
    q, k, v = conv(x, cell.attention.qkv.weight).chunk(3, 1)
    y = x + layer(attention(q, k, v, cell.attention.window), cell.attention.output)
    d = x - (zeros(x) if previous is None else previous)
    i, f, g, q = summed(cell.gates, y, h).chunk(4, 1)
    c = s(f) * c + s(i) * t(g)
    updated = []
    for gates, source, memory in ((cell.zigzag_gates, y, m), (cell.spatial_gates, y, ms), (cell.temporal_gates, d, mt)):
        i, f, g = summed(gates, source, memory).chunk(3, 1)
        updated.append(s(f) * memory + s(i) * t(g))
    m, ms, mt = updated
    o = s(q + summed(cell.output, c, ms, mt, m))
    h = o * t(layer(torch.cat([c, ms, mt, m], 1), cell.mix))
    return h, (h, c, ms, mt), m


def sa_conv_lstm(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h, c, memory = state or (zeros(x),) * 3
    i, f, g, o = summed(cell.gates, x, h).chunk(4, 1)
    c = s(f) * c + s(i) * t(g)
    h = s(o) * t(c)
    module = cell.attention
    q, k_h, v_h = layer(h, module.of_h).split(module.sizes, 1)
    k_m, v_m = layer(memory, module.of_m).split(module.sizes[1:], 1)

    def attend(k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bcp,bcn->bpn", q.flatten(2), k.flatten(2)).softmax(2)
        return torch.einsum("bpn,bcn->bcp", weights, v.flatten(2)).view_as(v)

    z = layer(torch.cat([attend(k_h, v_h), attend(k_m, v_m)], 1), module.mix)
    i, g, o = summed(module.gates, z, h).chunk(3, 1)
    memory = (1 - s(i)) * memory + s(i) * t(g)
    h = s(o) * memory
    return h, (h, c, memory), None


def mk_lstm(cell: nn.Module, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
    h, c, wide = state or (zeros(x),) * 3
    i, f, g, q = summed(cell.gates, x, h).chunk(4, 1)
    c = s(f) * c + s(i) * t(g)
    i, f, g, wide_q = summed(cell.wide_gates, x, h).chunk(4, 1)
    wide = s(f) * wide + s(i) * t(g)
    o = s(q + wide_q + layer(c, cell.output) + summed(cell.wide_output, wide))
    h = o * t(layer(torch.cat([c, wide], 1), cell.mix))
    return h, (h, c, wide), None


STEPS = {
    "convlstm": conv_lstm, "convgru": conv_gru, "trajgru": traj_gru, "predrnn": pred_rnn, "predrnn++": pred_rnn_pp,
    "mim": mim, "motionrnn": motion_rnn, "preciplstm": precip_lstm, "predrnn-v2": pred_rnn,
    "sa-convlstm": sa_conv_lstm, "mk-lstm": mk_lstm,
}  # fmt: skip


class Module:
    """Network of MS-RNN, by equations 3 and 4 of the paper."""

    def __init__(self, module: nn.Module, name: str):
        self.module, self.cell_step = module, STEPS[name]
        self.states, self.before, self.inputs = [None] * 6, [None] * 6, [None] * 6

    def difference(self, cell: nn.Module, layer: int) -> Tensor | None:
        """Return the map of the previous step that the cell subtracts, computed from the hidden states, or None."""
        if cell.difference == "input":
            return self.inputs[layer]
        if cell.difference is None or self.before[0] is None:
            return None
        h = self.before[layer - 1]
        return down(h) if layer < 3 else h if layer == 3 else up(h)

    def step(
        self, frame: Tensor, m: Tensor | None, skips: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        hidden = []

        def run(layer: int, x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor | None]:
            cell = self.module.cells[layer]
            x = x if skips is None else x + skips[layer]
            h, self.states[layer], m = self.cell_step(cell, x, self.states[layer], m, self.difference(cell, layer))
            self.inputs[layer] = x
            hidden.append(h)
            return h, m

        def resized(f: Callable[[Tensor], Tensor], m: Tensor | None) -> Tensor | None:
            return m if m is None else f(m)

        h0, m = run(0, layer(frame, self.module.embed), m)
        h1, m = run(1, down(h0), resized(down, m))
        h2, m = run(2, down(h1), resized(down, m))
        h3, m = run(3, h2, m)
        h4, m = run(4, up(h3) + h1, resized(up, m))
        h5, m = run(5, up(h4) + h0, resized(up, m))
        self.before = hidden
        return layer(h5, self.module.output), hidden, m


def ms_rnn(network: nn.Module, frames: Tensor, steps: int) -> tuple[Tensor]:
    module, m, every, y = Module(network.module, network.config["cell"]), None, [], None
    for k in range(frames.shape[1] + steps - 1):
        y, _, m = module.step(frames[:, k] if k < frames.shape[1] else y, m, None)
        every.append(y)
    return (torch.stack(every, 1),)


def db_rnn(network: nn.Module, frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    name = network.config["cell"]
    forecaster, deblurrer = Module(network.forecaster, name), Module(network.deblurrer, name)
    m, forecasts, deblurred = None, [], []
    for k in range(frames.shape[1] + steps - 1):
        y, f, spatial_memory = forecaster.step(frames[:, k] if k < frames.shape[1] else deblurred[-1], m, None)
        sharp, _, m = deblurrer.step(y, spatial_memory, [f[5], f[4], f[3], f[2], f[1], f[0]])
        m = spatial_memory if network.local_zigzag else m
        forecasts.append(y)
        deblurred.append(sharp)
    return torch.stack(forecasts, 1), torch.stack(deblurred, 1)
