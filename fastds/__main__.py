# SPDX-License-Identifier: Apache-2.0
"""Entry point of `python -m fastds`, which is the command fastds."""

import sys

from fastds.cli import main

sys.exit(main())
