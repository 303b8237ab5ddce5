# SPDX-License-Identifier: Apache-2.0
"""fastds: downscaling and nowcasting of weather fields with deep networks on fast native kernels."""

import gc as _gc
import importlib as _importlib
import os as _os
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from fastds import _outputs as _outputs
from fastds._version import __version__

_command = _outputs.is_command()
if _command:
    _outputs.end_at_once()  # from here on, while torch is imported, too
    from fastds import _misspelt

    _misspelt.end_misspelt()
    _gc.disable()  # what is imported stays; to look for garbage in it takes .3 s, and as much again at the end
    # Threads of OpenMP that wait give the core away: where others work beside, spinning costs 4 to 12 times the time.
    if "OMP_WAIT_POLICY" not in _os.environ:
        _os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# In a checkout the Triton kernels lie beside this package as kernels/; installed they are fastds/kernels.
_root = _Path(__file__).resolve().parent.parent
if (_root / "kernels").is_dir() and (_root / "csrc").is_dir():
    __path__.append(str(_root))

from fastds import _accessor, _verbs, ops  # noqa: E402  registers torch.ops.fastds.*
from fastds._behind_import import behind_import as _behind_import  # noqa: E402
from fastds.memory import keep_freed_memory  # noqa: E402
from fastds.ops.core.backends import backend  # noqa: E402
from fastds.ops.explained import explain  # noqa: E402
from fastds.ops.impl.conv3x3.algorithm import convolution  # noqa: E402

if _command:
    _gc.freeze()
    _gc.enable()

if TYPE_CHECKING:
    from fastds.models.graph import compile_graph
    from fastds.tasks.common.export import export
    from fastds.tasks.common.fit import fit
    from fastds.tasks.verbs import downscale, evaluate, nowcast, predict, query

_verbs.register("export", "fastds.tasks.common.export:export")
_verbs.register("compile_graph", "fastds.models.graph:compile_graph")
_verbs.register("fit", "fastds.tasks.common.fit:fit")
# What does the work of fastds.VERB(...) and of model.VERB(...), imported at first use.
for _verb in ("downscale", "evaluate", "nowcast", "predict", "query"):
    _verbs.register(_verb, f"fastds.tasks.verbs:{_verb}")

# xarray takes a quarter of the time of this import, and networks do not need it.
_behind_import("xarray", _accessor.register)

__all__ = [
    "__version__", "backend", "compile_graph", "convolution", "downscale", "evaluate", "explain", "export",
    "fit", "keep_freed_memory", "load", "nowcast", "ops", "predict", "query",
]  # fmt: skip

_SUBPACKAGES = {
    "data", "metrics", "models", "nn", "plot", "report", "studies", "tasks",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Subpackages and verbs are imported at first use."""
    if name in _SUBPACKAGES:
        return _importlib.import_module(f"fastds.{name}")
    if _verbs.registered(name):
        globals()[name] = _verbs.function(name)
        return globals()[name]
    raise AttributeError(f"module 'fastds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *sorted(_SUBPACKAGES)]


def load(name_or_path: str | _os.PathLike) -> Any:
    """Load a model, name_or_path being a shipped name or a safetensors file: fastds.models.load, whose errors it
    raises."""
    from fastds import models

    return models.load(name_or_path)
