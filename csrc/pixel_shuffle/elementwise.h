// SPDX-License-Identifier: Apache-2.0
// Bias, activation and their gradients, for contiguous runs of elements and for single vectors that are permuted next.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/layout.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Computes act(x + bias) for `count` elements, or copies x if bias is null. Elements after the last in `to` are overwritten as
// well. One: a single bias applies to all elements.
template <bool One, class T>
FASTDS_HD void compute_activation(const ShuffleLayout<T>& layout, const T* x, const compute_t<T>* bias, int64_t count, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (bias == nullptr) {
        __builtin_memcpy(to, x, count * sizeof(T));
        return;
    }
    const auto each = [=, one = *bias, act = layout.act](const Vec<A, L>& v, int64_t k) __attribute__((always_inline)) {
        const auto added = One ? broadcast<A, L>(one) : load_vec<L>(bias + k);
        store_vec<L>(to + k, activate(Vec<A, L>(v + added), act));
    };
    int64_t k = 0;
#pragma GCC unroll 4
    for (; k + L <= count; k += L) each(load_vec<L>(x + k), k);
    if (k < count) each(load_first<L>(x + k, count - k), k);
}

// Computes the gradients of a run of sub-pixels with respect to the values before bias and activation. They are also added to
// `sums` unless it is null.
template <class T>
FASTDS_HD void compute_gradient(const ShuffleLayout<T>& layout, const T* grad_y, const T* y, int64_t count,
                                  compute_t<T>* sums, T* to) {
    using A = compute_t<T>;
    constexpr int L = kLanes<A>;
    if (y == nullptr && sums == nullptr) {
        __builtin_memcpy(to, grad_y, count * sizeof(T));
        return;
    }
    for (int64_t k = 0; k < count; k += L) {
        auto grad = load_first<L>(grad_y + k, count - k);
        if (y != nullptr) grad = activation_gradient(grad, load_first<L>(y + k, count - k), layout.act);
        if (sums != nullptr) store_vec<L>(sums + k, Vec<A, L>(load_vec<L>(sums + k) + grad));
        store_vec<L>(to + k, grad);
    }
}

// Converts each(k), vectors of compute values from element k on, to N stored values and returns their bits. The values stay in
// registers, because a load that two stores fill has to wait for both.
template <int N, class T, class Each>
FASTDS_HD Vec<bits_t<T>, N> convert_to_bits(const Each& each, int k = 0) {
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
        return concatenate(convert_to_bits<N / 2, T>(each, k), convert_to_bits<N / 2, T>(each, k + N / 2), lanes_of<N>{});
    }
}

template <int N>
FASTDS_HD Vec<int32_t, N> get_lane_indices() {
    Vec<int32_t, N> numbers;
    for (int i = 0; i < N; i++) numbers[i] = i;
    return numbers;
}

// Sources of the blocks of channels (permute_blocks.h). at<N>(k, o, again) returns the N elements from k on, which belong to
// the channels from o on of their pixel; the first `again` of them were read before. prefetch(k) announces that the elements
// from k on are read next. with_private_sums<Count>(use) calls use(source) with private sums of Count channels, which it adds
// to the sums afterwards. This source returns the elements unchanged.
template <class U>
struct UnchangedSource {
    static constexpr bool computes =false;
    const U* from;

    template <int N>
    FASTDS_HD Vec<U, N> at(int64_t k, int64_t, int64_t) const {
        Vec<U, N> v;
        __builtin_memcpy(&v, from + k, sizeof(v));
        return v;
    }
    FASTDS_HD void prefetch(int64_t) const {}
    template <int Count, class Use>
    FASTDS_HD void with_private_sums(const Use& use) const {
        use(*this);
    }
};

// Source of act(x + bias).
template <class T>
struct ActivatedSource {
    static constexpr bool computes =true;
    const T* x;
    const compute_t<T>* bias;
    Activation<compute_t<T>> act;

    template <int N>
    FASTDS_HD auto at(int64_t k, int64_t o, int64_t) const {
        constexpr int L = kLanes<compute_t<T>>;
        return convert_to_bits<N, T>([=](int n) __attribute__((always_inline)) {
            return activate(Vec<compute_t<T>, L>(load_vec<L>(x + k + n) + load_vec<L>(bias + o + n)), act);
        });
    }
};

// Source of the gradients with respect to the values before bias and activation. `sums` accumulates the gradients of each
// channel.
template <class T>
struct GradientSource {
    static constexpr bool computes =true;
    const T *grad_y, *y;
    compute_t<T>* sums;
    Activation<compute_t<T>> act;

    template <int N>
    FASTDS_HD auto at(int64_t k, int64_t o, int64_t again) const {
        using A = compute_t<T>;
        constexpr int L = kLanes<A>;
        return convert_to_bits<N, T>([=](int n) __attribute__((always_inline)) {
            const auto grad = activation_gradient(load_vec<L>(grad_y + k + n), load_vec<L>(y + k + n), act);
            const auto first = get_lane_indices<L>() >= static_cast<int>(again) - n ? grad : Vec<A, L>{};
            store_vec<L>(sums + o + n, Vec<A, L>(load_vec<L>(sums + o + n) + first));
            return grad;
        });
    }
    // Two tensors with r rows of sub-pixels each are more streams than the hardware prefetcher follows.
    FASTDS_HD void prefetch(int64_t k) const {
        __builtin_prefetch(grad_y + k);
        __builtin_prefetch(y + k);
    }
    // The private sums stay in registers. In memory they would be stored between the results, which wait for their cache lines.
    template <int Count, class Use>
    FASTDS_HD void with_private_sums(const Use& use) const {
        compute_t<T> private_sums[Count] = {};
        use(GradientSource{grad_y, y, private_sums, act});
        for (int k = 0; k < Count; k++) sums[k] += private_sums[k];
    }
};

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
