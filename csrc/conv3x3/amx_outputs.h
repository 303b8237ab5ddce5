// SPDX-License-Identifier: Apache-2.0
// What becomes of the sums of the convolution on matrix tiles (AMX): bias, residual, activation, and where they are stored.
#pragma once
#include "conv3x3/amx_products.h"
#include "conv3x3/output.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

#if defined(__AVX512BF16__)
// Lanes of a vector of columns that fall into one view.
struct Piece {
    const Conv3x3View* view;
    int64_t from;  // of the view's channels, that of lane 0
    int vector;    // of those that are summed together
    __mmask16 lanes;
};

struct Pieces {
    int count = 0;
    Piece piece[2 * kL];

    // Of the vectors [vectors.begin, vectors.end) of columns.
    Pieces(const Conv3x3Views& views, Range vectors, int64_t columns) {
        for (int64_t vector = vectors.begin; vector < vectors.end; vector++) {
            int64_t first = 0;
            for (int s = 0; s < views.count; first += views.view[s++].channels) {
                const int64_t column = vector * kL, begin = first - column, end = first + views.view[s].channels - column;
                const int64_t from = begin > 0 ? begin : 0, to = least(least(kL, columns - column), end);
                if (from >= to || views.view[s].data == nullptr) continue;
                piece[count++] = {&views.view[s], column - first, static_cast<int>(vector - vectors.begin),
                                  static_cast<__mmask16>((1u << to) - (1u << from))};
            }
        }
    }
};

template <class T>
FASTDS_HD T* pixel_of(const Piece& piece, const Tile& pixel) {
    const Conv3x3View& view = *piece.view;
    return static_cast<T*>(view.data) + pixel.b * view.b + pixel.y * view.h + pixel.x * view.w + piece.from;
}

FASTDS_HD V load_piece(const BFloat16* at, __mmask16 lanes) {
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, at)), 16);
}
FASTDS_HD V load_piece(const float* at, __mmask16 lanes) { return (V)_mm512_maskz_loadu_ps(lanes, at); }
FASTDS_HD void store_piece(BFloat16* to, V value, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh((__m512)value));
}
FASTDS_HD void store_piece(float* to, V value, __mmask16 lanes) { _mm512_mask_storeu_ps(to, lanes, (__m512)value); }

// What becomes of the sums of one or two vectors of columns: y = act(sum + bias + residual), stored as T.
template <class T>
struct Outputs {
    const Conv3x3Call& call;
    const float* bias;  // of the first column
    Pieces sinks, residual;
    int64_t first;  // column

    Outputs(const Conv3x3Call& call_, const float* all, Range vectors, int64_t columns)
        : call(call_), bias(all + vectors.begin * kL), sinks(call_.sinks, vectors, columns),
          residual(call_.residual, call_.shuffle > 1 ? Range{0, 0} : vectors, columns), first(vectors.begin * kL) {}

    // Adds the residual of `count` pixels of a row to their sums, `row` floats apart.
    void add_residual(const Tile& pixel, int64_t count, float* sums, int64_t row, int64_t columns) const {
        if (call.shuffle > 1 && call.residual.count > 0) return add_shuffled(pixel, count, sums, row, columns);
        for (int p = 0; p < residual.count; p++) {
            const Piece& piece = residual.piece[p];
            const T* from = pixel_of<T>(piece, pixel);
            float* at = sums + piece.vector * kL;
            for (int64_t i = 0; i < count; i++, from += piece.view->w, at += row)
                store_vec<kL>(at, load_vec<kL>(at) + load_piece(from, piece.lanes));
        }
    }

    // The same where it has the channel order before the shuffle.
    void add_shuffled(const Tile& pixel, int64_t count, float* sums, int64_t row, int64_t columns) const {
        const Conv3x3View& view = call.residual.view[0];
        const int64_t parts = call.shuffle * call.shuffle, per_part = view.channels / parts;
        const T* from = static_cast<const T*>(view.data) + pixel.b * view.b + pixel.y * view.h + pixel.x * view.w;
        for (int64_t i = 0; i < count; i++, from += view.w, sums += row)
            for (int64_t c = 0; c < least(2 * kL, columns - first); c++)
                sums[c] += load(from[(first + c) % per_part * parts + (first + c) / per_part]);
    }

    template <int Act>
    void store_activated(const Tile& pixel, int64_t count, const float* sums, int64_t row) const {
        for (int p = 0; p < sinks.count; p++) {
            const Piece& piece = sinks.piece[p];
            const V add = load_vec<kL>(bias + piece.vector * kL);
            const float *at = sums + piece.vector * kL, slope = call.negative_slope;
            const int64_t step = piece.view->w;
            T* to = pixel_of<T>(piece, pixel);
            for (int64_t i = 0; i < count; i++, at += row, to += step)
                store_piece(to, activate(load_vec<kL>(at) + add, Act, slope), piece.lanes);
        }
    }
    void store(const Tile& pixel, int64_t count, const float* sums, int64_t row) const {
        switch (call.act) {
            case act_relu: return store_activated<act_relu>(pixel, count, sums, row);
            case act_leaky_relu: return store_activated<act_leaky_relu>(pixel, count, sums, row);
            default: return store_activated<act_none>(pixel, count, sums, row);
        }
    }
};

// Where the output of a position lies in a view of its own; all lanes of a vector, or none where it has no output.
struct LinePlace {
    int64_t offset;
    __mmask32 lanes;
};

// Whether all outputs go to one view, and what is added to them lies in the same way: then they are looked up line by line.
inline bool has_lines(const Conv3x3Call& call) {
    const Conv3x3View &sink = call.sinks.view[0], &add = call.residual.view[0];
    const bool adds = call.residual.count > 0 && add.data != nullptr;
    return call.sinks.count == 1 && call.residual.count <= 1 &&
           (!adds || (add.b == sink.b && add.h == sink.h && add.w == sink.w));
}

// The places of `count` positions of a block, whose first row is `first`, and of as many more as are fetched ahead.
inline void find_places(const Conv3x3Call& call, const Rows& rows, int64_t first, int64_t count, LinePlace* places) {
    const Conv3x3View& sink = call.sinks.view[0];
    __builtin_memset(places, 0, (round_up(count, kGroup) + kGroup) * sizeof(*places));
    for_outputs(call.geometry, rows, first, Range{0, count}, count, [&](int64_t p, const Tile& pixel, int64_t n) {
        const int64_t at = pixel.b * sink.b + pixel.y * sink.h + pixel.x * sink.w;
        for (int64_t i = 0; i < n; i++) places[p + i] = {at + i * sink.w, ~0u};
    });
}

FASTDS_HD void store_pair(BFloat16* to, V left, V right, __mmask32 lanes) {
    _mm512_mask_storeu_epi16(to, lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)right, (__m512)left));
}
FASTDS_HD void store_pair(float* to, V left, V right, __mmask32 lanes) {
    store_piece(to, left, static_cast<__mmask16>(lanes));
    store_piece(to + kL, right, static_cast<__mmask16>(lanes >> kL));
}

#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
