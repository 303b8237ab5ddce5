# SPDX-License-Identifier: Apache-2.0
"""What benchmarks call is there, for a small network."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxscript", reason="networks are written as ONNX by the extra export")


def test_whole_networks_have_the_results_of_their_peers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from bench import bench_networks

    monkeypatch.setenv(bench_networks.FOLDER, str(tmp_path))
    for mode in ("forward", "training step"):
        found = {}
        for peer, dtype in bench_networks.PEERS[mode]:
            if peer in ("fastds", "torch_eager") or find_spec(peer):
                result = bench_networks.build("edsr-x2", 12, mode, peer, dtype)()
                found[peer, dtype] = torch.as_tensor(result if mode == "forward" else result[0])
        exact = found["fastds", torch.float32]
        for (_, dtype), result in found.items():
            torch.testing.assert_close(result, exact, rtol=0.1, atol=bench_networks.TOLERANCE[dtype])
