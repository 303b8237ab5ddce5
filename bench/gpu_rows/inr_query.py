# SPDX-License-Identifier: Apache-2.0
"""inr_query at factor 4: attention over four corners in Triton and CUDA C++, LIIF by the op and as published."""

import functools

import torch

from bench import bench_inr_query as cases
from bench.bench_inr_query import OUTPUTS, Case
from bench.gpu_rows import Row, get_dtype_name, select_backend

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
# Decoder, peer, dtype, tolerance.
ROWS = [
    ("attention", "fastds triton", BFLOAT16, 6e-2),
    ("attention", "fastds cuda", BFLOAT16, 6e-2),
    ("liif", "fastds triton", BFLOAT16, 6e-2),
    ("liif", "fastds cuda", BFLOAT16, 6e-2),
    ("liif", "naive", BFLOAT16, 0.2),
    ("attention", "fastds cuda", FLOAT32, 1e-2),
    ("liif", "fastds cuda", FLOAT32, 1e-2),
    ("liif", "naive", FLOAT32, 1e-2),
]
# Builder in bench/bench_inr_query.py by decoder and whether the row is of fastds.
BUILDERS = {("attention", True): "attention", ("liif", True): "fastds", ("liif", False): "naive"}


def build(case, decoder, peer, dtype, device):
    """Build the callable to time.

    Args:
        case: the queries.
        decoder: "attention" or "liif".
        peer: peer of the row; "fastds cuda" and "fastds triton" select that backend.
        dtype: dtype of the features.
        device: device of the tensors.
    """
    with select_backend(peer):
        run = cases.build(BUILDERS[decoder, peer.startswith("fastds")], case, dtype, device)

    def timed():
        with select_backend(peer):
            return run()

    return timed


def make_rows(small: bool) -> list[Row]:
    case = Case((6, 7), 4, (0, 24)) if small else Case((180, 360), 4, (0, 720))
    selected = ROWS
    if small:
        selected = [
            ("attention", "fastds", FLOAT32, 1e-3),
            ("liif", "fastds", FLOAT32, 1e-3),
            ("liif", "naive", FLOAT32, 1e-3),
        ]
    title = f"{case.source[0]}x{case.source[1]} x{case.scale}"
    return [
        Row(
            f"inr_query {decoder}", title, "forward", get_dtype_name(dtype), peer,
            build=functools.partial(build, case, decoder, peer, dtype),
            expected=functools.partial(cases.compute_expected, case, decoder), reference_key=("inr_query", decoder),
            tolerance=tolerance, flops=case.count_flops(decoder), bytes=case.grid.count * OUTPUTS * 4,
            timing="eager" if peer == "naive" else "graph",  # the published code splits queries into chunks
        )
        for decoder, peer, dtype, tolerance in selected
    ]  # fmt: skip
