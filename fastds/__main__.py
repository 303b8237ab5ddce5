# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command `fastds` and of `python -m fastds`."""

import os
import sys

from fastds import _outputs
from fastds._duck_arrays import skip_unimported_packages
from fastds._import_hooks import run_after_import


def main() -> int:
    """Prepare this process for the command `fastds`, run the command, and return its exit status."""
    _outputs.install_signal_handlers()  # before slow imports, so that signals are handled during the imports
    # Limits the busy-waiting of OpenMP threads, which slows down computations on a machine with other load. OpenMP
    # reads it when torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    run_after_import("xarray", skip_unimported_packages)
    from fastds.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
