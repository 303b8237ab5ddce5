// SPDX-License-Identifier: Apache-2.0
// A single channel: whole coarse pixels side by side in one vector.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/problem.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// A single channel: coarse pixels of R runs of R elements, which keep their order within a run. Runs are shorter than
// vectors, so as many pixels as fill them are taken together; what is calculated does not ask where a run belongs.
template <int R, class T>
struct Pixels {
    static constexpr int lanes = kLanes<compute_t<T>>;
    static constexpr int each = R * R;
    static constexpr int elements = each > lanes ? each : lanes;
    static constexpr int count = elements / each;
};

// Whether there are such pixels: vectors have 2, 4, 8 or 16 lanes of the type that is calculated in.
template <int R, class T>
constexpr bool kWholePixels = (R == 2 || R == 4 || R == 8) && R <= kLanes<compute_t<T>> && sizeof(T) <= 4;

// Where the run of R elements that begins at element e of the pixels lies in the fine rows.
template <int R>
FASTDS_HD int64_t place_of_run(int e, int64_t row_stride) {
    return e / R % R * row_stride + e / (R * R) * R;
}

// The integers that runs of so many bytes are moved as.
template <int Bytes>
struct UnitOf {
    using type = uint64_t;
};
template <>
struct UnitOf<4> {
    using type = uint32_t;
};

// N elements from element e on, out of the fine rows into one register; through memory they would wait for each other.
template <int R, int N, class T>
FASTDS_HD auto joined_runs(const T* fine, int e, int64_t row_stride) {
    using U = typename UnitOf<R * sizeof(T)>::type;
    constexpr int units = N * sizeof(T) / sizeof(U);
    if constexpr (N == R) {
        Vec<U, units> run;
        __builtin_memcpy(&run, fine + place_of_run<R>(e, row_stride), sizeof(run));
        return run;
    } else {
        const auto low = joined_runs<R, N / 2>(fine, e, row_stride);
        const auto high = joined_runs<R, N / 2>(fine, e + N / 2, row_stride);
        if constexpr (units == 2)
            return Vec<U, 2>{low, high};
        else
            return side_by_side(low, high, lanes_of<units>{});
    }
}

// A row of coarse pixels, up to the last that fill vectors; gives how many those are.
template <int R, bool Plain, class T>
FASTDS_HD int64_t forward_pixels(const Problem<T>& problem, const T* x, const compute_t<T>* bias, T* y) {
    using P = Pixels<R, T>;
    compute_t<T> repeated[P::elements];
    if constexpr (!Plain)
        for (int e = 0; e < P::elements; e++) repeated[e] = bias[e % P::each];
    int64_t w = 0;
    for (; w + P::count <= problem.p.W; w += P::count, x += P::elements) {
        T stored[P::elements];
#pragma GCC unroll 16
        for (int e = 0; !Plain && e < P::elements; e += P::lanes) {
            const auto value = load_vec<P::lanes>(x + e) + load_vec<P::lanes>(repeated + e);
            store_vec<P::lanes>(stored + e, activate(value, problem.act));
        }
#pragma GCC unroll 16
        for (int e = 0; e < P::elements; e += R)
            __builtin_memcpy(y + w * R + place_of_run<R>(e, problem.row_stride), (Plain ? x : stored) + e, R * sizeof(T));
    }
    return w;
}

template <int R, bool Plain, class T>
FASTDS_HD int64_t backward_pixels(const Problem<T>& problem, const T* grad_y, const T* y, T* grad_x, compute_t<T>* sums) {
    using P = Pixels<R, T>;
    using A = compute_t<T>;
    A total[P::elements] = {};
    int64_t w = 0;
    for (; w + P::count <= problem.p.W; w += P::count) {
#pragma GCC unroll 16
        for (int e = 0; e < P::elements; e += P::lanes) {
            T above[P::lanes], result[P::lanes];
            const auto bits = joined_runs<R, P::lanes>(grad_y + w * R, e, problem.row_stride);
            __builtin_memcpy(above, &bits, sizeof(above));
            if constexpr (!Plain) {
                auto grad = load_vec<P::lanes>(above);
                if (y != nullptr) {
                    const auto sign = joined_runs<R, P::lanes>(y + w * R, e, problem.row_stride);
                    __builtin_memcpy(result, &sign, sizeof(result));
                    grad = activation_gradient(grad, load_vec<P::lanes>(result), problem.act);
                }
                store_vec<P::lanes>(total + e, Vec<A, P::lanes>(load_vec<P::lanes>(total + e) + grad));
                store_vec<P::lanes>(above, grad);
            }
            if (grad_x != nullptr) __builtin_memcpy(grad_x + w * P::each + e, above, sizeof(above));
        }
    }
    for (int e = 0; sums != nullptr && e < P::elements; e++) sums[e % P::each] += total[e];
    return w;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
