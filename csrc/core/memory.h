// SPDX-License-Identifier: Apache-2.0
// Aligned buffers of the kernels, and huge pages.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Uninitialized memory for one thread. Vector loads and stores may run past the last element by up to four vectors.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t n) {
        data_ = static_cast<T*>(aligned_alloc(64, bytes(n)));
        if (data_ == nullptr) abort();  // an exception must not leave a parallel region
    }
    ~Buffer() { free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    operator T*() const { return data_; }

  protected:
    static size_t bytes(int64_t n) { return (static_cast<size_t>(n) * sizeof(T) + 4 * kVectorBytes + 63) / 64 * 64; }

  private:
    T* data_;
};

// Zero-initialized memory for kernels that compute on whole vectors and tiles and discard the excess elements. Uninitialized
// memory often contains denormal floats, and Intel processors multiply denormals about a hundred times slower.
template <class T>
class ZeroedBuffer : public Buffer<T> {
  public:
    explicit ZeroedBuffer(int64_t n) : Buffer<T>(n) { __builtin_memset(static_cast<T*>(*this), 0, Buffer<T>::bytes(n)); }
};

// Advises the operating system to back memory with huge pages before it is written. Without them, each 4 KB of new memory costs
// a page fault. The call has no effect if no huge pages are available.
inline void use_huge_pages(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr intptr_t kHuge = 2 << 20;
    const intptr_t first = reinterpret_cast<intptr_t>(memory);
    const intptr_t begin = (first + kHuge - 1) / kHuge * kHuge, end = (first + bytes) / kHuge * kHuge;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
