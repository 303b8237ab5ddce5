# SPDX-License-Identifier: Apache-2.0
"""Networks for downscaling and nowcasting: build presets by name, load and save weights.

The modules are imported at the first use of a name, because the networks need torch and lists of weights do not.
"""

import importlib as _importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastds.models.card import ModelCard
    from fastds.models.checkpoint import available, load, load_card, save
    from fastds.models.fczsm import FCZSM
    from fastds.models.inr import INRDownscaler
    from fastds.models.registry import create
    from fastds.models.wgan_gp import HumidityCritic, HumidityGenerator

__all__ = [
    "FCZSM", "HumidityCritic", "HumidityGenerator", "INRDownscaler", "ModelCard", "available", "create", "load",
    "load_card", "save",
]  # fmt: skip

_MODULES = {
    "FCZSM": "fczsm", "HumidityCritic": "wgan_gp", "HumidityGenerator": "wgan_gp", "INRDownscaler": "inr",
    "ModelCard": "card", "available": "checkpoint", "create": "registry", "load": "checkpoint",
    "load_card": "weight_files", "save": "checkpoint",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name of `__all__`, or a module of this package, at its first use."""
    if name in _MODULES:
        value = getattr(_importlib.import_module(f"fastds.models.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return _importlib.import_module(f"fastds.models.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"fastds.models.{name}":
                raise
    raise AttributeError(f"module 'fastds.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
