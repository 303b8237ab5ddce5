# SPDX-License-Identifier: Apache-2.0
"""How far inputs lie from what a network was trained on."""
