# SPDX-License-Identifier: Apache-2.0
"""Tests of DeviceGuard in csrc/core/launch.h with a CUDA runtime that only records calls."""

import subprocess

import pytest
from gpuless.emu import CSRC, compiler

RUNTIME = """#pragma once
#include <cstdio>
using cudaError_t = int;
struct cudaFuncAttributes { int ptxVersion; };
constexpr int cudaSuccess = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0, cudaDevAttrMultiProcessorCount = 0;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 0;
inline int current = 0;
inline const char* cudaGetErrorString(int) { return "error"; }
inline int cudaGetDevice(int* device) { return *device = current, 0; }
inline int cudaSetDevice(int device) { return std::printf("set %d\\n", device), current = device, 0; }
template <class T> int cudaFuncSetAttribute(T, int, int) { return 0; }
template <class T> int cudaFuncGetAttributes(cudaFuncAttributes*, T) { return 0; }
inline int cudaDeviceGetAttribute(int*, int, int) { return 0; }
"""
PROGRAM = """#define __CUDACC__
#include "core/launch.h"
int main(int, char** given) { fastds::DeviceGuard guard(given[1][0] - '0'); std::printf("scope\\n"); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    (folder / "cuda_runtime_api.h").write_text(RUNTIME)
    (folder / "main.cpp").write_text(PROGRAM)
    command = [*compiler(), "-std=c++17", f"-I{folder}", f"-I{CSRC}", folder / "main.cpp", "-o", folder / "main"]
    subprocess.run(command, check=True)
    return folder / "main"


@pytest.mark.parametrize("device, calls", [("0", ["scope"]), ("1", ["set 1", "scope", "set 0"])])
def test_device_guard_restores_only_changed_devices(program, device, calls):
    run = subprocess.run([program, device], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == calls
