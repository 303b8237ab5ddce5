// SPDX-License-Identifier: Apache-2.0
// Winograd transform G g G^T of filters into rows of the (inputs x outputs) matrices that the engine multiplies by.
#pragma once
#include <type_traits>

#include "conv3x3/tiles.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Meaning of the packed rows and columns: inputs and outputs of the convolution, exchanged for the adjoint.
struct PackedMaps {
    int64_t inputs, per_block;  // number of rows: of all blocks of 3x3 taps, and of one block
    ColumnMap outputs, columns;

    explicit PackedMaps(const Conv3x3Filters& f)
        : inputs((f.adjoint ? f.weight.O : f.weight.C) * f.weight.blocks()),
          per_block(f.adjoint ? f.weight.O : f.weight.C),
          outputs{f.weight.O, f.shuffle},
          columns(f.adjoint ? ColumnMap{f.weight.C, 1} : outputs) {}
};

constexpr int64_t kGathered = 32, kAhead = 32;  // rows that are gathered at once; distance in rows of the prefetch
constexpr int64_t kLine = 64;                    // bytes of a cache line

// The 3x3 taps of one block of a larger filter. Taps outside the filter are zeros.
struct TapBlock {
    const Conv3x3Weight& weight;
    int64_t top, left;

    // The adjoint convolves with the rotated filter, so that its blocks start at the last tap.
    FASTDS_HD TapBlock(const Conv3x3Filters& f, int64_t index) : weight(f.weight) {
        const int64_t y = index / weight.side() * 3, x = index % weight.side() * 3;
        top = f.adjoint ? weight.size - 3 - y : y;
        left = f.adjoint ? weight.size - 3 - x : x;
    }
    FASTDS_HD bool is_complete() const {
        return top >= 0 && left >= 0 && top + 3 <= weight.size && left + 3 <= weight.size;
    }
    FASTDS_HD bool has_tap(int64_t tap) const {
        const int64_t y = top + tap / 3, x = left + tap % 3;
        return y >= 0 && y < weight.size && x >= 0 && x < weight.size;
    }
    FASTDS_HD int64_t offset(int64_t tap) const {
        return (top + tap / 3) * weight.stride_h + (left + tap % 3) * weight.stride_w;
    }
};

// Copies the taps of some rows of one block for one vector of columns: taps[(row * 9 + tap) * kL + lane]. Lanes after the last
// column are zeros. Rows are counted from the first row of the block.
template <class T>
void gather_taps(const Conv3x3Filters& filters, const PackedMaps& maps, const TapBlock& block, int64_t vector, Range rows,
                 T* taps) {
    using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    const Conv3x3Weight& w = filters.weight;
    const int64_t base = vector * kL, count = rows.end - rows.begin, lanes = min_of(kL, maps.columns.columns - base);
    const int64_t first = maps.columns.output(base), step = lanes > 1 ? maps.columns.output(base + 1) - first : 1;
    // False for vectors that cross the end of a sub-pixel.
    const bool even = maps.columns.output(base + lanes - 1) == first + (lanes - 1) * step;
    const int64_t lane_stride = filters.adjoint ? w.stride_c : w.stride_o, lane = step * lane_stride;
    const auto row_of = [&](int64_t row) {
        const int64_t at = filters.adjoint ? maps.outputs.output(row) * w.stride_o : row * w.stride_c;
        return static_cast<const T*>(w.data) + at;
    };
    const bool dense = w.size == 3 && w.stride_w == 1 && w.stride_h == 3;
    const auto exchange = [&](const T* from, int64_t columns, T* to, int64_t to_row) {
        transpose_rows(reinterpret_cast<const Bits*>(from + first * lane_stride), lane, lanes, columns, reinterpret_cast<Bits*>(to),
             to_row);
    };
    // Prefetches `columns` elements of each lane, kAhead rows ahead. With many inputs, the filters lie in different pages.
    const auto fetch_ahead = [&](int64_t row, int64_t offset, int64_t columns) {
        if (row + kAhead >= maps.per_block) return;
        for (int64_t k = 0; k < lanes; k++)
            for (int64_t i = 0; i < columns; i += kLine / static_cast<int64_t>(sizeof(T)))
                __builtin_prefetch(row_of(row + kAhead) + first * lane_stride + k * lane + offset + i);
    };
    if (lanes < kL || !block.is_complete()) __builtin_memset(taps, 0, count * 9 * kL * sizeof(T));
    if (even && !filters.adjoint && w.stride_c == 1) {  // rows are contiguous
        for (int64_t tap = 0; tap < 9; tap++) {
            if (!block.has_tap(tap)) continue;
            fetch_ahead(rows.begin, block.offset(tap), count);
            exchange(row_of(rows.begin) + block.offset(tap), count, taps + tap * kL, 9 * kL);
        }
    } else if (even && !filters.adjoint && dense && w.stride_c == 9) {  // rows and taps are contiguous
        fetch_ahead(rows.begin, 0, 9 * count);
        exchange(row_of(rows.begin), 9 * count, taps, kL);
    } else if (even && dense) {  // taps are contiguous
        for (int64_t i = 0; i < count; i++) {
            fetch_ahead(rows.begin + i, 0, 9);
            exchange(row_of(rows.begin + i), 9, taps + 9 * i * kL, kL);
        }
    } else if (even && lane == 1) {  // lanes are contiguous
        for (int64_t i = 0; i < count; i++)
            for (int64_t tap = 0; tap < 9; tap++) {
                if (!block.has_tap(tap)) continue;
                const T* from = row_of(rows.begin + i) + first * lane_stride + block.offset(tap);
                __builtin_memcpy(taps + (9 * i + tap) * kL, from, (lanes == kL ? kL : lanes) * sizeof(T));
            }
    } else {
        for (int64_t i = 0; i < count; i++)
            for (int64_t k = 0; k < lanes; k++) {
                const T* filter = row_of(rows.begin + i) + maps.columns.output(base + k) * lane_stride;
                for (int64_t tap = 0; tap < 9; tap++)
                    if (block.has_tap(tap)) taps[(9 * i + tap) * kL + k] = filter[block.offset(tap)];
            }
    }
}

// Transforms and packs one vector of columns for a range of inputs. The stride of rows is `step` floats, and the stride of
// points `plane` floats.
template <class T>
void pack_vector(const Conv3x3Filters& filters, const PackedMaps& maps, int64_t vector, Range inputs, float* out, int64_t step,
                 int64_t plane) {
    T taps[kGathered * 9 * kL];
    int64_t gathered = inputs.begin, end = gathered;
    for (int64_t i = inputs.begin; i < inputs.end; i++, out += step) {
        if (i == end) {
            const int64_t block = i / maps.per_block, first = block * maps.per_block;
            gathered = i;
            end = min_of(min_of(i + kGathered, inputs.end), first + maps.per_block);
            gather_taps(filters, maps, TapBlock(filters, block), vector, {i - first, end - first}, taps);
        }
        const int64_t row = i - gathered;
        V half[6][3];
        for (int c = 0; c < 3; c++) {
            V g[3], u[6];
            for (int r = 0; r < 3; r++) {
                const int tap = r * 3 + c;
                g[r] = load_partial(taps + (row * 9 + (filters.adjoint ? 8 - tap : tap)) * kL, kL);
            }
            transform_weight(g, u);
            for (int r = 0; r < 6; r++) half[r][c] = u[r];
        }
        for (int r = 0; r < 6; r++) {
            V u[6];
            transform_weight(half[r], u);
            for (int c = 0; c < 6; c++) store_vec<kL>(out + (r * 6 + c) * plane, u[c]);
        }
    }
}

inline void pack_vector(const Conv3x3Filters& filters, const PackedMaps& maps, int64_t vector, Range inputs, float* out,
                        int64_t step, int64_t plane) {
    switch (filters.weight.dtype) {
        case f32: return pack_vector<float>(filters, maps, vector, inputs, out, step, plane);
        case f16: return pack_vector<Half>(filters, maps, vector, inputs, out, step, plane);
        case bf16: return pack_vector<BFloat16>(filters, maps, vector, inputs, out, step, plane);
        case f64: return;
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
