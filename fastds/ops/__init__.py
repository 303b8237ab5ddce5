# SPDX-License-Identifier: Apache-2.0
"""The ops: functions on tensors, also registered as torch.ops.fastds.*.

help(fastds.ops.NAME) gives formula, shapes, units, gradients, errors and source. GridSpec and PointSpec say where
inr_query is asked.

Threads are torch's, torch.set_num_threads. A child that was forked after an op or torch itself ran on several threads
has none of them, and hangs when it asks for more than one: call torch.set_num_threads(1) in it first, as torch's
DataLoader does in its workers, or start processes by spawn.

Every folder impl/<op> is found here; its op.py names its public functions in __all__.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from fastds.ops import impl

if TYPE_CHECKING:  # type checkers and editors cannot follow the loop below
    from fastds.ops.impl.conv1x1.op import *  # noqa: F403
    from fastds.ops.impl.conv2d.op import *  # noqa: F403
    from fastds.ops.impl.conv3x3.op import *  # noqa: F403
    from fastds.ops.impl.conv_cells.op import *  # noqa: F403
    from fastds.ops.impl.deform_conv2d.op import *  # noqa: F403
    from fastds.ops.impl.gates.op import *  # noqa: F403
    from fastds.ops.impl.inr_query.op import *  # noqa: F403
    from fastds.ops.impl.null_op.op import *  # noqa: F403
    from fastds.ops.impl.pixel_shuffle.op import *  # noqa: F403
    from fastds.ops.impl.window_attention2d.op import *  # noqa: F403

__all__: list[str] = []

for _folder in sorted(module.name for module in iter_modules(impl.__path__)):
    _op = import_module(f"fastds.ops.impl.{_folder}.op")
    globals().update({name: getattr(_op, name) for name in _op.__all__})
    __all__ += _op.__all__

__all__.sort()

from fastds.ops.flops import register_formulas as _register_formulas  # noqa: E402  of the ops found above

_register_formulas()


def __dir__() -> list[str]:
    return sorted(__all__)
