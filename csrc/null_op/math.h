// SPDX-License-Identifier: Apache-2.0
// Formula of null_op, shared by the CPU and CUDA kernels.
#pragma once
#include "core/dtype.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Returns element i of the result. other: nullptr if nothing is added.
template <class T>
FASTDS_HD T null_op_value(const T* x, const T* other, int64_t i, compute_t<T> scale) {
    compute_t<T> value = scale * load(x[i]);
    if (other) value += load(other[i]);
    return store<T>(value);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
