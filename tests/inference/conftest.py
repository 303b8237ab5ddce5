# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastds import models
from fastds.data import coarsen_dataset, synthetic_event
from tests.support.downscaling_cases import awake, give_card


@pytest.fixture(scope="module")
def network():
    """Return a small FC-ZSM with random weights."""
    torch.manual_seed(1)
    model = models.create("fczsm-small", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)
    return give_card(awake(model), name="small")


@pytest.fixture(scope="module")
def event():
    return synthetic_event(3, 5, (96, 128))


@pytest.fixture(scope="module")
def coarse(event):
    return coarsen_dataset(event)
