# SPDX-License-Identifier: Apache-2.0
"""Recording of ops and layers as single nodes of torch.fx graphs."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.fx import Proxy


def record_op(function: Callable, given: Mapping[str, Any]) -> Any:
    """Record the call of a public op as one node of the graph of its first argument.

    Args:
        function: the op.
        given: its arguments by name, which are locals() at the beginning of the op. The first one is a Proxy.

    Returns:
        Proxy of the result. If there are several results, they are unpacked by index.
    """
    arguments = dict(given)
    first = arguments.pop(next(iter(arguments)))
    return first.tracer.create_proxy("call_function", function, (first,), arguments, name=function.__name__)


def record_layer(layer: nn.Module, *args: Any, **options: Any) -> Any:
    """Record the call of a layer as one node, as torch.fx records layers of torch.nn.

    Args:
        layer: submodule of the traced module.
        *args: arguments of the call. The first one is a Proxy.
        **options: keyword arguments of the call.

    Returns:
        Proxy of the result.
    """
    tracer = args[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, options)


__all__ = ["Proxy", "record_op", "record_layer"]
