# SPDX-License-Identifier: Apache-2.0
"""Networks as files that run without fastds: ONNX of standard operators, and packages of AOTInductor."""

from fastds.models.export.run import Exported, export

__all__ = ["Exported", "export"]
