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
struct Quick {
    float value;
    Quick() = default;
    FASTDS_HD Quick(float v) : value(v) {}
    friend FASTDS_HD Quick operator+(Quick a, Quick b) { return a.value + b.value; }
    friend FASTDS_HD Quick operator-(Quick a, Quick b) { return a.value - b.value; }
    friend FASTDS_HD Quick operator*(Quick a, Quick b) { return a.value * b.value; }
    friend FASTDS_HD Quick operator/(Quick a, Quick b) {
#if defined(__CUDA_ARCH__)
        return __fdividef(a.value, b.value);
#else
        return a.value / b.value;
#endif
    }
    friend FASTDS_HD bool operator>(Quick a, Quick b) { return a.value > b.value; }
};

FASTDS_HD float quick_exp2(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::exp2(x);
#endif
}

template <class A>
FASTDS_HD Sigmoid<Quick> gate_parts(Quick x) {
    using Table = ExpTable<float>;
    const float e = quick_exp2(at_most(-Table::deepest_gate, -x.value) * Table::log2e);
    return {1.f + e, e};
}
template <class A>
FASTDS_HD Sigmoid<Quick> sigmoid_parts(Quick x) {
    return gate_parts<A>(x);
}
template <class A>
FASTDS_HD Tanh<Quick> tanh_parts(Quick x) {
    const float e = quick_exp2(negative_abs<float>(x.value) * (2 * ExpTable<float>::log2e));
    return {with_sign_of<float>(1.f - e, x.value), 1.f + e, e};
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
