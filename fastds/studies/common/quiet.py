# SPDX-License-Identifier: Apache-2.0
"""Calls whose warnings have been shown before."""

import warnings


def suppress_warnings(call):
    """What call returns, without its warnings, which the study has shown before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()
