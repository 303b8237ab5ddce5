# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution with a fused epilogue."""
