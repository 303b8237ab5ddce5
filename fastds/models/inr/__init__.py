# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale downscaling by implicit neural representations, and baselines with the same encoders."""

from fastds.models.inr.decoders import DECODERS, Encoded
from fastds.models.inr.encoders import ENCODERS
from fastds.models.inr.network import FixedRatioDownscaler, INRDownscaler

__all__ = ["DECODERS", "ENCODERS", "Encoded", "FixedRatioDownscaler", "INRDownscaler"]
