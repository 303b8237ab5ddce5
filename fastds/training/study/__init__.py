# SPDX-License-Identifier: Apache-2.0
"""One arbitrary-scale model against its baselines: same encoder, samples and steps, scored on a region of its own.

`fastds train --config fields-500hPa --data.path=FILE` trains what is not there yet, scores it and prints the table.
"""

from fastds.training.study.run import Method, StudyConfig, parse_arguments, run_study, train
from fastds.training.study.table import render

__all__ = ["Method", "StudyConfig", "parse_arguments", "render", "run_study", "train"]
