# SPDX-License-Identifier: Apache-2.0
"""Tests of recurrent cells with interpreted Triton kernels, against float64."""

import pytest
import torch

import fastds
from fastds.models.db_rnn.cells import CELLS
from tests.support.cell_cases import three_steps_of_a_cell

pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize("name", CELLS)
def test_three_steps_of_a_cell(name):
    with fastds.use_backend("triton"):
        three_steps_of_a_cell(name, torch.float32, 1, channels=4, size=(4, 4))
