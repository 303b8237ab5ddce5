# SPDX-License-Identifier: Apache-2.0
"""conv3x3's "auto": what its algorithms cost, and which it takes."""

import pytest
import torch

from fastds.ops.impl.conv3x3 import costs


@pytest.mark.parametrize("name", costs.TERMS)
@pytest.mark.parametrize("longer", range(5), ids=["batch", "inputs", "outputs", "height", "width"])
def test_twice_the_work_is_counted_as_twice_the_multiplications(name, longer):
    """Of lengths that no algorithm rounds up; columns beyond the field are few."""
    lengths = [1, 64, 64, 32, 32]
    _, weights, products, *_ = costs.TERMS[name](*lengths)
    lengths[longer] *= 2
    more = costs.TERMS[name](*lengths)
    assert (
        products > 0
        and more[2] == pytest.approx(2 * products, rel=0.04)
        and more[1] == weights * (1 + (longer in (1, 2)))
    )


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "backward", "expected"),  # shape: batch, inputs, outputs, height, width
    [
        ("avx512", (1, 64, 64, 50, 50), torch.float32, False, "winograd"),
        ("avx512", (2, 1024, 2048, 8, 8), torch.float32, False, "product"),  # reading the weights is most of the work
        ("avx512", (16, 1024, 2048, 8, 8), torch.float32, False, "winograd"),
        ("avx512", (1, 1024, 1024, 5, 5), torch.float32, True, "product"),
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
    monkeypatch.setattr(costs, "machine", lambda isa, dtype: kind)
    costs.cheapest.cache_clear()
    assert costs.cheapest("any", dtype, backward, *shape) == expected
    costs.cheapest.cache_clear()


def test_auto_knows_that_planes_need_no_channels_last(monkeypatch):
    monkeypatch.setattr(costs, "machine", lambda isa, dtype: "amd")
    costs.cheapest.cache_clear()
    shape = torch.bfloat16, False, 4, 64, 4, 160, 42
    assert [costs.cheapest("any", *shape, contiguous=apart) for apart in (False, True)] == ["winograd", "planes"]
    costs.cheapest.cache_clear()


def test_costs_have_rows_for_every_machine(native):
    for isa in set(native.build_info()["isa_usable"]) - {"baseline"}:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for backward in (False, True):
                assert costs.cheapest(isa, dtype, backward, 1, 64, 64, 50, 50) in costs.TERMS
    for rows in costs.COSTS.values():
        assert set(costs.TERMS) - {"amx"} <= set(rows) <= set(costs.TERMS)
        assert all(len(row) == len(costs.TERMS[name](1, 1, 1, 1, 1)) for name, row in rows.items())
