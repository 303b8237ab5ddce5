// SPDX-License-Identifier: Apache-2.0
// Launching CUDA kernels. Kernels start only through FASTDS_LAUNCH, so that a test build can run them on the CPU.
#pragma once
#include <stdint.h>

#include "core/check.h"

namespace fastds {
namespace {

// Makes `device` current for the scope and restores the caller's device.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        FASTDS_CUDA_CHECK(cudaGetDevice(&previous_));
        if (device != previous_) FASTDS_CUDA_CHECK(cudaSetDevice(device));
    }
    ~DeviceGuard() { cudaSetDevice(previous_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int previous_ = 0;
};

}  // namespace
}  // namespace fastds

// kernel may carry template arguments in parentheses: FASTDS_LAUNCH((copy_kernel<float>), grid, block, 0, stream, x, y, n).
#define FASTDS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                          \
    do {                                                                                       \
        kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
        FASTDS_CUDA_CHECK(cudaGetLastError());                                                 \
    } while (0)
