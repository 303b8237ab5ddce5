# SPDX-License-Identifier: Apache-2.0
"""Trace a network as one graph of PyTorch operators, with dynamic sizes of batch, field and points."""

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
TRACED = {"batch": 2, "height": 37, "width": 46, "points": 30}  # sizes in the trace; networks pad them
OTHERS = ({"batch": 1, "height": 52, "width": 40, "points": 70},)  # further sizes in the check, not padded


def trace(given: Signature, keep_deform: bool) -> ExportedProgram:
    """Trace the graph of a network.

    Args:
        given: signature of the network.
        keep_deform: keep deform_conv2d as one operator, for which ONNX has an equivalent.

    Raises:
        ValueError: If the network cannot be traced, for example because it fixes a size that should be dynamic.
    """
    dims = {name: Dim(name, min=given.least if name in ("height", "width") else 2) for name in TRACED}
    shapes = tuple({k: dims[n] for k, n in enumerate(i.shape) if n in dims} for i in given.inputs.values())
    inputs = given.draw(raise_to_least_size(TRACED, given.least), seed=1)
    with torch.no_grad(), convert_export_errors("it does not leave its sizes open"):
        program = torch.export.export(
            given.module, inputs, dynamic_shapes=(shapes,), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
        return _remove_assertions(program.run_decompositions(_build_decompositions(keep_deform)))


def raise_to_least_size(sizes: dict[str, int], least: int) -> dict[str, int]:
    """Increase height and width for networks with a least size above 8.

    Args:
        sizes: named sizes.
        least: least height and width of the network.
    """
    return {name: n + max(0, least - 8) if name in ("height", "width") else n for name, n in sizes.items()}


def _remove_assertions(program: ExportedProgram) -> ExportedProgram:
    """Remove PyTorch's assertions about sizes.

    The assertions hold memory layouts of the traced sizes, which other sizes need not have. The written file is checked
    at two sets of sizes instead.
    """
    graph = program.graph_module.graph
    for node in reversed(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _build_decompositions(keep_deform: bool) -> dict[Callable, Callable]:
    """Return the decomposition of each op of fastds into PyTorch operators."""
    table = {op.overload: op.reference for op in OPS.values()} | {DEFORM: deform_conv2d}
    if keep_deform:
        del table[DEFORM]
    return table


@contextlib.contextmanager
def convert_export_errors(failed: str) -> Iterator[None]:
    """Context manager that silences PyTorch's exporters and converts most of their exceptions to ValueError.

    Args:
        failed: text for the message that says what failed.
    """
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
    except Exception as error:  # exporters raise many types, with very long messages
        raise ValueError(f"the network cannot be exported, {failed}: {_extract_reason(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _extract_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reasons = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return (reasons or lines)[0][:300]
