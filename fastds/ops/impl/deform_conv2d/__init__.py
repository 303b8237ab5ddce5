# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution, modulated by a mask or guided by a flow."""
