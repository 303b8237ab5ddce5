# SPDX-License-Identifier: Apache-2.0
"""Small errors planted in fastds/, and which tests see them; `python -m tests.mutants --help` runs them."""
