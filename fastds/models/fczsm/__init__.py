# SPDX-License-Identifier: Apache-2.0
"""FC-ZSM (Chen, Qin and Dai 2022): fields in time and space from coarse sequences."""

from fastds.models.fczsm.network import FCZSM

__all__ = ["FCZSM"]
