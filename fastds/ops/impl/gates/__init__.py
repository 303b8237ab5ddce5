# SPDX-License-Identifier: Apache-2.0
"""The pointwise passes of recurrent cells."""
