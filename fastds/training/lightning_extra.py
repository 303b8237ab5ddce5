# SPDX-License-Identifier: Apache-2.0
"""Import Lightning, or raise ImportError with the command that installs it."""

try:
    import lightning as L
    from lightning.pytorch import callbacks, loggers
    from lightning.pytorch.plugins.io import TorchCheckpointIO
    from lightning.pytorch.strategies import DDPStrategy
except ImportError as error:
    raise ImportError(
        f"training needs Lightning ({error}): python -m pip install '.[train]' in a clone of fastds"
    ) from None

__all__ = ["DDPStrategy", "L", "TorchCheckpointIO", "callbacks", "loggers"]
