// SPDX-License-Identifier: Apache-2.0
// Permutation of blocks of channels of one coarse pixel in registers: coarse order (c, i, j) to the fine order, r rows i of (j,
// c), and back. The source of the elements (elementwise.h) applies bias, activation or their gradients while it reads.
#pragma once
#include "pixel_shuffle/permute.h"
#include "pixel_shuffle/layout.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Some channels of one pixel: their position in the coarse tensor and in the sub-pixels, the first channel, and the number of
// leading channels that another block has already processed.
struct Place {
    int64_t coarse, fine, c, again;
};

// Permutes N channels of a coarse pixel x to the sub-pixels y. `fine_row` is the number of elements between rows of sub-pixels.
template <int R, int N, class From, class U>
FASTDS_HD void block_to_fine(const From& x, const Place& place, U* y, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    V v[R][R];
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            const int e = (g * R + k) * N;
            v[g][k] = x.template at<N>(place.coarse + e, place.c * R * R + e, 0);
        }
        deinterleave<R, N>(v[g]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) column[g] = v[g][j];
        deinterleave<R, N>(column);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) store_line(y + place.fine + i * fine_row + j * C, column[i], streamed);
    }
}

// The inverse permutation.
template <int R, int N, class From, class U>
FASTDS_HD void block_to_coarse(const From& y, const Place& place, U* x, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    V v[R][R];
#pragma GCC unroll 4
    for (int j = 0; j < R; j++) {
        V column[R];
        int64_t at = place.fine + j * C, channel = j * C + place.c;
#pragma GCC unroll 8
        for (int i = 0; i < R; i++, at = opaque(at + fine_row), channel = opaque(channel + R * C)) {
            y.prefetch(at + R * C);
            column[i] = y.template at<N>(at, channel, place.again);
        }
        interleave<R, N>(column);
#pragma GCC unroll 8
        for (int g = 0; g < R; g++) v[g][j] = column[g];
    }
#pragma GCC unroll 4
    for (int g = 0; g < R; g++) {
        interleave<R, N>(v[g]);
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) store_line(x + place.coarse + (g * R + k) * N, v[g][k], streamed);
    }
}

// Variant for factors with more vectors (R * R) than registers. It processes as many rows of sub-pixels at a time as fill a
// vector. Vector k of a row holds the elements (c, j) from k * N on. In the coarse tensor, the elements of the next rows follow
// after the R elements of one row.
template <int R, int N>
constexpr int kRowsOf = N > R ? N / R : 1;
template <int R, int N>
FASTDS_HD int64_t coarse_place(int first, int k, int i) {
    const int e = k * N + i * R;
    return e / R * R * R + first * R + e % R;
}
template <int R, int N, class From, class U>
FASTDS_HD void rows_to_fine(const From& x, const Place& place, U* y, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    constexpr int rows = kRowsOf<R, N>;
    for (int first = 0; first < R; first += rows) {
        V v[rows][R];
#pragma GCC unroll 8
        for (int k = 0; k < R; k++) {
            V runs[rows];
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) {
                const int64_t e = coarse_place<R, N>(first, k, i);
                runs[i] = x.template at<N>(place.coarse + e, place.c * R * R + e, 0);
            }
            transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++) v[i][k] = runs[i];
        }
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) {
            deinterleave<R, N>(v[i]);
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) store_line(y + place.fine + (first + i) * fine_row + j * C, v[i][j], streamed);
        }
    }
}
// The inverse permutation, for the rows of sub-pixels from `first` on that fill a vector.
template <int R, int N, class From, class U>
FASTDS_HD void rows_to_coarse(const From& y, int first, const Place& place, U* x, int64_t C, int64_t fine_row, bool streamed) {
    using V = Vec<U, N>;
    constexpr int rows = kRowsOf<R, N>;
    V v[rows][R];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        // The channel is opaque, the position is not: opaque positions are slower for 16-bit values.
        int64_t channel = (first + i) * R * C + place.c;
#pragma GCC unroll 8
        for (int j = 0; j < R; j++, channel = opaque(channel + C)) {
            const int64_t at = place.fine + (first + i) * fine_row + j * C;
            y.prefetch(at + R * C);
            v[i][j] = y.template at<N>(at, channel, place.again);
        }
        interleave<R, N>(v[i]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < R; k++) {
        V runs[rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) runs[i] = v[i][k];
        transpose_runs<rows, R, N>(runs);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) store_line(x + place.coarse + coarse_place<R, N>(first, k, i), runs[i], streamed);
    }
}

// Calls block(place) for all channels of some pixels, N at a time. If the last block is incomplete, it starts earlier and
// processes some channels again.
template <int R, int N, class Block>
FASTDS_HD void for_blocks(int64_t C, int64_t pixels, const Block& block) {
    const int64_t whole = C - C % N;
    for (int64_t w = 0; w < pixels; w++) {
        const auto at = [=](int64_t c, int64_t again) __attribute__((always_inline)) {
            block(Place{(w * C + c) * R * R, w * R * C + c, c, again});
        };
        for (int64_t c = 0; c < whole; c += N) at(c, 0);
        if (whole < C) at(C - N, N - (C - whole));
    }
}

// Calls use(Width<N>) with the block size for C channels. Blocks of a quarter of a vector are used only without bias and
// activation; otherwise few channels are computed beforehand, many pixels at a time.
template <class U, class From, class Use>
FASTDS_HD void dispatch_width(int64_t C, const Use& use) {
    if (From::computes || C >= kWhole<U>)
        use(Width<kWhole<U>>{});
    else if constexpr (!From::computes)
        use(Width<kQuarter<U>>{});
}

template <int R, class From, class U>
__attribute__((noinline)) void blocks_to_fine(int64_t C, bool streamed, const From& coarse, int64_t pixels, U* fine,
                                              int64_t fine_row) {
    const From source = coarse;
    dispatch_width<U, From>(C, [=](auto width) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value;
        if constexpr (R * R > 16) {
            // Vectors of whole cache lines are read faster in the order of memory, except for float on Intel processors.
            if (N * sizeof(U) <= 32 || (sizeof(U) == 4 && is_intel()))
                return for_blocks<R, N>(C, pixels, [=](const Place& place) __attribute__((always_inline)) {
                    rows_to_fine<R, N>(source, place, fine, C, fine_row, streamed);
                });
        }
        for_blocks<R, N>(C, pixels, [=](const Place& place) __attribute__((always_inline)) {
            block_to_fine<R, N>(source, place, fine, C, fine_row, streamed);
        });
    });
}

template <int R, class From, class U>
__attribute__((noinline)) void blocks_to_coarse(int64_t C, bool streamed, const From& fine, int64_t fine_row, int64_t pixels,
                                                U* coarse) {
    const From source = fine;
    // Each pass over the pixels reads few rows of sub-pixels, because the hardware prefetcher follows only few streams.
    dispatch_width<U, From>(C, [=](auto width) __attribute__((always_inline)) {
        constexpr int N = decltype(width)::value, rows = R * R > 16 ? kRowsOf<R, N> : R;
        for (int first = 0; first < R; first += rows)
            for_blocks<R, N>(C, pixels, [=](const Place& place) __attribute__((always_inline)) {
                if constexpr (rows < R)
                    rows_to_coarse<R, N>(source, first, place, coarse, C, fine_row, streamed);
                else
                    block_to_coarse<R, N>(source, place, coarse, C, fine_row, streamed);
            });
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
