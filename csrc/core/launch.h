// SPDX-License-Identifier: Apache-2.0
// Launch of CUDA kernels. Kernels are launched only by FASTDS_LAUNCH, and shared memory is declared only by FASTDS_SHARED and
// FASTDS_DYNAMIC_SHARED. A test build (FASTDS_EMU, see emu/emulator.h) can then run the kernels on the CPU.
#pragma once
#include <stdint.h>

#include "core/common.h"

#if FASTDS_EMU
#include "emu/launch.h"
#else
#include <map>
#include <mutex>
#include <utility>

namespace fastds {
namespace {

// Makes `device` the current CUDA device during the lifetime of the object and restores the previous device afterwards.
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

// Keeps a number for each key, such as an answer of CUDA, which takes a microsecond to get.
template <class Key>
class KeptNumbers {
  public:
    // Returns the number of a key. If there is none, `find` returns it. It is not kept if `find` throws.
    template <class Find>
    int get(const Key& key, const Find& find) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = numbers_.find(key);
        return found != numbers_.end() ? found->second : numbers_[key] = find();
    }
    // Calls `raise` with the number, and keeps it, if it is greater than the number of the key.
    template <class Raise>
    void raise(const Key& key, int number, const Raise& raise) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = numbers_.find(key);
        if (found != numbers_.end() && found->second >= number) return;
        raise(number);
        numbers_[key] = number;
    }

  private:
    std::mutex mutex_;
    std::map<Key, int> numbers_;
};

// A kernel and the current device.
using DeviceKernel = std::pair<const void*, int>;

template <class Kernel>
DeviceKernel get_device_kernel(Kernel kernel) {
    int device = 0;
    FASTDS_CUDA_CHECK(cudaGetDevice(&device));
    return {reinterpret_cast<const void*>(kernel), device};
}

// Allows a kernel to use up to `bytes` bytes of dynamic shared memory; without this call the limit is 48 KiB.
template <class Kernel>
void allow_shared_bytes(Kernel kernel, int bytes) {
    static KeptNumbers<DeviceKernel> kept;
    kept.raise(get_device_kernel(kernel), bytes, [&](int limit) {
        FASTDS_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit));
    });
}

// Returns the compute capability of the PTX from which the kernel's code for the current device was compiled, as 80 for sm_80.
template <class Kernel>
int get_compiled_capability(Kernel kernel) {
    static KeptNumbers<DeviceKernel> kept;
    return kept.get(get_device_kernel(kernel), [&] {
        cudaFuncAttributes attributes;
        FASTDS_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
        return attributes.ptxVersion;
    });
}

inline int count_multiprocessors(int device) {
    static KeptNumbers<int> kept;
    return kept.get(device, [&] {
        int count = 0;
        FASTDS_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
        return count;
    });
}

// Returns the maximum dynamic shared memory of a block in bytes that allow_shared_bytes() accepts.
inline int get_max_shared_bytes(int device) {
    static KeptNumbers<int> kept;
    return kept.get(device, [&] {
        int bytes = 0;
        FASTDS_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
        return bytes;
    });
}

}  // namespace
}  // namespace fastds

// A kernel with template arguments is passed in parentheses: FASTDS_LAUNCH((copy_kernel<float>), grid, block, 0, stream, x, y,
// n).
#define FASTDS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                          \
    do {                                                                                       \
        kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
        FASTDS_CUDA_CHECK(cudaGetLastError());                                                 \
    } while (0)

// Declares a variable or array in shared memory, aligned to 16 bytes: FASTDS_SHARED(float, tile, [8][33]); FASTDS_SHARED(int,
// count).
#define FASTDS_SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
// Declares `name` as a pointer (type*) to the dynamic shared memory of the block, whose size is the shared_bytes of the launch.
#define FASTDS_DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char fastds_dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(fastds_dynamic_shared)

#endif
