# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from fastds.ops import traj_gru_gates
from tests.support.gates_cases import GateTests, s


class TestTrajGruGates(GateTests):
    gates, names, states, options = (3, 3, 1), ("x_part", "h_part", "h"), (1, 2), (0.2,)
    far = GateTests.far[:-2]  # an infinite candidate times 1 - z = 0 is NaN
    function = staticmethod(traj_gru_gates)
    op = torch.ops.fastds.traj_gru_gates.default

    @staticmethod
    def oracle(x, p, h):
        n = h.shape[1]
        z, r = s(x[:, :n] + p[:, :n]), s(x[:, n : 2 * n] + p[:, n : 2 * n])
        new = F.leaky_relu(x[:, 2 * n :] + r * p[:, 2 * n :], 0.2)
        return (1 - z) * new + z * h

    def output_dtypes(self, tensors):
        return [tensors[0].dtype]


def test_slope():
    with pytest.raises(ValueError, match="negative_slope must be a finite number >= 0, got -1"):
        traj_gru_gates(torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1, 1), negative_slope=-1)
