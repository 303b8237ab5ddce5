# SPDX-License-Identifier: Apache-2.0
"""torch.ops.fastds.*, called by anybody: each checks what its kernel relies on.

Valid calls of every registered op, backward ones among them, are recorded; then one thing of one argument is changed, a
dimension above all. An op must refuse that, or compute what its reference computes; it never crashes.
"""

import functools
import warnings

import pytest
import torch
from forked import in_a_child
from fuzz.registered import OPS, agrees, call, changes, detached, recorded

from fastds import ops
from fastds.ops import GridSpec
from fastds.ops.impl.deform_conv2d.guided import guided_deform_conv2d
from fastds.ops.impl.gates.op import GRU_RESET_PACKED

B, C, H, W = 2, 4, 5, 6
LAST = torch.channels_last


def maps(channels=C, batch=B, size=(H, W), grad=True):
    return torch.randn(batch, channels, *size).contiguous(memory_format=LAST).requires_grad_(grad)


def weight(outputs, inputs, *kernel):
    return (torch.randn(outputs, inputs, *kernel or (3, 3)) / 6).requires_grad_()


def vector(size):
    return torch.randn(size).requires_grad_()


def deform_arguments():
    return maps(), maps(2 * 2 * 9), weight(6, 2), vector(6), maps(2 * 9)


def examples():
    """Public calls, each with as many arguments as there are."""
    x, offset, filters, bias, mask = deform_arguments()
    query = {"rho_w": vector((8, 2)), "cell_w": vector((8, 2)), "bias": vector(8), "cell": torch.rand(B, 2)}
    trunk = [(weight(7, 8, 1).squeeze(-1), vector(7)), (weight(3, 7, 1).squeeze(-1), vector(3))]
    attention = {**query, "heads": 2, "dk": 3, "rho_bias": vector((2, 2)), "skip": maps(3)}
    grid = GridSpec.cells((H, W), (7, 8))
    points = ops.PointSpec(grid.points().base.expand(B, -1, -1), torch.rand(B, grid.count, 2))
    fourier = {"feature": "fourier", "ensemble": "late", "phase": vector((4, 2)), "cell": torch.rand(B, 2)}
    cell = (maps(), maps(), maps())
    yield lambda: ops.null_op(maps())
    yield lambda: ops.lstm_gates(maps(4 * C), maps())
    yield lambda: ops.st_lstm_gates(maps(4 * C), maps())
    yield lambda: ops.memory_gates(maps(3 * C), maps(), state_act="tanh")
    yield lambda: ops.output_gate(maps(), maps())
    yield lambda: ops.gru_reset(maps(), maps(), maps())
    yield lambda: GRU_RESET_PACKED.forward(maps(2 * C), maps())
    yield lambda: ops.gru_update(maps(), maps(), maps(), act="leaky_relu")
    yield lambda: ops.traj_gru_gates(maps(3 * C), maps(3 * C), maps())
    yield lambda: ops.pixel_shuffle(maps(), 2, vector(C), "leaky_relu")
    yield lambda: ops.pixel_unshuffle(maps(size=(4, 6)), 2)
    both = {"x2": maps(3), "act": "leaky_relu", "shuffle": 2, "padding_mode": "circular_x"}
    for algorithm in ("winograd", "direct"):
        options = {**both, "residual": maps(8), "algorithm": algorithm}
        yield lambda options=options: ops.conv3x3(maps(), weight(8, C + 3), vector(8), **options)
    one = {"x2": maps(3), "residual": maps(8), "act": "leaky_relu"}
    yield lambda: ops.conv1x1(maps(), weight(8, C + 3, 1, 1), vector(8), **one)
    yield lambda: ops.conv_lstm_cell(*cell, weight(4 * C, 2 * C), vector(4 * C))
    yield lambda: ops.conv_st_lstm_gates(*cell, weight(4 * C, 2 * C), vector(4 * C))
    yield lambda: ops.conv_memory_gates(*cell, weight(3 * C, 2 * C), vector(3 * C))
    yield lambda: ops.conv_output_gate(*cell, weight(C, 2 * C), vector(C), maps())
    gru = (weight(2 * C, 2 * C), vector(2 * C), weight(C, 2 * C), vector(C))
    yield lambda: ops.conv_gru_cell(*cell[:2], *gru)
    yield lambda: ops.deform_conv2d(x, offset, filters, bias, 1, 1, 1, mask)
    yield lambda: ops.window_attention2d(maps(), maps(), maps(), window=3)
    yield lambda: ops.inr_query(maps(8 + 2 * 2 * 3), grid, trunk, **attention)
    yield lambda: ops.inr_query(maps(16), points, trunk, **fourier, mask=torch.rand(B, H, W) < 0.8)
    yield lambda: guided_deform_conv2d(x, maps(3 * 2 * 9), filters, bias, maps(2), 2, True, 0.5)


def results(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


@functools.cache
def recording():
    """One call of every registered op by name, detached."""
    torch.manual_seed(0)
    found = {}
    with warnings.catch_warnings(), recorded() as calls:
        warnings.simplefilter("ignore")  # the guided op has no kernel for a CPU
        for function in examples():
            with torch.no_grad():
                function()
            sum(t.square().sum() for t in results(function())).backward()
            second_order(function)
    x, _, filters, *_ = deform_arguments()  # its backward runs on a GPU alone
    backward = (torch.randn(B, 6, H, W), x, maps(3 * 2 * 9), filters, maps(2), 2, True, [True] * 5)
    for name, args in [*calls, ("guided_deform_conv2d_backward", backward)]:
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


def test_every_registered_op_is_recorded(native):
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
def test_one_thing_changed(name, native):
    calls = recording()[name][:4]
    said, status = in_a_child(lambda out: [faults(OPS[name], args, out) for args in calls])
    assert status == 0, f"{name} died of {status} at {said[-1]}"
    assert len(said) > 3 * len(calls)
    assert not [line for line in said if line.endswith("accepted")]
