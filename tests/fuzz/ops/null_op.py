# SPDX-License-Identifier: Apache-2.0
"""null_op: see tests/fuzz/ops/__init__.py."""

from fastds import ops

from ..small import maps


def null_op(d):
    return {"x": d.tensor(*(d.int(0, 4) for _ in range(d.int(0, 5))))}


STRATEGIES = {"null_op": null_op}


def examples():
    yield lambda: ops.null_op(maps())
