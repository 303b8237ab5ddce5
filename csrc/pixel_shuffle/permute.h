// SPDX-License-Identifier: Apache-2.0
// In registers, from r*r vectors of consecutive coarse channels to one vector of channels per sub-pixel, and back.
//
// N channels of one coarse pixel are r*r*N consecutive elements (c, i, j). Taking every r-th element twice, first by j and
// then by i, leaves the vector of N channels of each sub-pixel. Each step is a network of two-source lane permutations.
#pragma once
#include "core/simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Of the sequence a, b, c: the elements J, J + 3, J + 6, ...
template <int J, class V, int... I>
FASTDS_HD V every_third(const V& a, const V& b, const V& c, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    const V ab = __builtin_shufflevector(a, b, (3 * I + J < 2 * N ? 3 * I + J : 0)...);
    return __builtin_shufflevector(ab, c, (3 * I + J < 2 * N ? I : 3 * I + J - N)...);
}
// a0 b0 c0 a1 b1 c1 ...: third number Part of it.
template <int Part, class V, int... I>
FASTDS_HD V in_turn(const V& a, const V& b, const V& c, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    const V ab = __builtin_shufflevector(a, b, ((Part * N + I) % 3 < 2 ? (Part * N + I) % 3 * N + (Part * N + I) / 3 : 0)...);
    return __builtin_shufflevector(ab, c, ((Part * N + I) % 3 < 2 ? I : N + (Part * N + I) / 3)...);
}

// a, then b, in one vector of twice the lanes.
template <class V, int... I>
FASTDS_HD auto side_by_side(const V& a, const V& b, LaneList<I...>) {
    return __builtin_shufflevector(a, b, I...);
}

// v[0], v[1], ... is one sequence of R*N elements; afterwards v[j] holds its elements j, j + R, j + 2R, ...
template <int R, int N, class V>
FASTDS_HD void deinterleave(V (&v)[R]) {
    using L = lanes_of<N>;
    if constexpr (N == 1 || R == 1) {
        return;  // one element per vector is in place already
    } else if constexpr (R == 3) {
        const V a = v[0], b = v[1], c = v[2];
        v[0] = every_third<0>(a, b, c, L{});
        v[1] = every_third<1>(a, b, c, L{});
        v[2] = every_third<2>(a, b, c, L{});
    } else {
        static_assert(R % 2 == 0, "radix 1, 2, 3, 4 or 8");
        V even[R / 2], odd[R / 2];
        for (int k = 0; k < R / 2; k++) {
            even[k] = every_second<0>(v[2 * k], v[2 * k + 1], L{});
            odd[k] = every_second<1>(v[2 * k], v[2 * k + 1], L{});
        }
        deinterleave<R / 2, N>(even);
        deinterleave<R / 2, N>(odd);
        for (int k = 0; k < R / 2; k++) {
            v[2 * k] = even[k];
            v[2 * k + 1] = odd[k];
        }
    }
}

// The inverse of deinterleave.
template <int R, int N, class V>
FASTDS_HD void interleave(V (&v)[R]) {
    using L = lanes_of<N>;
    if constexpr (N == 1 || R == 1) {
        return;
    } else if constexpr (R == 3) {
        const V a = v[0], b = v[1], c = v[2];
        v[0] = in_turn<0>(a, b, c, L{});
        v[1] = in_turn<1>(a, b, c, L{});
        v[2] = in_turn<2>(a, b, c, L{});
    } else {
        static_assert(R % 2 == 0, "radix 1, 2, 3, 4 or 8");
        V even[R / 2], odd[R / 2];
        for (int k = 0; k < R / 2; k++) {
            even[k] = v[2 * k];
            odd[k] = v[2 * k + 1];
        }
        interleave<R / 2, N>(even);
        interleave<R / 2, N>(odd);
        for (int k = 0; k < R / 2; k++) {
            v[2 * k] = alternate<0>(even[k], odd[k], L{});
            v[2 * k + 1] = alternate<1>(even[k], odd[k], L{});
        }
    }
}

// Of two vectors as runs of Run elements: the runs of even (Part 0) or odd (Part 1) number, a's and b's in turn.
template <int Run, int Part, class V, int... I>
FASTDS_HD V runs_in_turn(const V& a, const V& b, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    return __builtin_shufflevector(a, b, (I + Part * Run + (I / Run % 2 == 0 ? 0 : N - Run))...);
}

// P vectors of P runs of R elements each: run q of vector p changes places with run p of vector q.
template <int P, int R, int N, int Run = R, class V>
FASTDS_HD void transpose_runs(V (&v)[P]) {
    if constexpr (Run < P * R) {
        constexpr int apart = Run / R;
        for (int p = 0; p < P; p++) {
            if (p / apart % 2 != 0) continue;
            const V a = v[p], b = v[p + apart];
            v[p] = runs_in_turn<Run, 0>(a, b, lanes_of<N>{});
            v[p + apart] = runs_in_turn<Run, 1>(a, b, lanes_of<N>{});
        }
        transpose_runs<P, R, N, 2 * Run>(v);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
