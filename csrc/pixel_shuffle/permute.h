// SPDX-License-Identifier: Apache-2.0
// Permutation in registers from r*r vectors of consecutive coarse channels to one vector of channels per sub-pixel, and back.
//
// N channels of one coarse pixel are r*r*N consecutive elements (c, i, j). Selecting every r-th element twice, first by j and
// then by i, leaves the vector of N channels of each sub-pixel. Each step consists of shuffles with two source vectors.
#pragma once
#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <int N>
struct Width {
    static constexpr int value = N;
};

// Calls use(Width<r>).
template <class Use>
FASTDS_HD void dispatch_factor(int r, const Use& use) {
    switch (r) {
        case 1: return use(Width<1>{});
        case 2: return use(Width<2>{});
        case 3: return use(Width<3>{});
        case 4: return use(Width<4>{});
        case 5: return use(Width<5>{});
        case 6: return use(Width<6>{});
        case 7: return use(Width<7>{});
        default: return use(Width<8>{});
    }
}

// Whether values of a type are permuted in registers. Double is used only for checks. AVX2 needs several instructions to
// permute 16-bit lanes, but this is still faster than gathering single values.
#if defined(__AVX2__)
template <class T>
constexpr bool kHasLanes = sizeof(T) <= 4;
#else
template <class T>
constexpr bool kHasLanes = false;
#endif

// Number of elements in a register, and in a quarter of one.
template <class U>
constexpr int kWhole = kHasLanes<U> ? kVectorBytes / static_cast<int>(sizeof(U)) : 1;
template <class U>
constexpr int kQuarter = kWhole<U> < 4 ? 1 : kWhole<U> / 4;

// Odd factors: the first shuffle selects lanes from two vectors, each further one from one more vector. Step K leaves the lanes
// that it does not select unchanged.
//
// Returns the elements J, J + R, J + 2R, ... of the sequence v[0], v[1], ...
template <int J, int K, int R, class V, int... I>
FASTDS_HD V select_every(const V (&v)[R], const V& before, LaneList<I...> lanes) {
    constexpr int N = sizeof...(I);
    if constexpr (K == R) {
        return before;
    } else {
        constexpr auto from = [](int i) { return R * i + J; };
        return select_every<J, K + 1>(
            v, V(__builtin_shufflevector(before, v[K], (from(I) / N == K ? N + from(I) % N : K == 1 ? from(I) % N : I)...)),
            lanes);
    }
}
// Returns vector number Part of the sequence v[0][0], v[1][0], ..., v[0][1], ...
template <int Part, int K, int R, class V, int... I>
FASTDS_HD V interleave_part(const V (&v)[R], const V& before, LaneList<I...> lanes) {
    constexpr int N = sizeof...(I);
    if constexpr (K == R) {
        return before;
    } else {
        constexpr auto at = [](int i) { return Part * N + i; };
        return interleave_part<Part, K + 1>(
            v, V(__builtin_shufflevector(before, v[K], (at(I) % R == K ? N + at(I) / R : K == 1 ? at(I) / R : I)...)), lanes);
    }
}

// Permutes all R vectors.
template <int R, class V, int... J, int... I>
FASTDS_HD void split_odd(V (&v)[R], LaneList<J...>, LaneList<I...> lanes) {
    const V results[R] = {select_every<J, 1>(v, v[0], lanes)...};
    for (int k = 0; k < R; k++) v[k] = results[k];
}
template <int R, class V, int... J, int... I>
FASTDS_HD void join_odd(V (&v)[R], LaneList<J...>, LaneList<I...> lanes) {
    const V results[R] = {interleave_part<J, 1>(v, v[0], lanes)...};
    for (int k = 0; k < R; k++) v[k] = results[k];
}

// Concatenates a and b to a vector with twice the lanes.
template <class V, int... I>
FASTDS_HD auto concatenate(const V& a, const V& b, LaneList<I...>) {
#if defined(__AVX512F__)
    // For 16-bit lanes, GCC 12 generates a slow general permutation.
    if constexpr (sizeof(V) == 32)
        return (decltype(__builtin_shufflevector(a, b, I...)))_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
    else
#endif
        return __builtin_shufflevector(a, b, I...);
}

// Returns the even (Part 0) or odd (Part 1) runs of Run elements of a and b, alternating between the two.
template <int Run, int Part, class V, int... I>
FASTDS_HD V interleave_runs(const V& a, const V& b, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    return __builtin_shufflevector(a, b, (I + Part * Run + (I / Run % 2 == 0 ? 0 : N - Run))...);
}

// Transposes P vectors of P runs of R elements each: run q of vector p is exchanged with run p of vector q.
template <int P, int R, int N, int Run = R, class V>
FASTDS_HD void transpose_runs(V (&v)[P]) {
    if constexpr (Run < P * R) {
        constexpr int apart = Run / R;
        for (int p = 0; p < P; p++) {
            if (p / apart % 2 != 0) continue;
            const V a = v[p], b = v[p + apart];
            v[p] = interleave_runs<Run, 0>(a, b, lanes_of<N>{});
            v[p + apart] = interleave_runs<Run, 1>(a, b, lanes_of<N>{});
        }
        transpose_runs<P, R, N, 2 * Run>(v);
    }
}

// Whether R vectors of R lanes are permuted by a transpose. For AVX2 this needs fewer instructions; for shorter vectors it
// needs more.
template <int R, int N, class V>
constexpr bool kFastTranspose = R == 8 && N == R && sizeof(V) == 32;

// v[0], v[1], ... is one sequence of R*N elements. Afterwards v[j] holds its elements j, j + R, j + 2R, ... With Run > 1, runs
// of Run elements take the place of elements; R must then be a power of two.
template <int R, int N, int Run = 1, class V>
FASTDS_HD void deinterleave(V (&v)[R]) {
    using L = lanes_of<N>;
    if constexpr (N == Run || R == 1) {
        return;  // one element or run per vector is already in place
    } else if constexpr (Run == 1 && kFastTranspose<R, N, V>) {
        transpose_runs<R, 1, N>(v);
    } else if constexpr (R % 2 == 1) {
        static_assert(Run == 1, "runs of an odd number of vectors are not permuted");
        split_odd(v, lanes_of<R>{}, L{});
    } else {
        V even[R / 2], odd[R / 2];
        for (int k = 0; k < R / 2; k++) {
            even[k] = every_second<0, Run>(v[2 * k], v[2 * k + 1], L{});
            odd[k] = every_second<1, Run>(v[2 * k], v[2 * k + 1], L{});
        }
        deinterleave<R / 2, N, Run>(even);
        deinterleave<R / 2, N, Run>(odd);
        for (int k = 0; k < R / 2; k++) {
            v[2 * k] = even[k];
            v[2 * k + 1] = odd[k];
        }
    }
}

// The inverse of deinterleave.
template <int R, int N, int Run = 1, class V>
FASTDS_HD void interleave(V (&v)[R]) {
    using L = lanes_of<N>;
    if constexpr (N == Run || R == 1) {
        return;
    } else if constexpr (Run == 1 && kFastTranspose<R, N, V>) {
        transpose_runs<R, 1, N>(v);
    } else if constexpr (R % 2 == 1) {
        static_assert(Run == 1, "runs of an odd number of vectors are not permuted");
        join_odd(v, lanes_of<R>{}, L{});
    } else {
        V even[R / 2], odd[R / 2];
        for (int k = 0; k < R / 2; k++) {
            even[k] = v[2 * k];
            odd[k] = v[2 * k + 1];
        }
        interleave<R / 2, N, Run>(even);
        interleave<R / 2, N, Run>(odd);
        for (int k = 0; k < R / 2; k++) {
            v[2 * k] = alternate<0, Run>(even[k], odd[k], L{});
            v[2 * k + 1] = alternate<1, Run>(even[k], odd[k], L{});
        }
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
