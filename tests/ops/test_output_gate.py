# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastds.ops import output_gate
from tests.support.gates_cases import GateTests, s


class TestOutputGate(GateTests):
    gates, names, wide, options = (1, 1), ("pre", "value"), (1,), ("sigmoid",)
    function = staticmethod(output_gate)
    op = torch.ops.fastds.output_gate.default

    @staticmethod
    def oracle(pre, value):
        return s(pre) * torch.tanh(value)

    def output_dtypes(self, tensors):
        return [tensors[0].dtype]


class TestOutputGateTanh(TestOutputGate):
    options = ("tanh",)

    @staticmethod
    def function(pre, value):
        return output_gate(pre, value, activation="tanh")

    @staticmethod
    def oracle(pre, value):
        return torch.tanh(pre) * torch.tanh(value)


def test_unknown_act():
    with pytest.raises(ValueError, match="activation must be one of 'sigmoid', 'tanh', got 'relu'"):
        output_gate(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), activation="relu")
