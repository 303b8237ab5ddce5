# SPDX-License-Identifier: Apache-2.0
"""torch.ops.fastds.*, called by anybody: each checks what its kernel relies on.

Valid calls of every registered op, backward ones among them, are recorded; then one thing of one argument is changed, a
dimension above all. An op must refuse that, or compute what its reference computes; it never crashes.
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
    """One call of every registered op by name, detached."""
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
    """Gradients of gradients, which are ops of their own here and there."""
    y = results(function())
    inputs = [t for t in leaves(y) if t.requires_grad]
    grads = torch.autograd.grad(y, inputs, [torch.randn_like(t) for t in y], create_graph=True, allow_unused=True)
    penalty = sum(g.square().sum() for g in grads if g is not None and g.requires_grad)
    if isinstance(penalty, torch.Tensor):
        penalty.backward()


def leaves(tensors):
    """The leaves of the graph behind the tensors."""
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
    """Writes every change before it is tried, and behind it what went wrong."""
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
    said, status = in_a_child(lambda out: [faults(OPS[name], args, out) for args in calls])
    assert status == 0, f"{name} died of {status} at {said[-1]}"
    assert len(said) > 3 * len(calls)
    assert not [line for line in said if line.endswith("accepted")]
