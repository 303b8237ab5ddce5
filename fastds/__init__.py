# SPDX-License-Identifier: Apache-2.0
"""fastds: downscaling and nowcasting of weather fields with deep networks on native kernels."""

import importlib as _importlib
import os as _os
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from fastds import _accessor, _mixins
from fastds._import_hooks import run_after_import as _run_after_import
from fastds._version import __version__

# In a checkout the Triton kernels are in kernels/ next to this package; in an installed package they are in
# fastds/kernels.
_root = _Path(__file__).resolve().parent.parent
if (_root / "kernels").is_dir() and (_root / "csrc").is_dir():
    __path__.append(str(_root))

if TYPE_CHECKING:
    from fastds import ops
    from fastds.models.graph import compile_graph
    from fastds.ops.core.backends import use_backend
    from fastds.ops.explain import explain
    from fastds.ops.impl.conv3x3.algorithm import use_conv_algorithm
    from fastds.tasks.api import downscale, evaluate, nowcast, predict, query
    from fastds.tasks.export import export
    from fastds.tasks.fit import fit

# Functions, imported at first use.
_mixins.register_function("use_backend", "fastds.ops.core.backends:use_backend")
_mixins.register_function("use_conv_algorithm", "fastds.ops.impl.conv3x3.algorithm:use_conv_algorithm")
_mixins.register_function("explain", "fastds.ops.explain:explain")
_mixins.register_function("export", "fastds.tasks.export:export")
_mixins.register_function("compile_graph", "fastds.models.graph:compile_graph")
_mixins.register_function("fit", "fastds.tasks.fit:fit")
# Implementations of fastds.NAME(...) and model.NAME(...).
for _verb in ("downscale", "evaluate", "nowcast", "predict", "query"):
    _mixins.register_function(_verb, f"fastds.tasks.api:{_verb}")


def _register_ops(torch: Any) -> None:
    """Register torch.ops.fastds.*."""
    import fastds.ops  # noqa: F401


# The accessors are registered when xarray is imported, and torch.ops.fastds.* when torch is imported, because these
# imports take most of the time of a short command.
_run_after_import("xarray", _accessor.register_accessor)
_run_after_import("torch", _register_ops)

__all__ = [
    "__version__", "compile_graph", "downscale", "evaluate", "explain", "export",
    "fit", "load", "nowcast", "ops", "predict", "query", "use_backend", "use_conv_algorithm",
]  # fmt: skip

_SUBPACKAGES = {
    "data", "memory", "metrics", "models", "nn", "ops", "plot", "report", "studies", "tasks",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import subpackages and functions at first use."""
    if name in _SUBPACKAGES:
        return _importlib.import_module(f"fastds.{name}")
    if _mixins.is_registered(name):
        globals()[name] = _mixins.get_function(name)
        return globals()[name]
    raise AttributeError(f"module 'fastds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBPACKAGES})


def load(name_or_path: str | _os.PathLike) -> Any:
    """Load a network with its weights. This is fastds.models.load.

    Args:
        name_or_path: name of shipped weights or path of a safetensors file.

    Returns:
        The network in evaluation mode on the CPU, with its card in the attribute `card`.

    Raises:
        FileNotFoundError: the argument is neither the name of shipped weights nor a file.
        ValueError: the file is damaged or is not a weights file of fastds.
    """
    from fastds import models

    return models.load(name_or_path)
