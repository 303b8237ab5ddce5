// SPDX-License-Identifier: Apache-2.0
// Launching CUDA kernels. Kernels start only through FASTDS_LAUNCH and declare shared memory only through FASTDS_SHARED and
// FASTDS_DYNAMIC_SHARED, so that a test build (FASTDS_EMU, see emu/emulator.h) can run them on the CPU.
#pragma once
#include <stdint.h>

#include "core/check.h"

#if FASTDS_EMU
#include "emu/launch.h"
#else

namespace fastds {
namespace {

// Makes `device` current for the scope; restores the caller's device where it was another.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) : device_(device) {
        FASTDS_CUDA_CHECK(cudaGetDevice(&previous_));
        if (device_ != previous_) FASTDS_CUDA_CHECK(cudaSetDevice(device_));
    }
    ~DeviceGuard() {
        if (device_ != previous_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int device_, previous_ = 0;
};

// Lets a kernel take more than 48 KiB of dynamic shared memory.
template <class Kernel>
void allow_shared_bytes(Kernel kernel, int bytes) {
    FASTDS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

// The compute capability for which the kernel was compiled that runs on this device: 80 for sm_80.
template <class Kernel>
int compiled_for(Kernel kernel) {
    cudaFuncAttributes attributes;
    FASTDS_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
    return attributes.ptxVersion;
}

inline int multiprocessors(int device) {
    int count = 0;
    FASTDS_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

// Of a block that allow_shared_bytes lets have them.
inline int most_shared_bytes(int device) {
    int bytes = 0;
    FASTDS_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return bytes;
}

}  // namespace
}  // namespace fastds

// kernel may carry template arguments in parentheses: FASTDS_LAUNCH((copy_kernel<float>), grid, block, 0, stream, x, y, n).
#define FASTDS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                          \
    do {                                                                                       \
        kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
        FASTDS_CUDA_CHECK(cudaGetLastError());                                                 \
    } while (0)

// A variable or array of the block, 16-byte aligned: FASTDS_SHARED(float, tile, [8][33]); FASTDS_SHARED(int, count).
#define FASTDS_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
// name: type*, the shared_bytes of the launch.
#define FASTDS_DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char fastds_dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(fastds_dynamic_shared)

#endif
