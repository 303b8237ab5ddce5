# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution, modulated or guided by a flow."""
