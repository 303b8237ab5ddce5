# SPDX-License-Identifier: Apache-2.0
"""Parts of networks on the ops they use and on others that could take their place, in turn in one process.

`OMP_NUM_THREADS=1 python -m bench.ops_in_networks [--only gru,srgan,ciaosr]` writes, for each part, size and mode, the
milliseconds of a call to bench/results/ops_in_networks.csv: the median over turns of a turn's fastest call, and of long
calls, which others' work always interrupts, the least processor time of four (in the ConvGRU rows of the file the least
elapsed time of five). Rows of parts that are not measured stay.
`difference` is the norm of that of the results, or of that of all gradients together, over their own norm; where a ReLU
turns at the last bit of a sum, a few entries of a gradient differ by more than rounding.

gru: WGAN-GP's ConvGRU on conv3x3 with kernels that the steps share, gru_reset and gru_update ("single"), and on
conv_gru_cell ("cell"). "frozen" is a step that wants the gradient of the input alone, as of the critic in the
generator's training; "penalty" the squared norm of the input's gradient with its own gradients, as in the critic's.
srgan: SRGAN's generator on torch's convolutions and shuffles ("torch") and as it is ("fastds").
ciaosr: CiaoSR's decoder with networks of gathered neighbourhoods ("gathered"), and with their first layers as a
convolution of the maps ("convolved"); a factor of 2 at 2304 points, and a grid of 96 x 96.
"""

import argparse
import csv
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import in_turn
from fastds.models.baselines.super_resolution import SRResNet
from fastds.models.inr.decoders import CiaoSRDecoder, _corners, _moved_half
from fastds.models.inr.encoders import extend
from fastds.models.wgan_gp.blocks import ConvGRU
from fastds.nn import Conv2d, Conv3x3
from fastds.ops import GridSpec, PointSpec

OUT = pathlib.Path(__file__).parent / "results" / "ops_in_networks.csv"
LONG_SECONDS, LONG_TURNS = 0.15, 4


class Row(NamedTuple):
    """One comparison: callables by name, each giving tensors that must agree."""

    part: str
    case: str
    mode: str
    runs: dict[str, Callable]


def step_of(network: nn.Module, x: Tensor, mode: str, bfloat16: bool = False) -> Callable:
    """forward: the result; step: it and all gradients of its squares' mean, frozen: of the input's alone; penalty:
    gradients of the gradient."""
    parameters = list(network.parameters())

    def forward():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return [network(x)]

    def step(wanted=parameters):
        leaf = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = network(leaf)
        loss = y.float().square().mean()
        return [y.detach(), *torch.autograd.grad(loss, [leaf, *wanted])]

    def frozen():
        return step([])

    def penalty():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
        return list(torch.autograd.grad(gradient.square().sum(), parameters))

    return {"forward": forward, "step": step, "frozen": frozen, "penalty": penalty}[mode]


class By(nn.Module):
    """A network called by a function of it and its input."""

    def __init__(self, network: nn.Module, call: Callable):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.network, x)


def rows_of(part: str, case: str, modes: tuple[str, ...], networks: dict[str, nn.Module], x: Tensor) -> Iterator[Row]:
    """A row for each mode, with " bfloat16" under autocast."""
    for mode in modes:
        kind, _, dtype = mode.partition(" ")
        yield Row(part, case, mode, {name: step_of(n, x, kind, dtype == "bfloat16") for name, n in networks.items()})


SIZES = (  # network, channels, pixels each way, batches: of the paper, of wgan-gp-small, and critics of small fields
    ("generator of wgan-gp", 128, 8, (1, 16)),
    ("generator of wgan-gp-small", 32, 8, (1, 16)),
    ("generator of wgan-gp-small", 32, 32, (1,)),
    ("critic", 256, 8, (2, 16)),
    ("critic", 256, 4, (2,)),
    ("critic", 64, 8, (2, 16)),
    ("critic", 64, 16, (4,)),
)
MODES = ("forward", "step", "forward bfloat16", "step bfloat16")


def gru_rows() -> Iterator[Row]:
    """Eight times."""
    calls = {"single": ConvGRU.sequence_on_shared_kernels, "cell": lambda gru, x: gru.sequence(x)[0]}
    for network, channels, size, batches in SIZES:
        for batch in batches:
            torch.manual_seed(3)
            gru, x = ConvGRU(channels, channels), torch.rand(batch, 8, channels, size, size)
            networks = {name: By(gru, call) for name, call in calls.items()}
            modes = ("frozen", "step", "penalty") if network == "critic" else MODES
            yield from rows_of("ConvGRU", f"{network}: ({batch} 8 {channels} {size} {size})", modes, networks, x)


def torch_layers(layer: nn.Module) -> nn.Module:
    """An SRResNet whose convolutions are torch's, with the same weights."""
    for name, child in list(layer.named_children()):
        if isinstance(child, Conv3x3 | Conv2d):
            size = child.weight.shape[-1]
            conv = nn.Conv2d(child.in_channels, child.out_channels, size, padding=size // 2)
            conv.load_state_dict(child.state_dict())
            setattr(layer, name, conv)
        elif isinstance(child, nn.Identity):
            setattr(layer, name, nn.PixelShuffle(2))
        else:
            torch_layers(child)
    return layer


def torch_srresnet(network: SRResNet, x: Tensor) -> Tensor:
    """Its forward with batch normalisation and sums as layers of their own."""

    def block(b, h):
        return h + b.norm2(b.conv2(b.act(b.norm1(b.conv1(h)))))

    h = flat = network.first(x.flatten(0, -4))
    for b in network.blocks:
        h = block(b, h)
    y = network.last(network.up(flat + network.middle(h)))
    return y.view(*x.shape[:-2], *y.shape[-2:])


def srgan_rows() -> Iterator[Row]:
    """Forward with fixed statistics, step with those of the batch."""
    for name, options in (("srgan", {}), ("srgan-small", {"width": 32, "blocks": 8})):
        for shape in ((1, 8, 1, 8, 8), (16, 8, 1, 8, 8), (1, 8, 1, 32, 32)):
            for mode in MODES if shape[0] == 1 else MODES[:2]:
                torch.manual_seed(3)
                network, x = SRResNet(**options), torch.randn(shape)
                peer = torch_layers(SRResNet(**options))
                peer.load_state_dict(network.state_dict())
                networks = {"torch": By(peer, torch_srresnet), "fastds": network}
                for n in networks.values():
                    n.train(mode.startswith("step"))
                yield from rows_of("SRGAN", f"{name}: {shape}".replace(",", ""), (mode,), networks, x)


def gathered_ciaosr(decoder: CiaoSRDecoder, maps: Tensor, where: GridSpec | PointSpec, cell: Tensor) -> Tensor:
    """Its query without masks, the first layers of key and value in every corner."""
    unfolded = F.unfold(extend(maps, 1, decoder.padding_mode), 3).unflatten(2, maps.shape[2:])
    place = where, unfolded, None, [False, False]
    corners = _corners(*place, nearest=False)
    query = _corners(_moved_half(where), *place[1:], nearest=True).gather(unfolded, 0)
    cell = cell[:, None].expand(len(maps), query.shape[1], 2)
    logits, values = [], []
    for j in range(4):
        u = corners.gather(unfolded, j)
        inputs = torch.cat([u, corners.rho[j], cell], -1)
        logits.append((query * u * decoder.key(inputs)).sum(-1))
        values.append(u * decoder.value(inputs))
    alpha = torch.softmax(torch.stack(logits), 0)
    return decoder.head(sum(a[..., None] * v for a, v in zip(alpha, values, strict=True)))


def ciaosr_rows() -> Iterator[Row]:
    """64 channels, a crop of 48 x 48, as in LIIF's training."""
    for batch in (1, 4):
        torch.manual_seed(3)
        decoder, maps, cell = CiaoSRDecoder(64, 4, "replicate"), torch.randn(batch, 64, 48, 48), torch.ones(batch, 2)
        at = 47 * torch.rand(batch, 2304, 2)
        points = PointSpec(at.floor().int(), at - at.floor())
        grid = GridSpec.cells((48, 48), (96, 96))
        for case, where, modes in (("2304 points", points, ("forward", "step")), ("96 x 96", grid, ("forward",))):
            if batch > 1 and case != "2304 points":
                continue

            def convolved(decoder, x, where=where, cell=cell):
                return decoder.query(x, where, cell, None, ("clamp", "clamp"), None)

            def gathered(decoder, x, where=where, cell=cell):
                return gathered_ciaosr(decoder, x, where, cell)

            networks = {"gathered": By(decoder, gathered), "convolved": By(decoder, convolved)}
            yield from rows_of("CiaoSR", f"batch {batch}: {case}", modes, networks, maps)


ROWS = {"gru": gru_rows, "srgan": srgan_rows, "ciaosr": ciaosr_rows}


def difference(these: list[Tensor], those: list[Tensor]) -> float:
    """Of two results and their gradients, the larger relative one."""

    def relative(a, b):
        a, b = (torch.cat([t.flatten().double() for t in parts]) for parts in (a, b))
        return float((a - b).norm() / b.norm())

    groups = [(these[:1], those[:1]), (these[1:], those[1:])]
    return max(relative(*pair) for pair in groups if pair[0])


def seconds_of(runs: dict[str, Callable]) -> dict[str, float]:
    """Seconds of a call of each, in turn."""
    taken = {name: [] for name in runs}
    for _ in range(LONG_TURNS):
        for name, run in runs.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
        if min(map(max, taken.values())) < LONG_SECONDS:
            return in_turn.quiet(runs)
    return {name: min(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}; default all")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    options = parser.parse_args()
    rows = []
    for name in options.only.split(","):
        for row in ROWS[name]():
            first, *others = row.runs
            found, times = {n: run() for n, run in row.runs.items()}, seconds_of(row.runs)
            for other in others:
                rows.append({
                    "part": row.part, "case": row.case, "mode": row.mode, "first": first, "second": other,
                    "first_ms": f"{1e3 * times[first]:.3f}", "second_ms": f"{1e3 * times[other]:.3f}",
                    "second_over_first": f"{times[other] / times[first]:.2f}",
                    "difference": f"{difference(found[other], found[first]):.0e}",
                })  # fmt: skip
                print(*rows[-1].values(), sep=", ", flush=True)
    if options.out.exists():
        parts = {row["part"] for row in rows}
        with options.out.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["part"] not in parts] + rows
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
