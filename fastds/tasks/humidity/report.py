# SPDX-License-Identifier: Apache-2.0
"""HTML report of downscaled humidity: the same as for gridded fields."""

from fastds.tasks.fields.report import report_files

__all__ = ["report_files"]
