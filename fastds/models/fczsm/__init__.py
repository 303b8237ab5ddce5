# SPDX-License-Identifier: Apache-2.0
"""FC-ZSM (Chen, Qin and Dai 2022): joint temporal and spatial downscaling of sequences of coarse fields."""

from fastds.models.fczsm.network import FCZSM

__all__ = ["FCZSM"]
