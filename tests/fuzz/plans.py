# SPDX-License-Identifier: Apache-2.0
"""Compare random calls with and without plans, to the bit: `python -m tests.fuzz.plans --calls 10000 --seed 1`.

Each drawn call is made four times, each time with other values, without plans and with plans: as the first, the second
(recorded) and later calls of its key. Results, gradients and error messages have to be the same.
"""

import argparse
import dataclasses
import sys
import warnings
from collections import Counter
from random import Random

import torch
from torch import Tensor

from fastds.ops.core import native, plans

from . import invalid
from .campaign import case_of
from .cases import Case, build, tensors
from .compare import _gradients, _in_its_way, _leaves
from .strategies import KINDS, STRATEGIES

REPEATS = 4


def bits(tensor: Tensor) -> tuple:
    """Return dtype, layout and the bytes of a tensor."""
    x = tensor.detach().resolve_neg()
    raw = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(x.dtype), tuple(x.shape), x.stride() if x.numel() else None, raw


def make_outcome(case: Case, kind: str) -> tuple:
    """Return what a call gives: bits of results and gradients, or type and message of its error."""
    if torch.get_num_threads() != case.threads:
        torch.set_num_threads(case.threads)
    native.get_module().set_isa(case.isa)
    arguments = build(case)
    try:
        if kind == "invalid":
            arguments = invalid.changed(arguments, Random(case.seed))[0]
        leaves, found = _leaves(arguments), []
        for results in _in_its_way(case, arguments):
            results = tensors(results)
            found += [bits(t) for t in [*results, *_gradients(results, leaves, case.seed)]]
        return "result", found
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        native.get_module().set_isa("auto")


def compare(seed: int, op: str, kind: str, number: int) -> str | None:
    """Return how a call with plans differs from the call without, or None."""
    case = case_of(seed, op, kind, number)
    for repeat in range(REPEATS):
        changed = dataclasses.replace(case, seed=case.seed + repeat) if kind != "invalid" else case
        with plans.suspended():
            expected = make_outcome(changed, kind)
        found = make_outcome(changed, kind)
        if found != expected:
            kinds = f"{expected[0]} -> {found[0]}"
            return f"{op} {kind} {number} repeat {repeat}: {kinds} {found[1] if found[0] != 'result' else ''} {case}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.plans", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ops", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="OP")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    random, faults, made = Random(options.seed), [], Counter()
    for number in range(options.calls):
        op, kind = random.choice(options.ops), random.choice(list(KINDS))
        before = plans.count_runs()
        fault = compare(options.seed, op, kind, number)
        made[op, "planned" if plans.count_runs() > before else "not planned"] += 1
        if fault is not None:
            faults.append(fault)
            print(fault[:600], flush=True)
    for op in options.ops:
        print(f"{op}: {made[op, 'planned']} of {made[op, 'planned'] + made[op, 'not planned']} calls ran plans")
    print(f"{options.calls} calls, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
