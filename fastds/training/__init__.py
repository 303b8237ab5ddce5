# SPDX-License-Identifier: Apache-2.0
"""Training: configuration, trainer, run directory, model card, and the command `fastds train`."""
