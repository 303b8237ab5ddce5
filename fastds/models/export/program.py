# SPDX-License-Identifier: Apache-2.0
"""A network as one graph of torch's own operators, with the sizes of batch, field and points left open."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
from torch.export import Dim, ExportedProgram

from fastds.models.export.deform import deform_conv2d
from fastds.models.export.signatures import Signature
from fastds.ops.core.registry import OPS

DEFORM = torch.ops.fastds.deform_conv2d.default
_LOGGERS = ("torch", "torch.__trace", "torch.onnx", "torch.export", "torch._inductor", "onnxscript")
TRACED = {"batch": 2, "height": 37, "width": 46, "points": 30}  # sizes a graph is made with, padded to multiples
OTHERS = ({"batch": 1, "height": 52, "width": 40, "points": 70},)  # and sizes it is tried with, too, not padded


def trace(given: Signature, keep_deform: bool) -> ExportedProgram:
    """The graph of a network.

    Args:
        given: of the network.
        keep_deform: leave deform_conv2d in the graph, where ONNX has an operator for it.

    Raises:
        ValueError: a network that fixes a size.
    """
    dims = {name: Dim(name, min=given.least if name in ("height", "width") else 2) for name in TRACED}
    shapes = tuple({k: dims[n] for k, n in enumerate(i.shape) if n in dims} for i in given.inputs.values())
    inputs = given.draw(at_least(TRACED, given.least), seed=1)
    with torch.no_grad(), exporting("it does not leave its sizes open"):
        program = torch.export.export(
            given.module, inputs, dynamic_shapes=(shapes,), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
        return _without_assertions(program.run_decompositions(_table(keep_deform)))


def at_least(sizes: dict[str, int], least: int) -> dict[str, int]:
    """The sizes, those of the field above the least one."""
    return {name: n + max(0, least - 8) if name in ("height", "width") else n for name, n in sizes.items()}


def _without_assertions(program: ExportedProgram) -> ExportedProgram:
    """The program without what torch asserts of sizes: layouts that came out so at the traced ones, which others need
    not have. The file is tried with both kinds of sizes instead."""
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _table(keep_deform: bool) -> dict[Callable, Callable]:
    """What stands for each op of fastds."""
    table = {op.overload: op.reference for op in OPS.values()} | {DEFORM: deform_conv2d}
    if keep_deform:
        del table[DEFORM]
    return table


@contextlib.contextmanager
def exporting(failed: str) -> Iterator[None]:
    """A block in which torch's exporters say nothing; what they raise becomes a ValueError with `failed`."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:  # of many kinds, with pages of text
        raise ValueError(f"the network cannot be exported, {failed}: {_first_reason(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reasons = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (reasons or lines)[0][:300]
