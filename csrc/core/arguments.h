// SPDX-License-Identifier: Apache-2.0
// Helpers of the bind.h files: Python hands over addresses, sizes and numbers, nothing of torch.
#pragma once
#include <stdint.h>

#include <string>

#include "core/check.h"
#include "core/dtype.h"

namespace fastds {

inline void* pointer(intptr_t address) { return reinterpret_cast<void*>(address); }

inline DType to_dtype(int code) {
    FASTDS_CHECK(code >= f32 && code <= bf16, "dtype: expected 0 to 3, got " + std::to_string(code));
    return static_cast<DType>(code);
}

}  // namespace fastds
