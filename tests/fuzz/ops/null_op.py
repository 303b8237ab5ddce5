# SPDX-License-Identifier: Apache-2.0
"""Random calls of null_op, as described in tests/fuzz/ops/__init__.py."""

from fastds import ops

from ..small import maps


def null_op(d):
    shape = [d.int(0, 4) for _ in range(d.int(0, 5))]
    return {"x": d.tensor(*shape), "other": d.maybe(d.tensor(*shape)), "scale": d.pick((1.0, -0.5, 2))}


STRATEGIES = {"null_op": null_op}


def examples():
    yield lambda: ops.null_op(maps(), maps(), 0.5)
