# SPDX-License-Identifier: Apache-2.0
"""The template of an op."""
