// SPDX-License-Identifier: Apache-2.0
// G g G^T of every filter, packed for the products of the engine: per point and block of output vectors, the rows of a
// (inputs x outputs) matrix one after the other; or the filters themselves in bfloat16 for matrix tiles.
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
            while (part_of(cut.vectors, cut.blocks, block).end <= vector) block++;
            const Range side = part_of(cut.vectors, cut.blocks, block);
            pack_vector(filters, maps, vector, {0, maps.inputs}, packed + (side.begin * maps.inputs + vector - side.begin) * kL,
                        (side.end - side.begin) * kL, plane);
        }
    });
}

// For amx.h: pairs of inputs of 16 outputs side by side.
template <class T>
void pack_pixels(const Conv3x3Filters& filters, BFloat16* packed, int threads) {
    const Conv3x3Weight& w = filters.weight;
    const T* data = static_cast<const T*>(w.data);
    const bool adjoint = filters.adjoint;
    const auto [inputs, per_block, outputs, map] = PackedMaps(filters);
    const PixelRows rows(inputs);
    const int64_t vectors = (map.columns + kTileColumns - 1) / kTileColumns, tile = kTileDepth * kTileColumns;
    parallel_for(vectors, threads, [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; vector++) {
            const int64_t pair = vector / 2 * 2, width = least(2, vectors - pair);
            BFloat16* out = packed + 2 * rows.packed_pairs(pair) + (vector - pair) * tile;
            for (int64_t step = 0; step < rows.steps; step++)
                for (int64_t tap = 0; tap < rows.taps; tap++, out += width * tile)
                    for (int64_t k = 0; k < kTileDepth; k++)
                        for (int64_t n = 0; n < kTileColumns; n++) {
                            const int64_t output = map.output(vector * kTileColumns + n), number = rows.first(step) + k;
                            const int64_t i = number % rows.pixel, place = tap * rows.window + number / rows.pixel;
                            BFloat16 value{};
                            if (output >= 0 && number >= step * kTileDepth && number < rows.depth && i < inputs) {
                                const int64_t o = adjoint ? outputs.output(i) : output, c = adjoint ? output : i;
                                const int64_t t = adjoint ? 8 - place : place;
                                value = store<BFloat16>(static_cast<float>(
                                    load(data[o * w.stride_o + c * w.stride_c + t / 3 * w.stride_h + t % 3 * w.stride_w])));
                            }
                            out[(k / 2 * kTileColumns + n) * 2 + k % 2] = value;
                        }
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
