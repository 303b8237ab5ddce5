# SPDX-License-Identifier: Apache-2.0
"""Verification and pictures of exceedance probabilities."""
