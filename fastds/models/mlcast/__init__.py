# SPDX-License-Identifier: Apache-2.0
"""The nowcasting network of MLCast, a joint project of Europe's weather services, on fused ConvGRU steps."""

from fastds.models.mlcast.network import MLCastConvGRU

PRESETS = {
    "mlcast-convgru": (
        "MLCastConvGRU",
        {"num_blocks": 5},
        "MLCast's ConvGRU encoder and decoder as `mlcast train` builds it; reads its weights unchanged.",
    )
}

__all__ = ["PRESETS", "MLCastConvGRU"]
