# SPDX-License-Identifier: Apache-2.0
"""Tests that the ops in torch.ops.fastds check the arguments on which their kernels rely.

Valid calls of the registered ops are recorded. Then one property of one argument is changed. The op must refuse the
changed call or give the result of its reference, and it must not crash.
"""

import functools
import warnings

import pytest
import torch

from tests.fuzz.ops import modules
from tests.fuzz.registered import OPS, agrees, call, changes, detached, recorded
from tests.support.forked import in_a_child


def results(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


@functools.cache
def recording():
    """Return one detached call of each registered op."""
    torch.manual_seed(0)
    found = {}
    with warnings.catch_warnings(), recorded() as calls:
        warnings.simplefilter("ignore")  # the guided op has no kernel for a CPU
        for function in (example for module in modules() for example in module.examples()):
            with torch.no_grad():
                function()
            sum(t.square().sum() for t in results(function())).backward()
            second_order(function)
    elsewhere = [call for module in modules() for call in getattr(module, "recorded_elsewhere", tuple)()]
    for name, args in [*calls, *elsewhere]:
        found.setdefault(name, []).append(detached(args))
    return found


def second_order(function):
    """Backpropagate through a gradient penalty of the results of function."""
    y = results(function())
    inputs = [t for t in leaves(y) if t.requires_grad]
    grads = torch.autograd.grad(y, inputs, [torch.randn_like(t) for t in y], create_graph=True, allow_unused=True)
    penalty = sum(g.square().sum() for g in grads if g is not None and g.requires_grad)
    if isinstance(penalty, torch.Tensor):
        penalty.backward()


def leaves(tensors):
    """Return the leaves of the autograd graph."""
    seen, found, stack = set(), [], [t.grad_fn for t in tensors]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [parent for parent, _ in node.next_functions]
    return found


def test_registered_schemas_are_recorded(native):
    assert set(recording()) == set(OPS)


def faults(op, args, out):
    """Call an op with changed arguments, in a forked child.

    Each change is written to `out` before the call, so that a crash shows its cause. Changes that are wrongly accepted
    are marked.
    """
    torch.set_grad_enabled(False)
    free = set()  # (tensor, dimension) that may be longer: then it may have any length
    for change, new in sorted(changes(op, args), key=lambda pair: "->" not in pair[0] or not longer(pair[0])):
        out.write(f"{change}")
        dimension = change.partition(":")[0], change.rpartition(" ")[2]
        try:
            got = call(op, new)
        except (RuntimeError, ValueError, TypeError):
            out.write("\n")
            continue
        if "->" in change and longer(change) and agrees(op, new, got):
            free.add(dimension)
        fits = dimension in free if "->" in change else agrees(op, new, got)
        out.write("\n" if fits else " <- accepted\n")


def longer(change):
    old, new = change.partition(": ")[2].split()[0:3:2]
    return int(new) > int(old)


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded", "ignore:fastds.guided")
def test_schema_change_is_detected(name, native):
    calls = recording()[name][:4]
    lines_written, status = in_a_child(lambda out: [faults(OPS[name], args, out) for args in calls])
    assert status == 0, f"{name} died of {status} at {lines_written[-1]}"
    assert len(lines_written) > 3 * len(calls)
    assert not [line for line in lines_written if line.endswith("accepted")]
