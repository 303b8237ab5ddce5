# SPDX-License-Identifier: Apache-2.0
"""Whole recurrent cells on the Triton kernels, interpreted: three steps with all gradients against float64."""

import pytest
import torch

import fastds
from fastds.models.db_rnn.cells import CELLS
from tests.support.cell_cases import three_steps_of_a_cell

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("name", CELLS)
def test_three_steps_of_a_cell(name):
    """Operators without a Triton kernel stay what they are on a CPU."""
    with fastds.use_backend("triton"):
        three_steps_of_a_cell(name, torch.float32, 1, channels=4, size=(4, 4))
