# SPDX-License-Identifier: Apache-2.0
"""Ops and layers as single nodes of graphs that torch.fx records."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.fx import Proxy


def record_op(function: Callable, given: Mapping[str, Any]) -> Any:
    """The call of a public op as one node of the graph that its first argument belongs to.

    Args:
        function: the op.
        given: its arguments by name, locals() at its beginning, the first of which is a Proxy.

    Returns: the Proxy of the result, of several one that is unpacked by index.
    """
    arguments = dict(given)
    first = arguments.pop(next(iter(arguments)))
    return first.tracer.create_proxy("call_function", function, (first,), arguments, name=function.__name__)


def record_layer(layer: nn.Module, *args: Any, **options: Any) -> Any:
    """The call of a layer as one node, as torch.fx records layers of torch.nn.

    Args:
        layer: a part of the module that is recorded.
        args, options: of its call, the first a Proxy.

    Returns: the Proxy of the result.
    """
    tracer = args[0].tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), args, options)


__all__ = ["Proxy", "record_op", "record_layer"]
