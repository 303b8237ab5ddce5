# SPDX-License-Identifier: Apache-2.0
"""Cases, files and helpers that several test modules share."""
