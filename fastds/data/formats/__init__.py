# SPDX-License-Identifier: Apache-2.0
"""One module for each file format that is read; registry.py lists them, opening.py has open_dataset."""
