# SPDX-License-Identifier: Apache-2.0
import sys

from fastds.training.gan.run import main

sys.exit(main())
