// SPDX-License-Identifier: Apache-2.0
// Bias, activation and their gradients: for runs of elements that lie side by side, and for single vectors on their way to
// where they belong.
#pragma once
#include "pixel_shuffle/permute.h"
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

// The N stored values from element k on that each(k), a vector of compute values, gives; as bits, which do not go through
// memory: a load that two stores fill waits for both.
template <int N, class T, class Each>
FASTDS_HD Vec<bits_t<T>, N> stored_bits(const Each& each, int k = 0) {
    constexpr int L = kLanes<compute_t<T>>;
    if constexpr (N == L && sizeof(T) == sizeof(compute_t<T>)) {
        return each(k);
    } else if constexpr (N == L) {
        T stored[N];
        store_vec<L>(stored, each(k));
        Vec<bits_t<T>, N> bits;
        __builtin_memcpy(&bits, stored, sizeof(bits));
        return bits;
    } else {
        return side_by_side(stored_bits<N / 2, T>(each, k), stored_bits<N / 2, T>(each, k + N / 2), lanes_of<N>{});
    }
}

template <int N>
FASTDS_HD Vec<int32_t, N> lane_numbers() {
    Vec<int32_t, N> numbers;
    for (int i = 0; i < N; i++) numbers[i] = i;
    return numbers;
}

// What blocks of channels are read from (blocks.h). at<N>(k, o, again): N elements from k on, which belong to the channels
// from o on of their pixel; the first `again` of them were read before. soon(k): those from k on are read next.
// summed_apart<Count>(use): calls use(source), whose sums of Count channels are added when it is done.
template <class U>
struct AsTheyAre {
    static constexpr bool calculated = false;
    const U* from;

    template <int N>
    FASTDS_HD Vec<U, N> at(int64_t k, int64_t, int64_t) const {
        Vec<U, N> v;
        __builtin_memcpy(&v, from + k, sizeof(v));
        return v;
    }
    FASTDS_HD void soon(int64_t) const {}
    template <int Count, class Use>
    FASTDS_HD void summed_apart(const Use& use) const {
        use(*this);
    }
};

// act(x + bias)
template <class T>
struct Activated {
    static constexpr bool calculated = true;
    const T* x;
    const compute_t<T>* bias;
    Activation<compute_t<T>> act;

    template <int N>
    FASTDS_HD auto at(int64_t k, int64_t o, int64_t) const {
        constexpr int L = kLanes<compute_t<T>>;
        return stored_bits<N, T>([=](int n) __attribute__((always_inline)) {
            return activate(Vec<compute_t<T>, L>(load_vec<L>(x + k + n) + load_vec<L>(bias + o + n)), act);
        });
    }
};

// Gradients before bias and activation; sums take those of each channel.
template <class T>
struct Gradients {
    static constexpr bool calculated = true;
    const T *grad_y, *y;
    compute_t<T>* sums;
    Activation<compute_t<T>> act;

    template <int N>
    FASTDS_HD auto at(int64_t k, int64_t o, int64_t again) const {
        using A = compute_t<T>;
        constexpr int L = kLanes<A>;
        return stored_bits<N, T>([=](int n) __attribute__((always_inline)) {
            const auto grad = activation_gradient(load_vec<L>(grad_y + k + n), load_vec<L>(y + k + n), act);
            const auto first = lane_numbers<L>() >= static_cast<int>(again) - n ? grad : Vec<A, L>{};
            store_vec<L>(sums + o + n, Vec<A, L>(load_vec<L>(sums + o + n) + first));
            return grad;
        });
    }
    // Two tensors by r rows of sub-pixels are more streams than the processor follows by itself.
    FASTDS_HD void soon(int64_t k) const {
        __builtin_prefetch(grad_y + k);
        __builtin_prefetch(y + k);
    }
    // In registers: in memory they would be stored in turn with results, which wait for their lines.
    template <int Count, class Use>
    FASTDS_HD void summed_apart(const Use& use) const {
        compute_t<T> own[Count] = {};
        use(Gradients{grad_y, y, own, act});
        for (int k = 0; k < Count; k++) sums[k] += own[k];
    }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
