// SPDX-License-Identifier: Apache-2.0
// A single channel: coarse pixels of R runs of R elements, which keep their order within a run. R vectors hold N / R pixels;
// their runs are permuted in registers, vector i then holds the runs of fine row i.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/problem.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Elements of such a vector; 0: there are none for this factor.
template <int R, class U>
constexpr int kRunLanes = kHasLanes<U> && (R == 2 || R == 4 || R == 8) ? kVectorBytes / static_cast<int>(sizeof(U)) : 0;

// Of the runs of a, then of b: those of even (Odd 0) or odd number; and the way back, the first or the second half.
template <int Run, int Odd, class V, int... I>
FASTDS_HD V every_second_run(const V& a, const V& b, LaneList<I...>) {
    return __builtin_shufflevector(a, b, ((2 * (I / Run) + Odd) * Run + I % Run)...);
}
template <int Run, int Half, class V, int... I>
FASTDS_HD V alternate_runs(const V& a, const V& b, LaneList<I...>) {
    constexpr int N = sizeof...(I);
    return __builtin_shufflevector(a, b, (I / Run % 2 * N + (Half * N / Run + I / Run) / 2 * Run + I % Run)...);
}

// v[0], v[1], ... is one sequence of runs; afterwards v[i] holds its runs i, i + P, i + 2P, ...
template <int Run, int P, int N, class V>
FASTDS_HD void split_runs(V (&v)[P]) {
    if constexpr (P > 1 && N > Run) {
        V even[P / 2], odd[P / 2];
        for (int k = 0; k < P / 2; k++) {
            even[k] = every_second_run<Run, 0>(v[2 * k], v[2 * k + 1], lanes_of<N>{});
            odd[k] = every_second_run<Run, 1>(v[2 * k], v[2 * k + 1], lanes_of<N>{});
        }
        split_runs<Run, P / 2, N>(even);
        split_runs<Run, P / 2, N>(odd);
        for (int k = 0; k < P / 2; k++) {
            v[2 * k] = even[k];
            v[2 * k + 1] = odd[k];
        }
    }
}
template <int Run, int P, int N, class V>
FASTDS_HD void join_runs(V (&v)[P]) {
    if constexpr (P > 1 && N > Run) {
        V even[P / 2], odd[P / 2];
        for (int k = 0; k < P / 2; k++) {
            even[k] = v[2 * k];
            odd[k] = v[2 * k + 1];
        }
        join_runs<Run, P / 2, N>(even);
        join_runs<Run, P / 2, N>(odd);
        for (int k = 0; k < P / 2; k++) {
            v[2 * k] = alternate_runs<Run, 0>(even[k], odd[k], lanes_of<N>{});
            v[2 * k + 1] = alternate_runs<Run, 1>(even[k], odd[k], lanes_of<N>{});
        }
    }
}

// Calls block(w, again) for pixels w, w + 1, ..., w + together - 1, the first `again` of which another block has moved.
template <class Block>
FASTDS_HD void for_pixels(int64_t pixels, int64_t together, const Block& block) {
    const int64_t whole = pixels - pixels % together;
    for (int64_t w = 0; w < whole; w += together) block(w, 0);
    if (whole < pixels) block(pixels - together, together - (pixels - whole));
}

// Elements are numbered by their place in the R vectors of a block, coarse or fine, where the source asks for a channel.
template <int R, class From, class U>
__attribute__((noinline)) void runs_to_fine(const From& coarse, int64_t pixels, U* fine, int64_t fine_row) {
    constexpr int N = kRunLanes<R, U>, together = N / R;
    if constexpr (N > 0)
        if (pixels >= together)
            return for_pixels(pixels, together, [=](int64_t w, int64_t) __attribute__((always_inline)) {
                Vec<U, N> v[R];
#pragma GCC unroll 8
                for (int k = 0; k < R; k++) v[k] = coarse.template at<N>(w * R * R + k * N, k * N, 0);
                split_runs<R, R, N>(v);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) __builtin_memcpy(fine + i * fine_row + w * R, &v[i], sizeof(v[i]));
            });
    if constexpr (!From::calculated)
        for (int64_t w = 0; w < pixels; w++)
            for (int i = 0; i < R; i++)
                __builtin_memcpy(fine + i * fine_row + w * R, coarse.from + (w * R + i) * R, R * sizeof(U));
}
template <int R, class From, class U>
__attribute__((noinline)) void runs_to_coarse(const From& fine, int64_t fine_row, int64_t pixels, U* coarse) {
    constexpr int N = kRunLanes<R, U>, together = N / R;
    if constexpr (N > 0)
        if (pixels >= together)
            return for_pixels(pixels, together, [=](int64_t w, int64_t again) __attribute__((always_inline)) {
                Vec<U, N> v[R];
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) v[i] = fine.template at<N>(i * fine_row + w * R, i * N, again * R);
                join_runs<R, R, N>(v);
#pragma GCC unroll 8
                for (int k = 0; k < R; k++) __builtin_memcpy(coarse + w * R * R + k * N, &v[k], sizeof(v[k]));
            });
    if constexpr (!From::calculated)
        for (int64_t w = 0; w < pixels; w++)
            for (int i = 0; i < R; i++)
                __builtin_memcpy(coarse + (w * R + i) * R, fine.from + i * fine_row + w * R, R * sizeof(U));
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
