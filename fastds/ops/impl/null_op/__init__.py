# SPDX-License-Identifier: Apache-2.0
"""Template of an op."""
