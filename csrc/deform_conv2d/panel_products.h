// SPDX-License-Identifier: Apache-2.0
// Matrix products of one panel of the backward pass (cpu_backward.cpp): the gradients of the columns and the contribution to
// grad_weight.
#pragma once
#include "core/amx.h"
#include "deform_conv2d/backward_parts.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Output pixels of a panel: a multiple of each tile_rows, or the pixels that AMX tiles sum in two steps.
constexpr int64_t kPanel = 48, kTilePanel = 2 * kTileDepth;
constexpr int64_t kLine = kTilePanel + kTileDepth;  // elements between channels of `lines`; an odd number of cache lines

// Calls each(row, column, vector) for the given number of rows of a tile of NV vectors in memory.
template <int NV, class A, class Each>
FASTDS_HD void for_tile_vectors(const A* sums, int64_t rows, const Each& each) {
    constexpr int64_t lanes = kLanes<A>;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < NV * lanes; c += lanes, sums += lanes) each(r, c, load_vec<lanes>(sums));
}

// columns = grad_y * packed, for the n pixels of a panel and the parts of a slice.
template <class Step>
void multiply_parts(const DeformConv2dDims& d, const Parts& parts, Blocking blocking, int64_t slice, int64_t n,
                    const typename Step::Stored* grad_y, int64_t grad_row, const typename Step::Stored* packed,
                    typename Step::A* columns, int64_t column_row) {
    using A = typename Step::A;
    constexpr int64_t terms = Step::terms;
    const int64_t out = d.O / d.groups, padded = round_up(out, blocking.term_multiple<Step>());
    for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++) {
        const Part& part = parts.list[i];
        const typename Step::Stored *b = packed + part.packed, *a = grad_y + part.group * out;
        for (int64_t run = 0; run < part.runs; run++) {
            A* to = columns + part.first + run * part.stride;
            const auto multiply_block = [&](auto width, int64_t column) __attribute__((noinline)) {
                constexpr int NV = decltype(width)::value, MR = tile_rows(NV), lanes = kLanes<A>;
                const auto write = [&](int64_t first, int64_t rows, const A* sums) {
                    for_tile_vectors<NV>(sums, rows, [&](int64_t r, int64_t c, Vec<A> v) {
                        store_first<lanes>(to + (first + r) * column_row + column + c, v, part.run_columns - column - c);
                    });
                };
                if constexpr (terms > 1 && NV <= 2)
                    if (blocking.tiles) {
                        for_tile_sums<NV>({a, grad_row, padded / kTileDepth}, n, b, [&](int64_t first, const float* sums) {
                            write(first, min_of(2 * kTileRows, n - first), sums);
                        });
                        b += NV * lanes * padded;
                        return;
                    }
                for (int64_t r = 0; r < n; r += MR) {
                    Vec<A> acc[MR][NV];
                    clear<A>(acc);
                    multiply<Step>(acc, a + r * grad_row, grad_row, terms, b, NV * lanes * terms, padded / terms);
                    A sums[MR * NV * lanes];
                    store_tile(sums, acc);
                    write(r, MR, sums);
                }
                b += NV * lanes * padded;
            };
            for_column_blocks<A>(part.run_columns, multiply_block, blocking.vectors());
        }
    }
}

// partial += grad_y^T * columns, in the order (output channel, tap, channel of the part). The sum of each panel starts from
// zero.
template <class A>
void add_weight(const DeformConv2dDims& d, const Parts& parts, int64_t slice, int64_t n, const A* grad_y, const A* columns,
                int64_t column_row, A* partial, Prefetch<A>& prefetch) {
    const int64_t out = d.O / d.groups;
    for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++) {
        const Part& part = parts.list[i];
        const int64_t row = part.runs * part.run_columns;
        for (int64_t run = 0; run < part.runs; run++) {
            const A *b = columns + part.first + run * part.stride, *a = grad_y + part.group * out;
            A* to = partial + part.partial + run * part.run_columns;
            for_column_blocks<A>(part.run_columns, [&](auto width, int64_t column) __attribute__((noinline)) {
                constexpr int NV = decltype(width)::value, MR = tile_rows(NV), lanes = kLanes<A>;
                for (int64_t o = 0; o < out; o += MR) {
                    Vec<A> acc[MR][NV];
                    clear<A>(acc);
                    prefetch.fetch(2);
                    multiply<FmaStep<A>>(acc, a + o, 1, d.O, b + column, column_row, n);
                    A sums[MR * NV * lanes];
                    store_tile(sums, acc);
                    for_tile_vectors<NV>(sums, min_of(MR, out - o), [&](int64_t m, int64_t c, Vec<A> v) {
                        add_first<lanes>(to + (o + m) * row + column + c, v, part.run_columns - column - c);
                    });
                }
            });
        }
    }
}

#if defined(__AVX512BF16__)
// Converts the columns of `n` pixels to bfloat16 pairs, with the values of two consecutive pixels next to each other. Pixels
// after the last are zeros.
inline void write_pairs(const float* columns, int64_t column_row, int64_t n, BFloat16* pairs) {
    const auto bits = [&](int64_t p, int64_t c) {
        if (p >= n) return __m512i{};
        return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load_vec<kLanes<float>>(columns + p * column_row + c)));
    };
    for (int64_t p = 0; p < kTilePanel; p += 2, pairs += 2 * column_row)
        for (int64_t c = 0; c < column_row; c += kLanes<float>)
            _mm512_storeu_si512(pairs + 2 * c, _mm512_or_si512(bits(p, c), _mm512_slli_epi32(bits(p + 1, c), 16)));
}

// Like add_weight with AMX tiles, from the lines and pairs of a panel.
inline void add_weight_on_tiles(const DeformConv2dDims& d, const Parts& parts, int64_t slice, const BFloat16* lines,
                                const BFloat16* pairs, int64_t column_row, float* partial, Prefetch<float>& prefetch) {
    const int64_t out = d.O / d.groups;
    for (int64_t i = parts.begin[slice]; i < parts.begin[slice + 1]; i++) {
        const Part& part = parts.list[i];
        const int64_t row = part.runs * part.run_columns;
        for (int64_t run = 0; run < part.runs; run++) {
            const BFloat16 *b = pairs + 2 * (part.first + run * part.stride), *a = lines + part.group * out * kLine;
            float* to = partial + part.partial + run * part.run_columns;
            const auto add_block = [&](auto width, int64_t column) __attribute__((noinline)) {
                constexpr int NV = decltype(width)::value, lanes = kLanes<float>;
                if constexpr (NV <= 2)
                    for (int64_t o = 0; o < out; o += 2 * kTileRows) {
                        alignas(64) float sums[2 * kTileRows * NV * lanes];
                        prefetch.fetch(2 * kTileRows);
                        const auto multiply = out - o > kTileRows ? add_pairs<2, NV> : add_pairs<1, NV>;
                        multiply(a + o * kLine, kLine, b + 2 * column, column_row, kTilePanel, true, sums, NV * lanes);
                        for_tile_vectors<NV>(sums, min_of(2 * kTileRows, out - o), [&](int64_t m, int64_t c, Vec<float> v) {
                            add_first<lanes>(to + (o + m) * row + column + c, v, part.run_columns - column - c);
                        });
                    }
            };
            for_column_blocks<float>(part.run_columns, add_block, Blocking{true}.vectors());
        }
    }
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
