// SPDX-License-Identifier: Apache-2.0
// pixel_shuffle for factors with more sub-pixels (r*r) than registers. A coarse pixel is a matrix with one row of r*r
// sub-pixels per channel. Squares of this matrix are transposed to vectors of channels, and back.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/layout.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr bool is_transposed(int r) { return r > 4 && r < 8; }
// Channels and sub-pixels of a square; at most 25, the number of sub-pixels of the smallest of these factors.
constexpr int kTransposed = kLanes<float>;

// Calls square(c, e, channels_again, sub_pixels_again) for the channels c .. c + N - 1 and sub-pixels e .. e + N - 1. Other
// squares have already processed the first channels_again and sub_pixels_again of them. Together the squares cover C channels
// of r*r sub-pixels.
template <class Square>
FASTDS_HD void for_squares(int64_t C, int64_t each, const Square& square) {
    constexpr int64_t N = kTransposed;
    for (int64_t c = 0; c < C; c += N) {
        const int64_t beyond_c = c + N > C ? c + N - C : 0;
        for (int64_t e = 0; e < each; e += N) {
            const int64_t beyond_e = e + N > each ? e + N - each : 0;
            square(c - beyond_c, e - beyond_e, beyond_c, beyond_e);
        }
    }
}

// Offsets of the sub-pixels of a pixel in the fine rows.
struct SubPixels {
    int64_t at[64];
    SubPixels(int r, int64_t C, int64_t fine_row) {
        for (int e = 0; e < r * r; e++) at[e] = e / r * fine_row + e % r * C;
    }
};

template <class From, class U>
__attribute__((noinline)) void transposed_to_fine(int r, int64_t C, bool streamed, const From& coarse, int64_t pixels, U* fine,
                                                  int64_t fine_row) {
    constexpr int N = kTransposed;
    const From source = coarse;
    const int64_t each = r * r;
    const SubPixels places(r, C, fine_row);
    for (int64_t w = 0; w < pixels; w++, fine += r * C)
        for_squares(C, each, [&](int64_t c, int64_t e, int64_t, int64_t) __attribute__((always_inline)) {
            Vec<U, N> v[N];
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) {
                const int64_t channel = (c + k) * each + e;
                v[k] = source.template at<N>(w * C * each + channel, channel, 0);
            }
            transpose_runs<N, 1, N>(v);
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) store_line(fine + places.at[e + k] + c, v[k], streamed);
        });
}

template <class From, class U>
__attribute__((noinline)) void transposed_to_coarse(int r, int64_t C, const From& fine, int64_t fine_row, int64_t pixels,
                                                    U* coarse) {
    constexpr int N = kTransposed;
    const From source = fine;
    const int64_t each = r * r;
    const SubPixels places(r, C, fine_row);
    for (int64_t w = 0; w < pixels; w++, coarse += C * each)
        for_squares(C, each, [&](int64_t c, int64_t e, int64_t c_again, int64_t e_again) __attribute__((always_inline)) {
            Vec<U, N> v[N];
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) {
                const int64_t at = w * r * C + places.at[e + k] + c, again = k < e_again ? N : c_again;
                source.prefetch(at + r * C);
                v[k] = source.template at<N>(at, (e + k) * C + c, again);
            }
            transpose_runs<N, 1, N>(v);
#pragma GCC unroll 16
            for (int k = 0; k < N; k++) __builtin_memcpy(coarse + (c + k) * each + e, &v[k], sizeof(v[k]));
        });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
