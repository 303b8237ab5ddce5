// SPDX-License-Identifier: Apache-2.0
// Formula of null_op, shared by the CPU and CUDA kernels.
#pragma once
#include "core/dtype.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T>
FASTDS_HD T null_op_value(T x) {
    const compute_t<T> value = load(x);
    return store<T>(value);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
