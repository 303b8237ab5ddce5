# SPDX-License-Identifier: Apache-2.0
"""Comparison of parts of networks on alternative ops: `OMP_NUM_THREADS=1 python -m bench.ops_in_networks [--only gru]`.

Writes bench/results/ops_in_networks.csv; rows of parts that are not measured stay. Columns:

part, case, mode: the row; parts and modes are below.
first, second: names of the two alternatives.
first_ms, second_ms: milliseconds of a call. Short calls are timed interleaved (bench/interleaved_timing.py). For calls
    above 0.15 s, which other work always interrupts, the least processor time of four calls counts (in the ConvGRU rows
    of the file: the least elapsed time of five).
second_over_first: second_ms / first_ms.
difference: norm of the difference of the results, or of all gradients, relative to the norm of the first. Where a
    rounding error changes the sign of the input of a ReLU, a few entries of a gradient differ by more than rounding.

Parts:

gru: ConvGRU of WGAN-GP. "single" is conv3x3 with kernels shared by the time steps, gru_reset and gru_update; "cell" is
    conv_gru_cell. The mode "frozen" computes the gradient of the input alone, as for the critic while the generator is
    trained. The mode "penalty" computes the gradients of the squared norm of the input's gradient, as in the training
    of the critic.
srgan: generator of SRGAN. "torch" uses the convolutions and pixel shuffles of torch, "fastds" is the network of fastds.
ciaosr: decoder of CiaoSR. "gathered" applies its networks to gathered neighbourhoods; "convolved" computes their first
    layers by a convolution of the feature map. Factor 2, at 2304 points and on a grid of 96 x 96.
"""

import argparse
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import interleaved_timing
from bench.result_files import RESULTS, read_csv, write_csv
from fastds.models.baselines.super_resolution import SRResNet
from fastds.models.inr.decoders import CiaoSRDecoder, _find_corners, _shift_half_pixel
from fastds.models.inr.encoders import pad_border
from fastds.models.wgan_gp.layers import ConvGRU
from fastds.nn import Conv2d, Conv3x3
from fastds.ops import GridSpec, PointSpec

OUT = RESULTS / "ops_in_networks.csv"
LONG_SECONDS, LONG_TURNS = 0.15, 4  # calls above LONG_SECONDS are measured LONG_TURNS times


class Row(NamedTuple):
    """One comparison of callables by name. Each returns a list of tensors, equal but for rounding."""

    part: str
    case: str
    mode: str
    runs: dict[str, Callable]


def make_step(network: nn.Module, x: Tensor, mode: str, bfloat16: bool = False) -> Callable:
    """Return a callable that runs a network on x.

    Args:
        network: network of one tensor.
        x: its input.
        mode: "forward" for the result; "step" for the result and the gradients of its mean square with respect to the
            input and all parameters; "frozen" for the result and the gradient of the input; "penalty" for the
            gradients of the squared norm of the input's gradient with respect to the parameters.
        bfloat16: whether autocast is on, except for "penalty".
    """
    parameters = list(network.parameters())

    def forward():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return [network(x)]

    def step(with_respect_to=parameters):
        leaf = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = network(leaf)
        loss = y.float().square().mean()
        return [y.detach(), *torch.autograd.grad(loss, [leaf, *with_respect_to])]

    def frozen():
        return step([])

    def penalty():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), parameters))

    return {"forward": forward, "step": step, "frozen": frozen, "penalty": penalty}[mode]


class CalledBy(nn.Module):
    """A network whose forward pass is call(network, x)."""

    def __init__(self, network: nn.Module, call: Callable):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.network, x)


def make_rows(part: str, case: str, modes: tuple[str, ...], networks: dict[str, nn.Module], x: Tensor) -> Iterator[Row]:
    """Yield one row per mode.

    Args:
        part: part of the rows.
        case: case of the rows.
        modes: modes of make_step(), with the suffix " bfloat16" for autocast.
        networks: the alternatives by name.
        x: their input.
    """
    for mode in modes:
        kind, _, dtype = mode.partition(" ")
        yield Row(part, case, mode, {name: make_step(n, x, kind, dtype == "bfloat16") for name, n in networks.items()})


# (network, channels, pixels each way, batches). The networks are those of the paper, those of wgan-gp-small, and
# critics of small fields.
SIZES = (
    ("generator of wgan-gp", 128, 8, (1, 16)),
    ("generator of wgan-gp-small", 32, 8, (1, 16)),
    ("generator of wgan-gp-small", 32, 32, (1,)),
    ("critic", 256, 8, (2, 16)),
    ("critic", 256, 4, (2,)),
    ("critic", 64, 8, (2, 16)),
    ("critic", 64, 16, (4,)),
)
MODES = ("forward", "step", "forward bfloat16", "step bfloat16")


def make_gru_rows() -> Iterator[Row]:
    """Yield the rows of the part gru: sequences of eight time steps."""
    calls = {"single": ConvGRU.run_on_shared_kernels, "cell": lambda gru, x: gru.sequence(x)[0]}
    for network, channels, size, batches in SIZES:
        for batch in batches:
            torch.manual_seed(3)
            gru, x = ConvGRU(channels, channels), torch.rand(batch, 8, channels, size, size)
            networks = {name: CalledBy(gru, call) for name, call in calls.items()}
            modes = ("frozen", "step", "penalty") if network == "critic" else MODES
            yield from make_rows("ConvGRU", f"{network}: ({batch} 8 {channels} {size} {size})", modes, networks, x)


def replace_layers(layer: nn.Module) -> nn.Module:
    """Replace the convolutions of fastds in a module by convolutions of torch with the same weights, in place."""
    for name, child in list(layer.named_children()):
        if isinstance(child, Conv3x3 | Conv2d):
            size = child.weight.shape[-1]
            conv = nn.Conv2d(child.in_channels, child.out_channels, size, padding=size // 2)
            conv.load_state_dict(child.state_dict())
            setattr(layer, name, conv)
        elif isinstance(child, nn.Identity):
            setattr(layer, name, nn.PixelShuffle(2))
        else:
            replace_layers(child)
    return layer


def run_unfused_srresnet(network: SRResNet, x: Tensor) -> Tensor:
    """Run an SRResNet with separate batch normalization and additions."""

    def block(b, h):
        return h + b.norm2(b.conv2(b.act(b.norm1(b.conv1(h)))))

    h = flat = network.first(x.flatten(0, -4))
    for b in network.blocks:
        h = block(b, h)
    y = network.last(network.up(flat + network.middle(h)))
    return y.view(*x.shape[:-2], *y.shape[-2:])


def make_srgan_rows() -> Iterator[Row]:
    """Yield the rows of the part srgan.

    Batch normalization uses the statistics of the batch in training steps and running statistics otherwise.
    """
    for name, options in (("srgan", {}), ("srgan-small", {"width": 32, "blocks": 8})):
        for shape in ((1, 8, 1, 8, 8), (16, 8, 1, 8, 8), (1, 8, 1, 32, 32)):
            for mode in MODES if shape[0] == 1 else MODES[:2]:
                torch.manual_seed(3)
                network, x = SRResNet(**options), torch.randn(shape)
                peer = replace_layers(SRResNet(**options))
                peer.load_state_dict(network.state_dict())
                networks = {"torch": CalledBy(peer, run_unfused_srresnet), "fastds": network}
                for n in networks.values():
                    n.train(mode.startswith("step"))
                yield from make_rows("SRGAN", f"{name}: {shape}".replace(",", ""), (mode,), networks, x)


def query_gathered_ciaosr(
    decoder: CiaoSRDecoder, features: Tensor, where: GridSpec | PointSpec, cell: Tensor
) -> Tensor:
    """Query CiaoSR without masks, with the first layers of key and value applied to every corner.

    Args:
        decoder: the decoder.
        features: feature map (B, C, H, W).
        where: queried points.
        cell: size of the queried cells (B, 2).

    Returns:
        Values (B, Q, O).
    """
    unfolded = F.unfold(pad_border(features, 1, decoder.padding_mode), 3).unflatten(2, features.shape[2:])
    place = where, unfolded, None, [False, False]
    corners = _find_corners(*place, nearest=False)
    query = _find_corners(_shift_half_pixel(where), *place[1:], nearest=True).gather(unfolded, 0)
    cell = cell[:, None].expand(len(features), query.shape[1], 2)
    logits, values = [], []
    for j in range(4):
        u = corners.gather(unfolded, j)
        inputs = torch.cat([u, corners.rho[j], cell], -1)
        logits.append((query * u * decoder.key(inputs)).sum(-1))
        values.append(u * decoder.value(inputs))
    alpha = torch.softmax(torch.stack(logits), 0)
    return decoder.head(sum(a[..., None] * v for a, v in zip(alpha, values, strict=True)))


def make_ciaosr_rows() -> Iterator[Row]:
    """Yield the rows of the part ciaosr: 64 channels and a crop of 48 x 48 pixels, as in the training of LIIF."""
    for batch in (1, 4):
        torch.manual_seed(3)
        decoder, cell = CiaoSRDecoder(64, 4, "replicate"), torch.ones(batch, 2)
        features = torch.randn(batch, 64, 48, 48)
        at = 47 * torch.rand(batch, 2304, 2)
        points = PointSpec(at.floor().int(), at - at.floor())
        grid = GridSpec.cells((48, 48), (96, 96))
        for case, where, modes in (("2304 points", points, ("forward", "step")), ("96 x 96", grid, ("forward",))):
            if batch > 1 and case != "2304 points":
                continue

            def convolved(decoder, x, where=where, cell=cell):
                return decoder.query(x, where, cell, None, ("clamp", "clamp"), None)

            def gathered(decoder, x, where=where, cell=cell):
                return query_gathered_ciaosr(decoder, x, where, cell)

            networks = {"gathered": CalledBy(decoder, gathered), "convolved": CalledBy(decoder, convolved)}
            yield from make_rows("CiaoSR", f"batch {batch}: {case}", modes, networks, features)


ROWS = {"gru": make_gru_rows, "srgan": make_srgan_rows, "ciaosr": make_ciaosr_rows}


def compute_difference(results: list[Tensor], expected: list[Tensor]) -> float:
    """Return the larger of two relative differences: that of the first tensors, and that of all others."""

    def relative(a, b):
        a, b = (torch.cat([t.flatten().double() for t in parts]) for parts in (a, b))
        return float((a - b).norm() / b.norm())

    groups = [(results[:1], expected[:1]), (results[1:], expected[1:])]
    return max(relative(*pair) for pair in groups if pair[0])


def measure(runs: dict[str, Callable]) -> dict[str, float]:
    """Return the seconds of one call of each callable; see the module's docstring."""
    times = {name: [] for name in runs}
    for _ in range(LONG_TURNS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
        if min(map(max, times.values())) < LONG_SECONDS:
            return interleaved_timing.measure_fastest_calls(runs)
    return {name: min(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}; default all")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    options = parser.parse_args()
    rows = []
    for name in options.only.split(","):
        for row in ROWS[name]():
            first, *others = row.runs
            results, times = {n: run() for n, run in row.runs.items()}, measure(row.runs)
            for other in others:
                rows.append({
                    "part": row.part, "case": row.case, "mode": row.mode, "first": first, "second": other,
                    "first_ms": f"{1e3 * times[first]:.3f}", "second_ms": f"{1e3 * times[other]:.3f}",
                    "second_over_first": f"{times[other] / times[first]:.2f}",
                    "difference": f"{compute_difference(results[other], results[first]):.0e}",
                })  # fmt: skip
                print(*rows[-1].values(), sep=", ", flush=True)
    parts = {row["part"] for row in rows}
    rows = [row for row in read_csv(options.out) if row["part"] not in parts] + rows
    write_csv(options.out, list(rows[0]), rows)


if __name__ == "__main__":
    main()
