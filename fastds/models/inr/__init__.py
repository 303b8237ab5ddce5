# SPDX-License-Identifier: Apache-2.0
"""Arbitrary-scale downscaling by implicit neural representation, and its baselines on the same encoders."""

from fastds.models.inr.bands import Encoded
from fastds.models.inr.decoders import DECODERS
from fastds.models.inr.encoders import ENCODERS
from fastds.models.inr.fixed_ratio import FixedRatioDownscaler
from fastds.models.inr.network import INRDownscaler

__all__ = ["DECODERS", "ENCODERS", "Encoded", "FixedRatioDownscaler", "INRDownscaler"]
