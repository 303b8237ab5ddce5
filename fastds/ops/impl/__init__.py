# SPDX-License-Identifier: Apache-2.0
"""The ops, one folder each: op.py has the public function and its dispatch, reference.py the plain-torch oracle."""
