# SPDX-License-Identifier: Apache-2.0
"""inr_query at x4: attention over four corners in Triton and CUDA C++, LIIF of ours and as published."""

import functools

import torch

from bench import bench_inr_query as cases
from bench.bench_inr_query import OUTPUTS, Case
from bench.gpu_rows import Row, forced, name_of

BRAIN, FULL = torch.bfloat16, torch.float32
# decoder, peer, dtype, tolerance
WANTED = [
    ("attention", "fastds triton", BRAIN, 6e-2),
    ("attention", "fastds cuda", BRAIN, 6e-2),
    ("liif", "fastds triton", BRAIN, 6e-2),
    ("liif", "fastds cuda", BRAIN, 6e-2),
    ("liif", "naive", BRAIN, 0.2),
    ("attention", "fastds cuda", FULL, 1e-2),
    ("liif", "fastds cuda", FULL, 1e-2),
    ("liif", "naive", FULL, 1e-2),
]
BUILDERS = {("attention", True): "attention", ("liif", True): "fastds", ("liif", False): "naive"}


def build(case, decoder, peer, dtype, device):
    with forced(peer):
        run = cases.build(BUILDERS[decoder, peer.startswith("fastds")], case, dtype, device)

    def timed():
        with forced(peer):
            return run()

    return timed


def rows(small: bool) -> list[Row]:
    case = Case((6, 7), 4, (0, 24)) if small else Case((180, 360), 4, (0, 720))
    wanted = WANTED
    if small:
        wanted = [("attention", "fastds", FULL, 1e-3), ("liif", "fastds", FULL, 1e-3), ("liif", "naive", FULL, 1e-3)]
    title = f"{case.source[0]}x{case.source[1]} x{case.scale}"
    return [
        Row(
            f"inr_query {decoder}", title, "forward", name_of(dtype), peer,
            build=functools.partial(build, case, decoder, peer, dtype),
            expected=functools.partial(cases.expected, case, decoder), oracle=("inr_query", decoder),
            tolerance=tolerance, flops=case.flops(decoder), bytes=case.grid.count * OUTPUTS * 4,
            graph=peer != "naive",  # split into chunks, as its authors run it
        )
        for decoder, peer, dtype, tolerance in wanted
    ]  # fmt: skip
