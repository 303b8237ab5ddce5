// SPDX-License-Identifier: Apache-2.0
// CPU kernel, parallel over elements. Memory bandwidth limits its speed.
#include "core/parallel.h"
#include "null_op/math.h"
#include "null_op/params.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T>
void run(const T* x, const T* other, T* y, int64_t n, compute_t<T> scale, int threads) {
    parallel_for(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) y[i] = null_op_value(x, other, i, scale);
    });
}

}  // namespace

void null_op_cpu(const void* x, const void* other, void* y, const NullOpParams& params, int threads) {
    FASTDS_DTYPE_SWITCH(params.dtype,
                        run(static_cast<const scalar*>(x), static_cast<const scalar*>(other), static_cast<scalar*>(y),
                            params.n, static_cast<compute_t<scalar>>(params.scale), threads))
}

}  // namespace FASTDS_ISA
}  // namespace fastds
