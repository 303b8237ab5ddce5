# SPDX-License-Identifier: Apache-2.0
"""Output files and static maps."""
