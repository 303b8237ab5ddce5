# SPDX-License-Identifier: Apache-2.0
"""Draws random arguments of an op: `draw(op, kind, choose)` makes a Case with a random.Random.

tests/ops/test_fuzz.py passes the random.Random of hypothesis, whose choices can be shrunk. The campaign passes Python's
random.Random, which is much faster.
"""

from random import Random

from fastds.ops.core import native

from .cases import Case
from .draws import Draw
from .ops import modules

KINDS = ("valid", "special", "invalid")
STRATEGIES = {name: strategy for module in modules() for name, strategy in module.STRATEGIES.items()}
CONVOLUTIONS = {name for name in STRATEGIES if name.startswith("conv")}


def isas(op: str) -> list[str]:
    """Return the instruction sets that this machine has and the op has code for."""
    info = native.get_module().build_info()
    found = [isa for isa in info["isa_usable"] if isa in info["isa_built"]]
    return [isa for isa in found if isa != "baseline"] or found if op in CONVOLUTIONS else found


def draw(op: str, kind: str, choose: Random) -> Case:
    """Draw one call of an op.

    Args:
        op: name of the op.
        kind: "valid", "special" (with NaN, infinity, huge and tiny values), or "invalid" (a valid call, which
            invalid.changed changes).
        choose: source of the choices.
    """
    d = Draw(choose, kind)
    args = STRATEGIES[op](d)
    way = d.pick(("plain",) * 8 + ("vmap", "threads")) if kind == "valid" and d.batch else "plain"
    return Case(op, args, d.int(0, 2**31), d.pick(isas(op)), d.autocast, d.pick((1, 1, 2, 3)), way)
