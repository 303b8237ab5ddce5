// SPDX-License-Identifier: Apache-2.0
// Packing of filters. The Winograd engine uses the transform G g G^T of each filter: for each point and block of output
// vectors, the rows of an (inputs x outputs) matrix are stored one after the other. AMX tiles use the filters themselves in
// bfloat16.
#include "conv3x3/amx.h"
#include "conv3x3/filters.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

void pack(const Conv3x3Filters& filters, float* packed, int threads) {
    const PackedMaps maps(filters);
    const ColumnBlocks cut = column_blocks<float>(maps.columns.columns);
    const int64_t plane = packed_plane(maps.inputs, cut);
    parallel_for(cut.vectors, threads, [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; vector++) {
            int64_t block = 0;
            while (cut.get_vectors(block).end <= vector) block++;
            const Range side = cut.get_vectors(block);
            pack_vector(filters, maps, vector, {0, maps.inputs}, packed + (side.begin * maps.inputs + vector - side.begin) * kL,
                        (side.end - side.begin) * kL, plane);
        }
    });
}

// Packs the elements of one tap and step for 16 columns, in pairs of rows. `columns` holds the offset of each column in the
// weight, or -1 for a column of zeros.
template <class T>
void pack_tile(const Conv3x3Filters& filters, const PackedMaps& maps, const PixelRows& pixels, int64_t tap, int64_t step,
               const int64_t (&columns)[kTileColumns], BFloat16* out) {
    const Conv3x3Weight& w = filters.weight;
    const T* data = static_cast<const T*>(w.data);
    for (int64_t k = 0; k < kTileDepth; k++) {
        const int64_t number = pixels.first(step) + k, i = number % pixels.pixel;
        const int64_t place = tap * pixels.window + number / pixels.pixel, t = filters.adjoint ? 8 - place : place;
        const bool taken = number >= step * kTileDepth && number < pixels.depth && i < maps.inputs;
        const int64_t row = !taken ? 0 : filters.adjoint ? maps.outputs.output(i) * w.stride_o : i * w.stride_c;
        const T* from = data + row + (taken ? t / 3 * w.stride_h + t % 3 * w.stride_w : 0);
        BFloat16* to = out + k / 2 * 2 * kTileColumns + k % 2;
        for (int64_t n = 0; n < kTileColumns; n++)
            to[2 * n] = taken && columns[n] >= 0 ? store<BFloat16>(static_cast<float>(load(from[columns[n]]))) : BFloat16{};
    }
}

// Packs filters for AMX tiles (amx.h). The elements of two consecutive inputs are next to each other, for 16 outputs.
template <class T>
void pack_pixels(const Conv3x3Filters& filters, BFloat16* packed, int threads) {
    const PackedMaps maps(filters);
    const PixelRows pixels(maps.inputs);
    const int64_t vectors = count_parts(maps.columns.columns, kTileColumns), tile = kTileDepth * kTileColumns;
    parallel_for(vectors, threads, [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; vector++) {
            const int64_t pair = vector / 2 * 2, width = min_of(2, vectors - pair);
            BFloat16* out = packed + 2 * pixels.packed_pairs(pair) + (vector - pair) * tile;
            int64_t columns[kTileColumns];
            for (int64_t n = 0; n < kTileColumns; n++) {
                const int64_t output = maps.columns.output(vector * kTileColumns + n);
                columns[n] = output < 0 ? -1 : output * (filters.adjoint ? filters.weight.stride_c : filters.weight.stride_o);
            }
            for (int64_t step = 0; step < pixels.steps; step++)
                for (int64_t tap = 0; tap < pixels.taps; tap++, out += width * tile)
                    pack_tile<T>(filters, maps, pixels, tap, step, columns, out);
        }
    });
}

}  // namespace

int64_t conv3x3_packed_size(const Conv3x3Weight& w, bool adjoint, bool amx) {
    const int64_t inputs = (adjoint ? w.O : w.C) * w.blocks();
    const ColumnBlocks cut = column_blocks<float>(adjoint ? w.C : w.O);
    return amx ? PixelRows(inputs).packed_pairs(cut.vectors) : kPoints * packed_plane(inputs, cut);
}

void conv3x3_pack_weight(const Conv3x3Filters& filters, bool amx, float* packed, int threads) {
    if (!amx) return pack(filters, packed, threads);
    BFloat16* pairs = reinterpret_cast<BFloat16*>(packed);
    switch (filters.weight.dtype) {
        case f32: return pack_pixels<float>(filters, pairs, threads);
        case f16: return pack_pixels<Half>(filters, pairs, threads);
        case bf16: return pack_pixels<BFloat16>(filters, pairs, threads);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
