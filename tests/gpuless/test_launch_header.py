# SPDX-License-Identifier: Apache-2.0
"""Tests of csrc/core/launch.h with a CUDA runtime that only records calls."""

import subprocess

import pytest
from gpuless.emu import CSRC, compiler

RUNTIME = """#pragma once
#include <cstdio>
using cudaError_t = int;
struct cudaFuncAttributes { int ptxVersion; };
constexpr int cudaSuccess = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0, cudaDevAttrMultiProcessorCount = 1;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 2;
inline int current = 0, failing = 0;
inline const char* cudaGetErrorString(int) { return "error"; }
inline int cudaGetDevice(int* device) { return *device = current, 0; }
inline int cudaSetDevice(int device) { return std::printf("set %d\\n", device), current = device, 0; }
template <class T> int cudaFuncSetAttribute(T, int, int bytes) { return std::printf("allow %d\\n", bytes), failing; }
template <class T> int cudaFuncGetAttributes(cudaFuncAttributes* to, T kernel) {
    return std::printf("ask kernel\\n"), to->ptxVersion = kernel(), failing;
}
inline int cudaDeviceGetAttribute(int* to, int what, int device) {
    return std::printf("ask %d\\n", what), *to = 10 * device + what, failing;
}
"""
PROGRAM = """#define __CUDACC__
#include "core/launch.h"
using namespace fastds;
int first() { return 80; }
int second() { return 90; }
void ask() {
    const int capabilities[] = {get_compiled_capability(first), get_compiled_capability(second)};
    std::printf("%d %d\\n", capabilities[0], capabilities[1]);
    const int attributes[] = {count_multiprocessors(0), get_max_shared_bytes(1)};
    std::printf("%d %d\\n", attributes[0], attributes[1]);
}
int main(int, char** given) {
    if (given[1][0] != 'q') {
        DeviceGuard guard(given[1][0] - '0');
        std::printf("scope\\n");
        return 0;
    }
    ask(), ask();
    for (int bytes : {50, 60, 60, 55}) allow_shared_bytes(first, bytes);
    allow_shared_bytes(second, 50);
    current = 1;
    allow_shared_bytes(first, 50);
    failing = 1;
    try {
        allow_shared_bytes(first, 70);
    } catch (const std::exception&) {
        std::printf("failed\\n");
    }
    failing = 0;
    allow_shared_bytes(first, 70);
    std::printf("%d\\n", get_compiled_capability(first));
}
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


def test_attributes_are_asked_once_for_each_kernel_and_device(program):
    run = subprocess.run([program, "q"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [
        "ask kernel", "ask kernel", "80 90", "ask 1", "ask 2", "1 12", "80 90", "1 12",
        "allow 50", "allow 60", "allow 50", "allow 50", "allow 70", "failed", "allow 70", "ask kernel", "80",
    ]  # fmt: skip
