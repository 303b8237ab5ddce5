# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from fastds.ops import gru_update
from tests.support.gates_cases import GateTests


class TestGruUpdate(GateTests):
    gates, names, states, second = (1, 1, 1), ("z", "pre_n", "h"), (0, 2), True
    options = ("z", "tanh", 0.2)
    op = torch.ops.fastds.gru_update.default

    def function(self, z, pre_n, h):
        keep, act, slope = self.options
        return gru_update(z, pre_n, h, keep=keep, activation=act, negative_slope=slope)

    def oracle(self, z, pre_n, h):
        keep, act, slope = self.options
        n = torch.tanh(pre_n) if act == "tanh" else F.leaky_relu(pre_n, slope)
        return z * h + (1 - z) * n if keep == "z" else (1 - z) * h + z * n

    def output_dtypes(self, tensors):
        return [tensors[0].dtype]


class TestGruUpdateOtherSide(TestGruUpdate):
    options = ("1-z", "tanh", 0.2)


class TestGruUpdateLeaky(TestGruUpdate):
    options = ("1-z", "leaky_relu", 0.1)


def test_options():
    x = torch.ones(1, 1, 1, 1)
    for name, value in (("keep", "h"), ("activation", "relu"), ("negative_slope", -1.0)):
        with pytest.raises(ValueError, match=f"{name} must be .*, got "):
            gru_update(x, x, x, **{name: value})
