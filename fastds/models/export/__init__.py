# SPDX-License-Identifier: Apache-2.0
"""Export networks to files that run without fastds: ONNX with standard operators, or AOTInductor packages."""

from fastds.models.export.run import Exported, export

__all__ = ["Exported", "export"]
