// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Scratch of one thread. Whole vectors may be read and written past the end.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t n) {
        const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 4 * kVectorBytes + 63) / 64 * 64;
        data_ = static_cast<T*>(aligned_alloc(64, bytes));
        if (data_ == nullptr) abort();  // no exception can leave a parallel region
    }
    ~Buffer() { free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    operator T*() const { return data_; }

  private:
    T* data_;
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
