# SPDX-License-Identifier: Apache-2.0
"""What FCZSM.compile_graph refuses; the graph itself is in tests/gpu/test_fczsm.py."""

import pytest
import torch

from fastds.models import create


def test_without_cuda_the_error_says_what_to_do():
    model = create("fczsm", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)
    with pytest.raises(ValueError, match="needs a model on a CUDA device, this one is on cpu: call the model itself"):
        model.compile_graph(torch.zeros(1, 2, 1, 8, 8))
    with pytest.raises(ValueError, match="dtype must be torch.bfloat16, .* got torch.float64"):
        model.compile_graph(torch.zeros(1, 2, 1, 8, 8), dtype=torch.float64)
