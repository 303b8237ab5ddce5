# SPDX-License-Identifier: Apache-2.0
"""Nowcasting of radar fields from the last frames (DB-RNN and related networks)."""
