# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastds.ops import memory_gates
from tests.support.gates_cases import GateTests, s


class TestMemoryGates(GateTests):
    gates, names, wide, states, options = (3, 1), ("pre", "c"), (1,), (1,), ("none",)
    function = staticmethod(memory_gates)
    op = torch.ops.fastds.memory_gates.default

    @staticmethod
    def oracle(pre, c):
        n = c.shape[1]
        return s(pre[:, n : 2 * n]) * c + s(pre[:, :n]) * torch.tanh(pre[:, 2 * n :])

    def output_dtypes(self, tensors):
        return [tensors[1].dtype]


class TestMemoryGatesTanh(TestMemoryGates):
    options = ("tanh",)

    @staticmethod
    def function(pre, c):
        return memory_gates(pre, c, state_activation="tanh")

    @staticmethod
    def oracle(pre, c):
        return TestMemoryGates.oracle(pre, torch.tanh(c))


def test_unknown_act():
    with pytest.raises(ValueError, match="state_activation must be one of 'none', 'tanh', got 'relu'"):
        memory_gates(torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1, 1), state_activation="relu")
