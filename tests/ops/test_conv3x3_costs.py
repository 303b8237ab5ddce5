# SPDX-License-Identifier: Apache-2.0
"""Tests of the cost model of conv3x3 and of the algorithm that "auto" selects."""

import pytest
import torch

from fastds.ops.impl.conv3x3 import costs

INTEL, AMD = {"cpu_name": "Intel Xeon"}, {"cpu_name": "AMD EPYC"}


@pytest.mark.parametrize(
    ("isa", "has", "row"),
    [
        ("avx2", AMD | {"amx_bf16": True}, "avx2"),
        ("neon", {}, "avx2"),
        ("avx512", INTEL, "avx512"),
        ("avx512", AMD, "amd"),
        ("avx512", AMD | {"avx_vnni": True}, "zen5"),
        ("avx512", INTEL | {"avx_vnni": True}, "avx512"),
        ("avx512", INTEL | {"amx_bf16": True}, "amx"),
    ],
)
def test_costs_selected_for_a_cpu(isa, has, row, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert costs.cpu_profile.__wrapped__(isa, torch.bfloat16) == row
    plain = costs.cpu_profile.__wrapped__(isa, torch.float32)
    assert plain == ("avx512" if row == "amx" else row) and (plain, "float32", False) in costs.COSTS


@pytest.mark.parametrize("name", costs.TERMS)
@pytest.mark.parametrize("longer", range(5), ids=["batch", "inputs", "outputs", "height", "width"])
def test_cost_terms_scale_with_the_work(name, longer):
    lengths = [1, 64, 64, 64, 64]
    _, weights, products, *_ = costs.TERMS[name](*lengths)
    lengths[longer] *= 2
    more = costs.TERMS[name](*lengths)
    assert (
        products > 0
        and more[2] == pytest.approx(2 * products, rel=0.04)
        and more[1] == weights * (1 + (longer in (1, 2)))
    )


@pytest.mark.parametrize(
    ("name", "lengths", "expected"),  # lengths: batch, inputs, outputs, height, width
    [
        ("winograd", (2, 3, 5, 5, 6), (1, 1728, 13824, 4608, 4608, 0)),
        ("winograd", (1, 1024, 2048, 1, 1), (1, 75497472, 75497472, 36864, 73728, 71303168)),
        ("amx", (2, 3, 5, 5, 6), (1, 1536, 147456, 288, 1536)),
        ("amx", (2, 11, 5, 5, 6), (1, 3072, 294912, 1056, 1536)),
        ("amx", (2, 22, 5, 5, 6), (1, 4608, 442368, 2112, 1536)),
        ("amx", (1, 32, 4, 15, 16), (1, 4608, 1179648, 8192, 4096)),
        ("product", (2, 3, 5, 5, 6), (1, 135, 8100, 1620, 300)),
        ("direct", (2, 1, 5, 5, 6), (1, 2304, 12960, 60, 300)),
        ("direct", (2, 2, 5, 5, 6), (1, 2304, 25920, 120, 300)),
        ("direct", (2, 3, 5, 5, 6), (1, 2304, 34560, 180, 300)),
        ("planes", (2, 3, 5, 5, 6), (1, 135, 12960, 25920, 300, 300)),
    ],
    ids=str,
)
def test_cost_terms_by_hand(name, lengths, expected):
    assert costs.TERMS[name](*lengths) == expected


@pytest.mark.parametrize("points", [1, 10**4])
@pytest.mark.parametrize(
    ("named", "spared", "pays", "call", "per_point"),
    [
        ({"contiguous": True}, "planes", "winograd", costs.LAYOUT_COST[0], 2 * 3 * costs.LAYOUT_COST[1]),
        (
            {"contiguous": True, "backward": True},
            "planes",
            "direct",
            costs.LAYOUT_COST[0],
            2 * 3 * costs.LAYOUT_COST[1],
        ),
        ({"contiguous": True}, "amx", "product", costs.LAYOUT_COST[0], 2 * 3 * costs.LAYOUT_COST[1]),
        ({"contiguous": True, "backward": True}, "amx", "winograd", costs.LAYOUT_COST[0], 2 * 3 * costs.LAYOUT_COST[1]),
        ({"gated": True}, "winograd", "planes", costs.GATES_COST[0], 5 * costs.GATES_COST[1]),
        ({"joined": True}, "product", "direct", costs.ELEMENTWISE_COST[0], 3 * costs.ELEMENTWISE_COST[1]),
        ({"passes": 1}, "amx", "direct", costs.ELEMENTWISE_COST[0], 5 * costs.ELEMENTWISE_COST[1]),
        ({"passes": 3}, "planes", "product", 3 * costs.ELEMENTWISE_COST[0], 3 * 5 * costs.ELEMENTWISE_COST[1]),
        (
            {"passes": 2, "backward": True},
            "winograd",
            "planes",
            2 * costs.ELEMENTWISE_COST[0],
            2 * 5 * costs.ELEMENTWISE_COST[1],
        ),
    ],
)
def test_cost_of_layout_and_epilogue(monkeypatch, named, spared, pays, call, per_point, points):
    monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: "mine")
    backward = named.get("backward", False)
    shape = {name: value for name, value in named.items() if name != "backward"}
    for share, expected in ((0.99, spared), (1.01, pays)):
        cost_of_algorithm = {spared: 1 + share * (call + per_point * points), pays: 1.0}
        rows = {
            name: (cost, *[0] * (len(costs.TERMS[name](1, 1, 1, 1, 1)) - 1)) for name, cost in cost_of_algorithm.items()
        }
        monkeypatch.setitem(costs.COSTS, ("mine", "bfloat16", backward), rows)
        costs.select_fastest.cache_clear()
        assert costs.select_fastest("any", torch.bfloat16, backward, 1, 3, 5, 1, points, **shape) == expected
    costs.select_fastest.cache_clear()


def test_planes_gradient_of_contiguous_input_transposes(monkeypatch):
    monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: "mine")
    turn = costs.LAYOUT_COST[0] + 2 * 5 * 100 * costs.LAYOUT_COST[1]
    for share, expected in ((0.99, "amx"), (1.01, "planes")):
        rows = {"amx": (1 + share * turn, 0, 0, 0, 0), "planes": (1.0, 0, 0, 0, 0, 0)}
        monkeypatch.setitem(costs.COSTS, ("mine", "bfloat16", True), rows)
        shape = (1, 5, 3, 10, 10)
        assert costs.select_fastest.__wrapped__("any", torch.bfloat16, True, *shape, contiguous=True) == expected


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "backward", "expected"),  # shape: batch, inputs, outputs, height, width
    [
        ("avx512", (1, 64, 64, 50, 50), torch.float32, False, "winograd"),
        ("avx512", (1, 1024, 1024, 5, 5), torch.float32, False, "product"),  # reading the weights is most of the work
        ("avx512", (16, 1024, 2048, 8, 8), torch.float32, False, "winograd"),
        ("avx512", (1, 1024, 1024, 5, 5), torch.float32, True, "product"),
        # torch multiplies matrices of one small map in float32
        ("avx512", (1, 233, 512, 4, 7), torch.float32, False, "direct"),
        ("avx512", (1, 96, 96, 6, 8), torch.float32, True, "direct"),
        ("avx512", (2, 96, 96, 6, 8), torch.float32, True, "winograd"),
        ("avx512", (1, 96, 96, 6, 8), torch.bfloat16, True, "winograd"),
        ("avx512", (1, 32, 256, 32, 16), torch.float32, False, "winograd"),
        ("amx", (1, 64, 64, 200, 200), torch.bfloat16, False, "amx"),
        ("avx512", (1, 64, 64, 200, 200), torch.bfloat16, False, "winograd"),
        ("avx2", (1, 1024, 1024, 5, 5), torch.bfloat16, False, "winograd"),
        ("avx2", (1, 16, 1, 400, 400), torch.bfloat16, False, "planes"),
        ("avx512", (1, 3, 3, 300, 300), torch.float16, True, "planes"),
        # torch's backward takes a thousand times as long
        ("avx512", (1, 64, 64, 300, 300), torch.float16, True, "winograd"),
        ("avx2", (1, 16, 1, 400, 400), torch.float32, False, "planes"),
        ("amd", (2, 256, 4, 64, 64), torch.bfloat16, False, "winograd"),
        ("avx512", (16, 256, 256, 300, 300), torch.float16, True, "winograd"),  # the product's matrix: 13 GB
    ],
    ids=str,
)
def test_auto_rule(monkeypatch, kind, shape, dtype, backward, expected):
    monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: kind)
    costs.select_fastest.cache_clear()
    assert costs.select_fastest("any", dtype, backward, *shape) == expected
    costs.select_fastest.cache_clear()


def test_recurrent_cells_are_bitwise_independent_of_threads(monkeypatch):
    monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: "avx512")
    shape = torch.float32, True, 1, 96, 96, 6, 8
    for of_cells, expected in (({}, "direct"), ({"gated": True}, "winograd"), ({"joined": True}, "winograd")):
        assert costs.select_fastest.__wrapped__("any", *shape, **of_cells) == expected


@pytest.mark.parametrize(("has_products", "expected"), [(True, "direct"), (False, "winograd")])
def test_float16_falls_back_on_cpus_with_fast_gemm(monkeypatch, has_products, expected):
    monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: "amd")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": has_products}, raising=False)
    assert costs.select_fastest.__wrapped__("any", torch.float16, False, 8, 1, 32, 48, 55) == expected


def test_auto_accounts_for_the_layout_of_planes(monkeypatch):
    monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: "amd")
    costs.select_fastest.cache_clear()
    shape = torch.bfloat16, False, 4, 64, 4, 160, 42
    found = [costs.select_fastest("any", *shape, contiguous=contiguous) for contiguous in (False, True)]
    assert found == ["winograd", "planes"]
    costs.select_fastest.cache_clear()


def test_costs_exist_for_every_cpu(native):
    for isa in set(native.build_info()["isa_usable"]) - {"baseline"}:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for backward in (False, True):
                assert costs.select_fastest(isa, dtype, backward, 1, 64, 64, 50, 50) in costs.TERMS
    for rows in costs.COSTS.values():
        assert set(costs.TERMS) - {"amx"} <= set(rows) <= set(costs.TERMS)
        assert all(len(row) == len(costs.TERMS[name](1, 1, 1, 1, 1)) for name, row in rows.items())
    assert {len(row) for row in costs.SMALL_IMAGE_COSTS.values()} == {len(costs.TERMS["product"](1, 1, 1, 1, 1))}
