# SPDX-License-Identifier: Apache-2.0
"""From a coarse file or dataset to a fine one.

run.py checks and calls (`downscale`, `downscale_file`), job.py chooses tiles and makes the frames, refinement.py turns
a pair of coarse frames into fine ones, tiling.py cuts grids, demo.py is `fastds demo`.
"""

from .run import Report, downscale, downscale_file, pick_model

__all__ = ["Report", "downscale", "downscale_file", "pick_model"]
