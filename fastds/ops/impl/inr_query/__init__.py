# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a field at arbitrary points from feature maps (implicit neural representation)."""
