# SPDX-License-Identifier: Apache-2.0
"""The next radar fields from the last ones (DB-RNN)."""
