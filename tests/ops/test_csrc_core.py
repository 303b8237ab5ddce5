# SPDX-License-Identifier: Apache-2.0
"""Tests of the headers in csrc/core, which are compiled into a small library."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fastds.ops.core import native as _native

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vec_math.h"
using namespace fastds;
using namespace fastds::once;
extern "C" void to_half(const float* x, Half* y, long n) { for (long i = 0; i < n; i++) y[i] = store<Half>(x[i]); }
extern "C" void to_bfloat16(const float* x, BFloat16* y, long n) {
    for (long i = 0; i < n; i++) y[i] = store<BFloat16>(x[i]);
}
extern "C" void from_half(const Half* x, float* y, long n) { for (long i = 0; i < n; i++) y[i] = load(x[i]); }
extern "C" void from_bfloat16(const BFloat16* x, float* y, long n) { for (long i = 0; i < n; i++) y[i] = load(x[i]); }
template <class A, int N, class F> void map(const A* x, A* y, long n, const F& f) {
    for (long i = 0; i + N <= n; i += N) store_vec<N>(y + i, f(load_vec<N>(x + i)));
}
#define MAP(name, A, N, f) \\
    extern "C" void name(const A* x, A* y, long n) { map<A, N>(x, y, n, [](auto v) { return f<A>(v); }); }
MAP(sigmoid_f32, float, kLanes<float>, sigmoid)
MAP(sigmoid_f64, double, kLanes<double>, sigmoid)
MAP(sigmoid_scalar, float, 1, sigmoid)
MAP(tanh_f32, float, kLanes<float>, fastds::once::tanh)
MAP(tanh_f64, double, kLanes<double>, fastds::once::tanh)
MAP(tanh_scalar, float, 1, fastds::once::tanh)
extern "C" void count(int* visits, long n, int threads) {
    parallel_for(n, threads, [&](int64_t begin, int64_t end) { for (int64_t i = begin; i < end; i++) visits[i]++; });
}
"""


@pytest.fixture(scope="module", params=["software", "f16c"])
def probe(request, tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("no g++ on this machine")
    if request.param == "f16c" and (
        _native.get_missing_reason() or "avx2" not in _native.get_module().build_info()["isa_usable"]
    ):
        pytest.skip("this machine or build has no F16C")
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "probe.cpp").write_text(PROBE)
    flags = ["-mf16c", "-mavx2", "-mfma"] if request.param == "f16c" else []
    command = ["g++", "-std=c++17", "-O2", "-fopenmp", "-shared", "-fPIC", *flags, f"-I{ROOT / 'csrc'}"]
    sources = str(folder / "probe.cpp"), str(ROOT / "csrc" / "core" / "team.cpp")
    subprocess.run([*command, *sources, "-o", str(folder / "probe.so")], check=True)
    return ctypes.CDLL(str(folder / "probe.so"))


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("kind", ["f32", "scalar", "f64"])
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_vector_math_is_accurate_to_a_few_ulp(probe, function, kind):
    name = f"{function}_{kind}"
    dtype = torch.float64 if kind == "f64" else torch.float32
    edge = 700 if dtype == torch.float64 else 87
    ends = torch.tensor([0.0, -0.0, 1e-30, -1e-30, float("inf"), -float("inf"), 1e30, -1e30])
    dense = [torch.linspace(-edge, edge, 200_000), 3 * torch.randn(200_000), torch.randn(200_000).pow(7)]
    x = torch.cat([ends, *dense]).to(dtype)
    x = x[: x.numel() // 16 * 16]
    y = np.zeros(x.numel(), np.float64 if dtype == torch.float64 else np.float32)
    getattr(probe, name)(pointer(x.numpy()), pointer(y), ctypes.c_long(x.numel()))
    wide = x.numpy().astype(np.longdouble)
    if function == "tanh":
        exact, bound = np.tanh(wide), 3.0
    else:
        exact, bound = 1 / (1 + np.exp(-wide)), 2.5
    unit = np.maximum(np.spacing(np.abs(exact).astype(y.dtype)), np.finfo(y.dtype).tiny)
    assert (np.abs(y - exact) / unit).max() <= bound
    assert np.array_equal(np.signbit(y), np.signbit(exact))
    nan = np.full(16, np.nan, y.dtype)
    out = np.zeros(16, y.dtype)
    getattr(probe, name)(pointer(nan), pointer(out), ctypes.c_long(16))
    assert np.isnan(out).all()


def hard_floats(dtype):
    """Return float32 numbers that are hard to round to a 16-bit dtype.

    The numbers are all values of the dtype, the midpoints between neighbours, the float32 numbers next to the
    midpoints, random bit patterns, and values at the limits of the dtypes.
    """
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    finite = every[every.isfinite()].double().sort().values
    halfway = ((finite[1:] + finite[:-1]) / 2).float()
    bits = torch.randint(-(2**31), 2**31, (200_000,)).to(torch.int32).view(torch.float32)
    neighbours = [torch.nextafter(halfway, torch.tensor(end)) for end in (float("inf"), float("-inf"))]
    edges = torch.tensor([65519.996, 65520.0, 65536.0, 3.4e38, 1e-45, 2.0**-25, 2.0**-24, 2.0**-14])
    return torch.cat([every, halfway, *neighbours, bits, edges, -edges])


@pytest.mark.parametrize(
    "name,dtype", [("half", torch.float16), ("bfloat16", torch.bfloat16)], ids=["half", "bfloat16"]
)
def test_store_rounds_to_nearest_even(probe, name, dtype):
    x = hard_floats(dtype)
    y = np.zeros(x.numel(), np.int16)
    getattr(probe, f"to_{name}")(pointer(x.numpy()), pointer(y), ctypes.c_long(x.numel()))
    expected = x.to(dtype)
    ours = torch.from_numpy(y).view(dtype)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.view(torch.int16)[~expected.isnan()], expected.view(torch.int16)[~expected.isnan()])


@pytest.mark.parametrize(
    "name,dtype", [("half", torch.float16), ("bfloat16", torch.bfloat16)], ids=["half", "bfloat16"]
)
def test_load_is_exact(probe, name, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    y = np.zeros(x.numel(), np.float32)
    getattr(probe, f"from_{name}")(pointer(x.numpy()), pointer(y), ctypes.c_long(x.numel()))
    torch.testing.assert_close(torch.from_numpy(y), x.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000])
def test_parallel_for_visits_each_index_once(probe, n, threads):
    visits = np.zeros(n, np.int32)
    probe.count(pointer(visits), ctypes.c_long(n), threads)
    assert (visits == 1).all()
