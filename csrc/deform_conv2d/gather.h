// SPDX-License-Identifier: Apache-2.0
// Loops over the samples of a pixel, and the gathering of the sampled values. The position and weights of each sample are read
// once for all channels of its offset group, which are processed as vectors.
#pragma once
#include "deform_conv2d/samples.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Forces inlining of lambdas, which the compiler otherwise calls if they are used several times.
#define FASTDS_INLINE __attribute__((always_inline))

template <int N>
struct Lanes {
    static constexpr int value = N;
};

// Calls f(Lanes<N>, first channel) over n channels with the longest vectors that fit. A constant n leaves no branches.
template <class A, class F>
FASTDS_HD void for_channels(int64_t n, const F& f) {
    int64_t c = 0;
    for (; c + kLanes<A> <= n; c += kLanes<A>) f(Lanes<kLanes<A>>{}, c);
    if constexpr (kLanes<A> > 8)
        if (n - c >= 8) f(Lanes<8>{}, c), c += 8;
    if constexpr (kLanes<A> > 4)
        if (n - c >= 4) f(Lanes<4>{}, c), c += 4;
    for (; c < n; c++) {
        __asm__ volatile("");  // at most three channels: prevents GCC from vectorizing this loop
        f(Lanes<1>{}, c);
    }
}

template <bool B>
struct Border {
    static constexpr bool value = B;
};

// Calls f(Border<b>, q) for each sample, or for every kStep-th one. b is true if corners may be outside the image.
template <int kStep = 1, class A, class F>
FASTDS_HD void for_samples(int64_t samples, const Samples<A>& s, const F& f) {
    for (int64_t begin = 0; begin < samples; begin += kLanes<A>) {
        const int64_t end = begin + kLanes<A> < samples ? begin + kLanes<A> : samples;
        if (s.border[begin / kLanes<A>]) {
            for (int64_t q = begin; q < end; q += kStep) f(Border<true>{}, q);
        } else {
            for (int64_t q = begin; q < end; q += kStep) f(Border<false>{}, q);
        }
    }
}

// Calls f(Lanes<n>) for the numbers of channels that have specialized loops, otherwise f(Lanes<0>).
template <class F>
FASTDS_HD void dispatch_channels(int64_t channels, const F& f) {
    if (channels == 8) {
        f(Lanes<8>{});
    } else if (channels == 16) {
        f(Lanes<16>{});
    } else {
        f(Lanes<0>{});
    }
}

template <int N, class A>
FASTDS_HD void zero_outside(const Bits<A>* inside, Vec<A, N> (&v)[4]) {
    Vec<Bits<A>, N> counts[4];
    broadcast4<N>(inside, counts);
    for (int n = 0; n < 4; n++) v[n] = counts[n] ? v[n] : 0;
}

// Loads all lanes of a vector. FirstLanes (core/simd.h) loads only the first ones.
template <class T, int N>
struct AllLanes {
    FASTDS_HD Vec<compute_t<T>, N> load(const T* p) const { return load_vec<N>(p); }
};

// Loads the corners of a sample, with zeros for those outside the image. `corner` points to the first requested channel of
// corner 0.
template <bool kBorder, int N, class A, class T, class Which = AllLanes<T, N>>
FASTDS_HD void load_corners(const T* corner, const Image& image, const Bits<A>* inside, Vec<A, N> (&v)[4],
                            const Which& lanes = {}) {
    const T* below = corner + image.below;
    v[0] = lanes.load(corner);
    v[1] = lanes.load(corner + image.right);
    v[2] = lanes.load(below);
    v[3] = lanes.load(below + image.right);
    if constexpr (kBorder) zero_outside<N, A>(inside, v);
}

template <int N, class A>
FASTDS_HD Vec<A, N> blend(const A* weights, const Vec<A, N> (&v)[4]) {
    Vec<A, N> w[4];
    broadcast4<N>(weights, w);
    return (w[0] * v[0] + w[1] * v[1]) + (w[2] * v[2] + w[3] * v[3]);
}

// Gathers the channels of each sample in vectors of N. In the last vector only the lanes that are channels are loaded; the
// others are zero.
template <int N, bool kWhole, class A, class T, class Out>
FASTDS_HD void gather_vectors(const Plan<A>& plan, const Samples<A>& s, int64_t samples, const Image image, const T* x,
                              Out* columns) {
    const int64_t channels = plan.per_group, whole = kWhole ? channels / N * N : 0;
    const FirstLanes<T, N> rest(channels - whole);
    for_samples(samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
        const T* corner = x + s.at[q];
        Out* out = columns + plan.column[q];
        const auto take = [&](int64_t c, const auto& lanes) FASTDS_INLINE {
            Vec<A, N> v[4];
            load_corners<decltype(border)::value, N, A>(corner + c, image, s.inside + 4 * q, v, lanes);
            store_vec<N>(out + c, blend<N, A>(s.weights + 4 * q, v));
        };
        for (int64_t c = 0; c < whole; c += N) take(c, AllLanes<T, N>{});
        if (!kWhole || channels != whole) take(whole, rest);
    });
}

#if defined(__AVX512F__)
// Gathers samples with eight channels, which fill half a vector: two samples at a time, possibly of two pixels. kDense: the
// columns have no gaps.
template <bool kDense, class T, class Out>
FASTDS_HD void gather_eights(const Plan<float>& plan, const Samples<float>& s, int64_t samples, const Image image, const T* x,
                             Out* columns) {
    using V = Vec<float>;
    const int64_t step[4] = {0, image.right, image.below, image.below + image.right};
    for_samples<2>(samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
        const T *a = x + s.at[q], *b = x + s.at[q + 1];
        V v[4], w[4];
        for (int n = 0; n < 4; n++) v[n] = load_two(a + step[n], b + step[n]);
        if constexpr (decltype(border)::value) {
            V counts[4];
            broadcast4_two((const float*)static_cast<const Bits<float>*>(s.inside + 4 * q), counts);
            for (int n = 0; n < 4; n++) v[n] = (Vec<Bits<float>>)counts[n] ? v[n] : 0;
        }
        broadcast4_two(s.weights + 4 * q, w);
        const V both = (w[0] * v[0] + w[1] * v[1]) + (w[2] * v[2] + w[3] * v[3]);
        if constexpr (kDense) {
            store_vec<16>(columns + 8 * q, both);
        } else {
            Vec<float, 8> halves[2];
            __builtin_memcpy(halves, &both, sizeof(both));
            for (int n = 0; n < 2; n++) store_vec<8>(columns + plan.column[q + n], halves[n]);
        }
    });
}
#endif

// Gathers the columns of a run of pixels: mask * (sampled value) at plan.column[q] + channel. Up to one vector of unspecified
// values follows the last channel. x points to the first channel of the plan in the image.
template <class A, class T, class Out>
FASTDS_HD void gather(const Plan<A>& plan, const Samples<A>& s, int64_t run, const Image image, const T* x, Out* columns) {
    const int64_t *at = s.at, *column = plan.column, samples = run * plan.samples;
    const A* weights = s.weights;
#if defined(__AVX512F__)
    if constexpr (kLanes<A> == 16)
        if (plan.by_group && plan.per_group == 8)
            return plan.dense ? gather_eights<true>(plan, s, samples, image, x, columns)
                              : gather_eights<false>(plan, s, samples, image, x, columns);
#endif
    if constexpr (FirstLanes<T, kLanes<A>>::fast)
        if (plan.by_group && plan.per_group % kLanes<A> != 0) {  // the next sample overwrites the excess lanes of a vector
            constexpr int N = kLanes<A>, eight = N < 8 ? N : 8;
            if (plan.per_group == 4) return gather_vectors<4, true>(plan, s, samples, image, x, columns);
            if (plan.per_group <= 4) return gather_vectors<4, false>(plan, s, samples, image, x, columns);
            if (plan.per_group <= eight) return gather_vectors<eight, false>(plan, s, samples, image, x, columns);
            return gather_vectors<N, true>(plan, s, samples, image, x, columns);
        }
    dispatch_channels(plan.per_group, [&](auto known) FASTDS_INLINE {
        const int64_t channels = decltype(known)::value ? decltype(known)::value : plan.per_group;
        for_samples(samples, s, [&](auto border, int64_t q) FASTDS_INLINE {
            const T* corner = x + at[q];
            Out* out = columns + column[q];
            for_channels<A>(channels, [&](auto lanes, int64_t c) FASTDS_INLINE {
                constexpr int N = decltype(lanes)::value;
                Vec<A, N> v[4];
                load_corners<decltype(border)::value, N, A>(corner + c, image, s.inside + 4 * q, v);
                store_vec<N>(out + c, blend<N, A>(weights + 4 * q, v));
            });
        });
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
