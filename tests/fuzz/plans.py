# SPDX-License-Identifier: Apache-2.0
"""Compare random calls with and without plans, to the bit: `python -m tests.fuzz.plans --calls 10000 --seed 1`.

Each drawn call is made six times with and without plans: as the first, the second (recorded) and later calls of its
key. The repetitions use new tensors, the same tensors with other values, or some of each, under settings, grad modes
and states of autocast that change between repetitions. Results, gradients and error messages have to be the same.
"""

import argparse
import dataclasses
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from random import Random

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import fastds
from fastds.ops.core import native, plans

from . import invalid
from .campaign import case_of
from .cases import Case, build, tensors
from .compare import _gradients, _in_its_way, _leaves
from .strategies import KINDS, STRATEGIES

REPEATS = 6


class _Functions(TorchFunctionMode):
    """A function mode that changes nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _disabled_autocast():
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        yield


SETTINGS: dict[str, Callable[[], AbstractContextManager]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "reference": lambda: fastds.use_backend("reference"),
    "native": lambda: fastds.use_backend("native"),
    "winograd": lambda: fastds.use_conv_algorithm("winograd"),
    "planes": lambda: fastds.use_conv_algorithm("planes"),
    "direct": lambda: fastds.use_conv_algorithm("direct"),
    "deterministic": _deterministic,
    "function mode": _Functions,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "bfloat16 without cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "disabled autocast": _disabled_autocast,
}
FREQUENT = ("none", "no_grad", "no_grad", "inference_mode", "native")  # settings of most repetitions of a call


def read_bits(tensor: Tensor) -> tuple:
    """Return dtype, layout and the bytes of a tensor."""
    x = tensor.detach().resolve_neg()
    raw = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(x.dtype), tuple(x.shape), x.stride() if x.numel() else None, raw


def draw_arguments(case: Case, kind: str) -> dict:
    arguments = build(case)
    return invalid.changed(arguments, Random(case.seed))[0] if kind == "invalid" else arguments


def make_outcome(case: Case, arguments: dict, setting: str) -> tuple:
    """Return what a call gives: bits of results and gradients, or type and message of its error."""
    if torch.get_num_threads() != case.threads:
        torch.set_num_threads(case.threads)
    native.get_module().set_isa(case.isa)
    try:
        leaves, found = _leaves(arguments), []
        with SETTINGS[setting]():
            for results in _in_its_way(case, arguments):
                results = tensors(results)
                found += [read_bits(t) for t in [*results, *_gradients(results, leaves, case.seed)]]
        return "result", found
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        native.get_module().set_isa("auto")


def move_values(old: dict, new: dict) -> dict:
    """Return the old arguments with the values of the new ones, or the new ones where shapes differ."""
    pairs = list(zip(tensors(old), tensors(new), strict=False))
    if len(tensors(old)) != len(tensors(new)) or any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return new
    with torch.no_grad():
        for a, b in pairs:
            if any(stride == 0 and size > 1 for size, stride in zip(a.shape, a.stride(), strict=True)):
                return new
            a.data.copy_(b)
    return old


def compare(seed: int, op: str, kind: str, number: int, served: bool = False) -> str | None:
    """Return how a call with plans differs from the call without, or None.

    Args:
        seed: seed of the campaign.
        op: name of the op.
        kind: kind of the arguments, one of KINDS.
        number: number of the call in the campaign.
        served: make the call directly and mostly without gradients, as plans serve it.
    """
    case, random = case_of(seed, op, kind, number), Random(f"{seed} {op} {number}")
    if served:
        case = dataclasses.replace(case, way="plain")
    usual, in_place, arguments = random.choice(FREQUENT[1:3] if served else FREQUENT), random.random() < 0.5, None
    for repeat in range(REPEATS):
        changed = dataclasses.replace(case, seed=case.seed + repeat) if kind != "invalid" else case
        drawn = draw_arguments(changed, kind)
        arguments = move_values(arguments, drawn) if in_place and arguments is not None else drawn
        setting = random.choice(list(SETTINGS)) if repeat and random.random() < 0.2 else usual
        if random.random() < 0.1:
            changed = dataclasses.replace(changed, threads=random.choice((1, 2)), way="plain")
        if random.random() < 0.2:
            changed = dataclasses.replace(changed, autocast=random.choice((None, "bfloat16", "float16")))
        with plans.suspended():
            expected = make_outcome(changed, arguments, setting)
        found = make_outcome(changed, arguments, setting)
        if found != expected:
            kinds = f"{expected[0]} -> {found[0]}"
            message = f"{expected[1]} -> {found[1]}" if "result" not in (found[0], expected[0]) else ""
            return f"{op} {kind} {number} repeat {repeat} {setting}: {kinds} {message} {case}"
    return None


def compare_in_fork(seed: int, op: str, kind: str, number: int) -> str | None:
    """Compare a call in a forked child, which has the plans of its parent and must run with one thread."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        fault = compare(seed, op, kind, number)
        os.write(writer, (fault or "same")[:1000].encode())
        os._exit(0)
    os.close(writer)
    outcome = os.read(reader, 1000).decode()
    os.close(reader)
    os.waitpid(child, 0)
    return None if outcome == "same" else f"in a fork: {outcome or 'the child died'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.plans", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ops", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="OP")
    parser.add_argument(
        "--served", action="store_true", help="direct calls without gradients, which run plans most often"
    )
    parser.add_argument("--forks", action="store_true", help="make every call in a forked child, with one thread")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    random, faults, made = Random(options.seed), [], Counter()
    for number in range(options.calls):
        op, kind = random.choice(options.ops), random.choice(list(KINDS))
        before = plans.count_runs()
        if options.forks:
            fault = compare_in_fork(options.seed, op, kind, number)
        else:
            fault = compare(options.seed, op, kind, number, options.served)
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
