# SPDX-License-Identifier: Apache-2.0
"""`python -m fastds` is the command fastds."""

import sys

from fastds.cli import main

sys.exit(main())
