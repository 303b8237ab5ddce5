# SPDX-License-Identifier: Apache-2.0
"""Tests of benchmarks of networks, and of the files and tables with their results."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Return the module bench.result_files with its files in a temporary folder."""
    monkeypatch.syspath_prepend(ROOT)
    from bench import result_files

    for name in ("SWEEPS", "NETWORKS", "GPU", "SCALING"):
        monkeypatch.setattr(result_files, name, tmp_path / f"{name.lower()}.csv")
    return result_files


def test_whole_networks_have_the_results_of_their_peers(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="networks are written as ONNX by the extra export")
    monkeypatch.syspath_prepend(ROOT)
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


def test_calls_of_a_busy_machine_have_the_results_of_their_peers(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="networks are written as ONNX by the extra export")
    monkeypatch.syspath_prepend(ROOT)
    from bench import contention, contention_calls

    calls, found = list(contention_calls.list_calls(tmp_path)), {}
    missing, libraries = contention_calls.find_missing(), {}
    with torch.no_grad():
        for call in calls:
            libraries.setdefault(call.name, set()).add(call.library)
            if "100 x 100" not in call.name and "small" not in call.name:  # exports of networks take half a minute
                result = call.build(1)()
                result = torch.as_tensor(result[0] if isinstance(result, tuple) else result)
                found.setdefault(call.name, {})[call.library] = result
    assert len(found) == 3 and len(libraries) == 7
    for name, compared in libraries.items():
        expected = {"fastds", *contention_calls.PEERS} - set(missing)
        expected -= {"torch"} if name.startswith("deform") else set()
        expected -= {"openvino"} if name.startswith("fczsm") else set()
        assert compared == expected
    for results in found.values():
        exact = results["fastds"]
        for result in results.values():
            torch.testing.assert_close(result, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    quiet = {}
    first, second = (contention.make_rows(busy, calls[0], {"fastds": [1.0 + busy] * 9}, quiet)[0] for busy in (0, 1))
    assert first["mean_over_quiet"] == 1 and second["mean_over_quiet"] == 2 and second["p90_ms"] == 2


def test_contention_leaves_out_peers_that_are_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    from bench import contention, contention_calls

    monkeypatch.setattr(contention, "TURN_SECONDS", 0.0)
    monkeypatch.setitem(contention_calls._PACKAGES, "onnxruntime", ("no_such_package",))
    words = [
        "--busy",
        "0",
        "--only",
        "conv3x3, 16",
        "--peers",
        "torch",
        "onnxruntime",
        "--csv",
        str(tmp_path / "t.csv"),
    ]
    contention.main(words)
    printed = capsys.readouterr().out
    assert "The rows of onnxruntime are left out, because no_such_package is not installed." in printed
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 + 2 and "torch: conv3x3" in rows[-1] and not any("onnxruntime" in row for row in rows)


def make_run(peer, ms, **columns):
    """Make the JSON of a pytest-benchmark run with one row."""
    row = {"op": "conv3x3", "case": "(1,8,8) 4->4", "mode": "forward", "dtype": "float32", "isa": "avx2", "peer": peer,
           "memory": "kept", "yardstick": False, "median_ms": ms, "gflops": 1.0, "gbytes": 2.0, "error": 1e-6,
           "percent_of_ceiling": 50.0, "peak_mib": 3.0}  # fmt: skip
    run = {
        "device": "CPU",
        "threads": 2,
        "cores": 4,
        "isa": "avx512",
        "torch": "2",
        "commit": "abc",
        "date": "2026-01-01",
    }
    return {"run": run, "ceilings": {"GB/s": 40.0, "float32": 500.0}, "benchmarks": [{"extra_info": row | columns}]}


def test_rows_of_runs_are_merged(results, tmp_path):
    from bench import report

    for number, run in enumerate((make_run("fastds", 2.0), make_run("torch", 3.0), make_run("fastds", 1.0))):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(run))
        assert results.save_rows(report.load_results([path])) == [results.NETWORKS]
    rows = results.read_rows(results.NETWORKS)
    assert [(row["op"], row["peer"], row["isa"], row["median_ms"]) for row in rows] == [
        ("ceiling", "torch", "avx512", None), ("ceiling", "torch", "avx512", None), ("conv3x3", "fastds", "avx2", 1.0),
        ("conv3x3", "torch", "avx2", 3.0),
    ]  # fmt: skip
    assert results.merge_rows(rows) == rows
    assert "| torch float32, 3.00 | 3.0 |" in report.format_op([row for row in rows if row["op"] == "conv3x3"])
    assert report.format_ceilings(rows) == "copy 40 GB/s, float32 500 GFLOP/s"


def test_a_row_without_a_time_is_written(results, tmp_path):
    from bench import report

    path = tmp_path / "run.json"
    path.write_text(json.dumps(make_run("torch_compile", None, note="no result within 60 s")))
    rows = report.load_results([path])
    results.save_rows(rows)
    assert "no result within 60 s" in report.format_every_row(results.read_rows(results.NETWORKS))
    assert report.format_summary_of_run(rows).count("\n") == 1


def test_a_sweep_replaces_the_same_sweep(results):
    shared = {
        "op": "conv1x1",
        "dtype": "float32",
        "isa": "avx2",
        "device": "CPU",
        "threads": 2,
        "torch": "2",
        "load": 0.1,
    }
    row = {"mode": "step", "layout": "contiguous", "shape": "(1,2,3,4) -> 5", "best": "torch", "core_latency_ns": 60}
    peers = {"torch": 0.25, "torch channels_last": 0.125}
    for seed, ms in ((1, 1.0), (2, 0.5), (1, 0.25)):
        results.save_sweep(shared | {"seed": seed}, [row | {"ms": ms, "best_ms": 0.25, "peers": peers}])
    rows = results.read_sweeps()
    assert [(r["seed"], r["ms"], r["ratio"], r["peers"]) for r in rows] == [(1, 0.25, 1.0, peers), (2, 0.5, 0.5, peers)]


def test_scaling_is_read_as_it_was_written(results):
    row = {"axis": "size", "value": 512, "seconds": 5.5, "us_per_unit": 4.25, "peak_mib": 100.0, "bytes_per_unit": 8.0}
    results.save_scaling({"device": "CPU", "torch": "2", "commit": "abc", "date": "2026-01-01"}, [row])
    assert {key: results.read_scaling()[0][key] for key in row} == row
