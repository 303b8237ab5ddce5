# SPDX-License-Identifier: Apache-2.0
"""Code that the tasks share."""
