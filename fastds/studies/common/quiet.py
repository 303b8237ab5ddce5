# SPDX-License-Identifier: Apache-2.0
"""Suppression of repeated warnings."""

import warnings


def suppress_warnings(call):
    """Return call() with UserWarning suppressed; for calls whose warnings the study has already shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()
