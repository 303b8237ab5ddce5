# SPDX-License-Identifier: Apache-2.0
"""Tests of the CUDA emulator: its features, and the errors that it must detect."""

import json
import re
from pathlib import Path

import pytest
import torch
from gpuless.emu import Emulator, build, sanitized_run

from fastds.ops.core import native as _native

RIG = Path(__file__).parent / "kernels" / "rig"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def module():
    return build(RIG)


@pytest.fixture
def rig(module):
    rig = Emulator([module])
    rig.clear()
    rig.seed = 0
    return rig


def transposed(rig, x, sync):
    y = torch.full(x.shape[::-1], float("nan"), dtype=x.dtype)
    rig.transpose(x.data_ptr(), y.data_ptr(), _native.DTYPE_CODES[x.dtype], *x.shape, sync)
    return y


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_barrier_and_shared_memory(rig, dtype, seed):
    x = torch.randn(21, 35).to(dtype)
    rig.seed = seed
    assert torch.equal(transposed(rig, x, True), x.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_removed_barrier_is_detected(rig, seed):
    x = torch.randn(24, 40)
    rig.seed = seed
    wrong = (transposed(rig, x, False) != x.T).double().mean()
    assert wrong > 0.3


@pytest.mark.parametrize(
    "kind,sentence",
    [
        (1, r"thread \(0,0,0\) .* waits at the barrier .*cuda.cuh:\d+, but thread \(5,0,0\) .* has returned"),
        (
            2,
            r"thread \(0,0,0\) .* at the barrier .*cuda.cuh:\d+, but thread \(1,0,0\) .* at the barrier .*cuda.cuh:\d+",
        ),
        (3, r"thread \(0,0,0\) .* at the barrier .*, but thread \(1,0,0\) .* at the warp collective .*cuda.cuh:\d+"),
    ],
    ids=["return", "other_barrier", "collective"],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_divergent_barrier_is_reported(rig, kind, sentence, seed):
    y = torch.full((64,), -1, dtype=torch.int32)
    rig.seed = seed
    rig.barrier(y.data_ptr(), 64, 0)
    assert y.tolist() == list(range(64))
    with pytest.raises(RuntimeError, match="emulated CUDA: barrier_kernel: .*divergent barrier.*" + sentence):
        rig.barrier(y.data_ptr(), 64, kind)
    rig.barrier(y.data_ptr(), 64, 0)  # the emulator is usable afterwards


def test_uninitialised_shared_memory_is_poisoned(rig):
    y = torch.zeros(3)
    rig.stale_shared(y.data_ptr(), 3)
    assert y[0] == 1 and y[1:].isnan().all()


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_collectives(rig, seed):
    x = torch.arange(64, dtype=torch.int32)
    y = torch.full((13, 64), -1, dtype=torch.int32)
    rig.seed = seed
    rig.collectives(x.data_ptr(), y.data_ptr())
    lane, warp = x % 32, x // 32
    expected = [
        32 * warp + 3,
        torch.where(lane < 2, x, x - 2),
        torch.where(lane > 26, x, x + 5),
        32 * warp + (lane ^ 9),
        x // 8 * 8 + 3,
        torch.where(x % 8 < 3, x, x - 3),
        torch.where(x % 8 > 4, x, x + 3),
        x // 16 * 16 + 1,
        torch.tensor([sum(1 << i for i in range(32) if (32 * w + i) % 3 == 0) for w in warp.tolist()]).to(torch.int32),
        (x // 16 == 1).int(),
        (x < 16).int(),
        torch.full_like(x, 32),
        torch.where(lane == 31, x, x + 1),
    ]
    for row, (got, want) in enumerate(zip(y, expected, strict=True)):
        assert torch.equal(got, want.to(torch.int32)), f"row {row}: {got.tolist()}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dynamic_shared_memory_and_reduction(rig, dtype, seed):
    x = torch.randint(-8, 8, (5, 83)).to(dtype)
    y = torch.zeros(5)
    rig.seed = seed
    rig.row_sum(x.data_ptr(), y.data_ptr(), _native.DTYPE_CODES[dtype], 5, 83, 64, 8)
    assert torch.equal(y, x.float().sum(1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_product_on_tensor_cores(rig, dtype, seed):
    """The layout of the operands is that of mma.m16n8k16 in the PTX manual."""
    a, b = (torch.randint(-8, 8, (rows, 16)).to(dtype) for rows in (16, 8))
    y = torch.full((16, 8), float("nan"))
    rig.seed = seed
    rig.product(a.data_ptr(), b.data_ptr(), y.data_ptr(), dtype == torch.float16, False)
    assert torch.equal(y, a.float() @ b.float().T)


@pytest.mark.parametrize("seed", SEEDS)
def test_tensor_core_with_exited_lane_is_reported(rig, seed):
    a, b, y = torch.ones(16, 16).half(), torch.ones(8, 16).half(), torch.zeros(16, 8)
    rig.seed = seed
    with pytest.raises(RuntimeError, match=r"thread \(0,0,0\) .* waits at .*core/mma.h:\d+ without its whole warp"):
        rig.product(a.data_ptr(), b.data_ptr(), y.data_ptr(), True, True)


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics(rig, seed):
    x = torch.randint(-100, 100, (96,)).float()
    integers, maximum, total = torch.zeros(3, dtype=torch.int32), torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    rig.seed = seed
    rig.atomics(x.data_ptr(), integers.data_ptr(), maximum.data_ptr(), total.data_ptr(), 3, 32)
    assert integers.tolist() == [x.sum(), x.max(), x.min()] and maximum == x.max() and total == x.sum()


def order(rig, seed):
    counter, y = torch.zeros(1, dtype=torch.int32), torch.zeros(4, 32, dtype=torch.int32)
    rig.seed = seed
    rig.order(counter.data_ptr(), y.data_ptr(), 4, 32)
    return y


def test_seed_determines_thread_and_block_order(rig):
    assert torch.equal(order(rig, 0).flatten(), torch.arange(128, dtype=torch.int32))
    first = order(rig, 7)
    assert torch.equal(order(rig, 7), first) and not torch.equal(order(rig, 8), first)
    assert sorted(first.flatten().tolist()) == list(range(128))
    assert any(row != sorted(row) for row in first.tolist())
    assert any(order(rig, seed)[0, 0] >= 32 for seed in range(1, 9))  # another block went first


def test_launches_are_recorded_and_limits_enforced(rig):
    x, y = torch.ones(2, 64), torch.zeros(2)
    rig.row_sum(x.data_ptr(), y.data_ptr(), 0, 2, 64, 64, 8)
    (launch,) = rig.launches
    assert launch.kernel == "(row_sum_kernel<scalar>)" and launch.shared_bytes == 8
    assert launch.grid == (2, 1, 1) and launch.block == (64, 1, 1)
    for threads, shared, sentence in ((1056, 8, "1 to 1024 threads"), (64, 1 << 20, "at most 227 KiB of shared")):
        with pytest.raises(RuntimeError, match=sentence):
            rig.row_sum(x.data_ptr(), y.data_ptr(), 0, 2, 64, threads, shared)


MISTAKES = {
    "none": (
        "rig.read(x_at, y_at, 1000, 24, False); rig.read(x_at, y_at, 256, 0, True); rig.shared_overrun(y_at, 24)",
        "",
    ),
    "read_behind_the_end": ("rig.read(x_at, y_at, 1000, 25, False)", "heap-buffer-overflow"),
    "read_before_the_start": ("rig.read(x_at, y_at, 1000, -1, False)", "heap-buffer-overflow"),
    "misaligned_vector": ("rig.read(x_at, y_at, 128, 3, True)", "misaligned address .* 'const struct float4'"),
    "behind_shared_memory": ("rig.shared_overrun(y_at, 25)", "index 24 out of bounds"),
    "behind_dynamic_shared_memory": ("rig.row_sum(x_at, y_at, 0, 1, 64, 96, 8)", "heap-buffer-overflow"),
}
# A sanitizer ends its process, so each mistake is made in a child of one process that has loaded everything.
SCRIPT = f"""
import ctypes, json, os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(RIG.parents[2])!r})
from gpuless.emu import build
rig = build(Path({str(RIG)!r}))
x, y = (ctypes.c_float * 1024)(), (ctypes.c_float * 1024)()
x_at, y_at = ctypes.addressof(x), ctypes.addressof(y)
results = dict()
for name, (call, _) in {MISTAKES!r}.items():
    with tempfile.TemporaryFile("w+") as words:
        child = os.fork()
        if child == 0:
            os.dup2(words.fileno(), 2)
            exec(call)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        words.seek(0)
        results[name] = (status, words.read())
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    """Return the exit status and standard error of each mistake."""
    done = sanitized_run(["-c", SCRIPT])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_sanitizers_name_the_line(mistake, results):
    status, text = results[mistake]
    if mistake == "none":
        assert status == 0, text[-3000:]
    else:
        assert status != 0 and re.search(MISTAKES[mistake][1], text), text[-3000:]
        assert "rig/cuda.cuh:" in text
