// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle of a single channel. A coarse pixel consists of R runs of R elements, whose order within a run does not change.
// R vectors hold N / R pixels. Their runs are permuted in registers, so that vector i holds the runs of fine row i.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/layout.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr bool has_runs(int r) { return r == 2 || r == 4 || r == 8; }

// Elements of such a vector, or 0 if the factor has none.
template <int R, class U>
constexpr int kRunLanes = kHasLanes<U> && has_runs(R) ? kWhole<U> : 0;

// Calls block(w, again) for the pixels w, w + 1, ..., w + together - 1. Another block has already processed the first `again`
// of them.
template <class Block>
FASTDS_HD void for_pixels(int64_t pixels, int64_t together, const Block& block) {
    const int64_t whole = pixels - pixels % together;
    for (int64_t w = 0; w < whole; w += together) block(w, 0);
    if (whole < pixels) block(pixels - together, together - (pixels - whole));
}

// The source receives the position of an element in the R vectors of a block (coarse or fine) in place of its channel.
template <int R, class From, class U>
__attribute__((noinline)) void runs_to_fine(const From& coarse, int64_t pixels, U* fine, int64_t fine_row) {
    constexpr int N = kRunLanes<R, U>, together = N / R;
    if constexpr (N > 0)
        if (pixels >= together)
            return for_pixels(pixels, together, [=](int64_t w, int64_t) __attribute__((always_inline)) {
                Vec<U, N> v[R];
#pragma GCC unroll 8
                for (int k = 0; k < R; k++) v[k] = coarse.template at<N>(w * R * R + k * N, k * N, 0);
                deinterleave<R, N, R>(v);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++) __builtin_memcpy(fine + i * fine_row + w * R, &v[i], sizeof(v[i]));
            });
    if constexpr (!From::computes)
        for (int64_t w = 0; w < pixels; w++)
            for (int i = 0; i < R; i++)
                __builtin_memcpy(fine + i * fine_row + w * R, coarse.from + (w * R + i) * R, R * sizeof(U));
}
template <int R, class From, class U>
__attribute__((noinline)) void runs_to_coarse(const From& fine, int64_t fine_row, int64_t pixels, U* coarse) {
    constexpr int N = kRunLanes<R, U>, together = N / R;
    if constexpr (N > 0)
        if (pixels >= together)
            return fine.template with_private_sums<R * N>([=](const From& source) __attribute__((always_inline)) {
                for_pixels(pixels, together, [=](int64_t w, int64_t again) __attribute__((always_inline)) {
                    Vec<U, N> v[R];
#pragma GCC unroll 8
                    for (int i = 0; i < R; i++) v[i] = source.template at<N>(i * fine_row + w * R, i * N, again * R);
                    interleave<R, N, R>(v);
#pragma GCC unroll 8
                    for (int k = 0; k < R; k++) __builtin_memcpy(coarse + w * R * R + k * N, &v[k], sizeof(v[k]));
                });
            });
    if constexpr (!From::computes)
        for (int64_t w = 0; w < pixels; w++)
            for (int i = 0; i < R; i++)
                __builtin_memcpy(coarse + (w * R + i) * R, fine.from + i * fine_row + w * R, R * sizeof(U));
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
