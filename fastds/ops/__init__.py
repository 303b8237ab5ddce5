# SPDX-License-Identifier: Apache-2.0
"""Public ops: functions on tensors, which are also registered as torch.ops.fastds.*.

help(fastds.ops.NAME) shows the formula, shapes, units, gradients, errors and source of an op. GridSpec and PointSpec
describe the query points of inr_query.

The number of threads is that of torch (torch.set_num_threads). If a cgroup limits the CPU time of the process, the
import reduces torch's default to the limit. A process that is forked after torch or an op used several threads hangs
when it starts threads itself. Either call torch.set_num_threads(1) first in the forked process, as the workers of
torch's DataLoader do, or start processes with the method "spawn".

Each folder impl/<op> is imported here. `__all__` of its op.py lists the public functions.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from fastds.ops import impl
from fastds.ops.core.cpu_quota import limit_default_threads

if TYPE_CHECKING:  # type checkers and editors cannot evaluate the loop below
    from fastds.ops.impl.conv1x1.op import *  # noqa: F403
    from fastds.ops.impl.conv2d.op import *  # noqa: F403
    from fastds.ops.impl.conv3x3.op import *  # noqa: F403
    from fastds.ops.impl.conv_rnn.op import *  # noqa: F403
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

limit_default_threads()

from fastds.ops.flops import register_formulas as _register_formulas  # noqa: E402  needs the ops imported above

_register_formulas()


def __dir__() -> list[str]:
    return sorted(__all__)
