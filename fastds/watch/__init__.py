# SPDX-License-Identifier: Apache-2.0
"""The command `fastds watch`: one process that computes each new file of a folder."""
