// SPDX-License-Identifier: Apache-2.0
// Fast approximations of the functions in core/vec_math.h for GPUs.
#pragma once
#include <cmath>

#include "core/vec_math.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// A float whose exponentials and quotients use the approximate instructions of the GPU. It is meant for results that are
// rounded to 16 bits. The largest errors of sigmoid and tanh are about 2e-7.
struct FastFloat {
    float value;
    FastFloat() = default;
    FASTDS_HD FastFloat(float v) : value(v) {}
    friend FASTDS_HD FastFloat operator+(FastFloat a, FastFloat b) { return a.value + b.value; }
    friend FASTDS_HD FastFloat operator-(FastFloat a, FastFloat b) { return a.value - b.value; }
    friend FASTDS_HD FastFloat operator*(FastFloat a, FastFloat b) { return a.value * b.value; }
    friend FASTDS_HD FastFloat operator/(FastFloat a, FastFloat b) {
#if defined(__CUDA_ARCH__)
        return __fdividef(a.value, b.value);
#else
        return a.value / b.value;
#endif
    }
    friend FASTDS_HD bool operator>(FastFloat a, FastFloat b) { return a.value > b.value; }
};

FASTDS_HD float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

template <class A>
FASTDS_HD Sigmoid<FastFloat> gate_parts(FastFloat x) {
    using Table = ExpTable<float>;
    const float e = fast_exp2(at_most(-Table::deepest_gate, -x.value) * Table::log2e);
    return {1.f + e, e};
}
template <class A>
FASTDS_HD Sigmoid<FastFloat> sigmoid_parts(FastFloat x) {
    return gate_parts<A>(x);
}
template <class A>
FASTDS_HD Tanh<FastFloat> tanh_parts(FastFloat x) {
    const float e = fast_exp2(negative_abs<float>(x.value) * (2 * ExpTable<float>::log2e));
    return {with_sign_of<float>(1.f - e, x.value), 1.f + e, e};
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
