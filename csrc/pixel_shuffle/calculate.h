// SPDX-License-Identifier: Apache-2.0
// Bias, activation and their gradients for runs of elements that lie side by side.
#pragma once
#include "pixel_shuffle/problem.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// act(x + bias) of `count` elements, a plain copy where bias is null; what follows them in `to` is overwritten, too. One: a
// single bias for all of them.
template <bool One, class T>
FASTDS_HD void calculate(const Problem<T>& problem, const T* x, const compute_t<T>* bias, int64_t count, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (bias == nullptr) {
        __builtin_memcpy(to, x, count * sizeof(T));
        return;
    }
    const auto each = [=, one = *bias, act = problem.act](const Vec<A, L>& v, int64_t k) __attribute__((always_inline)) {
        const auto added = One ? broadcast<A, L>(one) : load_vec<L>(bias + k);
        store_vec<L>(to + k, activate(Vec<A, L>(v + added), act));
    };
    int64_t k = 0;
#pragma GCC unroll 4
    for (; k + L <= count; k += L) each(load_vec<L>(x + k), k);
    if (k < count) each(load_first<L>(x + k, count - k), k);
}

// Gradients of a run of sub-pixels before bias and activation; sums, where not null, take them on top of what they hold.
template <class T>
FASTDS_HD void calculate_gradient(const Problem<T>& problem, const T* grad_y, const T* y, int64_t count,
                                  compute_t<T>* sums, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (y == nullptr && sums == nullptr) {
        __builtin_memcpy(to, grad_y, count * sizeof(T));
        return;
    }
    for (int64_t k = 0; k < count; k += L) {
        auto grad = load_first<L>(grad_y + k, count - k);
        if (y != nullptr) grad = activation_gradient(grad, load_first<L>(y + k, count - k), problem.act);
        if (sums != nullptr) store_vec<L>(sums + k, Vec<A, L>(load_vec<L>(sums + k) + grad));
        store_vec<L>(to + k, grad);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
