# SPDX-License-Identifier: Apache-2.0
"""fastds: downscaling and nowcasting of weather fields with deep networks on native kernels."""

import gc as _gc
import importlib as _importlib
import os as _os
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from fastds import _outputs as _outputs
from fastds._version import __version__

_command = _outputs.is_running_as_cli()
if _command:
    _outputs.install_signal_handlers()  # before the import of torch, so that signals are handled during the import
    from fastds import _unknown_names  # imports the parsers; must follow the installation of the signal handlers

    _unknown_names.exit_on_unknown_name()
    _gc.disable()  # garbage collection during the import finds nothing and takes 0.3 s
    # Limits the busy-waiting of OpenMP threads, which slows down computations on a machine with other load.
    if "OMP_WAIT_POLICY" not in _os.environ:
        _os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# In a checkout the Triton kernels are in kernels/ next to this package; in an installed package they are in
# fastds/kernels.
_root = _Path(__file__).resolve().parent.parent
if (_root / "kernels").is_dir() and (_root / "csrc").is_dir():
    __path__.append(str(_root))

from fastds import _accessor, _mixins, ops  # noqa: E402  registers torch.ops.fastds.*
from fastds._import_hooks import run_after_import as _run_after_import  # noqa: E402
from fastds.ops.core.backends import use_backend  # noqa: E402
from fastds.ops.explain import explain  # noqa: E402
from fastds.ops.impl.conv3x3.algorithm import use_conv_algorithm  # noqa: E402

if _command:
    _gc.freeze()
    _gc.enable()

if TYPE_CHECKING:
    from fastds.models.graph import compile_graph
    from fastds.tasks.api import downscale, evaluate, nowcast, predict, query
    from fastds.tasks.export import export
    from fastds.tasks.fit import fit

_mixins.register_function("export", "fastds.tasks.export:export")
_mixins.register_function("compile_graph", "fastds.models.graph:compile_graph")
_mixins.register_function("fit", "fastds.tasks.fit:fit")
# Implementations of fastds.NAME(...) and model.NAME(...), imported at first use.
for _verb in ("downscale", "evaluate", "nowcast", "predict", "query"):
    _mixins.register_function(_verb, f"fastds.tasks.api:{_verb}")

# The accessors are registered when xarray is imported, because importing xarray takes a quarter of the import time.
_run_after_import("xarray", _accessor.register_accessor)

__all__ = [
    "__version__", "compile_graph", "downscale", "evaluate", "explain", "export",
    "fit", "load", "nowcast", "ops", "predict", "query", "use_backend", "use_conv_algorithm",
]  # fmt: skip

_SUBPACKAGES = {
    "data", "memory", "metrics", "models", "nn", "plot", "report", "studies", "tasks",
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
    return [*__all__, *sorted(_SUBPACKAGES)]


def load(name_or_path: str | _os.PathLike) -> Any:
    """Load a network with its weights. This is fastds.models.load.

    Args:
        name_or_path: name of shipped weights or path of a safetensors file.

    Returns:
        The network in evaluation mode on the CPU, with its card in the attribute `card`.

    Raises:
        Exception: as fastds.models.load.
    """
    from fastds import models

    return models.load(name_or_path)
