# SPDX-License-Identifier: Apache-2.0
"""Calls whose warnings have been shown before."""

import warnings


def quietly(call):
    """What call returns, without its warnings, which the study has shown before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call()
