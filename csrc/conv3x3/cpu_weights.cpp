// SPDX-License-Identifier: Apache-2.0
// G g G^T of every filter, packed for the products of the engine: per point and block of output vectors, the rows of a
// (inputs x outputs) matrix one after the other; or the filters themselves in bfloat16 for matrix tiles.
#include "conv3x3/amx.h"
#include "conv3x3/tiles.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T>
void pack(const Conv3x3Weight& w, bool adjoint, int64_t shuffle, float* packed, int threads) {
    const T* data = static_cast<const T*>(w.data);
    const int64_t inputs = adjoint ? w.O : w.C;
    // The outputs that the columns stand for; in the adjoint the rows.
    const ColumnMap outputs{w.O, shuffle}, map = adjoint ? ColumnMap{w.C, 1} : outputs;
    const ColumnBlocks cut = column_blocks<float>(map.columns);
    const int64_t plane = packed_plane(inputs, cut);
    parallel_for(cut.vectors, threads, [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; vector++) {
            int64_t block = 0;
            while (cut.vectors * (block + 1) / cut.blocks <= vector) block++;
            const int64_t first = cut.vectors * block / cut.blocks, width = cut.vectors * (block + 1) / cut.blocks - first;
            float* out = packed + first * kL * inputs + (vector - first) * kL;
            for (int64_t i = 0; i < inputs; i++, out += width * kL) {
                float taps[9][kL] = {};
                for (int lane = 0; lane < kL; lane++) {
                    const int64_t output = map.output(vector * kL + lane);
                    if (output < 0) continue;
                    const int64_t o = adjoint ? outputs.output(i) : output, c = adjoint ? output : i;
                    const T* filter = data + o * w.stride_o + c * w.stride_c;
                    for (int k = 0; k < 9; k++)
                        taps[adjoint ? 8 - k : k][lane] = load(filter[k / 3 * w.stride_h + k % 3 * w.stride_w]);
                }
                V half[6][3];
                for (int c = 0; c < 3; c++) {
                    V g[3], u[6];
                    for (int r = 0; r < 3; r++) g[r] = load_vec<kL>(taps[r * 3 + c]);
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
    });
}

// For amx.h: pairs of inputs of 16 outputs side by side.
template <class T>
void pack_pixels(const Conv3x3Weight& w, bool adjoint, int64_t shuffle, BFloat16* packed, int threads) {
    const T* data = static_cast<const T*>(w.data);
    const ColumnMap outputs{w.O, shuffle}, map = adjoint ? ColumnMap{w.C, 1} : outputs;
    const int64_t inputs = adjoint ? w.O : w.C, steps = steps_of(inputs);
    const int64_t vectors = (map.columns + kTileColumns - 1) / kTileColumns, tile = kTileDepth * kTileColumns;
    parallel_for(vectors, threads, [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; vector++) {
            const int64_t pair = vector / 2 * 2, width = least(2, vectors - pair);
            BFloat16* out = packed + (9 * steps * pair + (vector - pair)) * tile;
            for (int64_t step = 0; step < steps; step++)
                for (int64_t tap = 0; tap < 9; tap++, out += width * tile)
                    for (int64_t k = 0; k < kTileDepth; k++)
                        for (int64_t n = 0; n < kTileColumns; n++) {
                            const int64_t output = map.output(vector * kTileColumns + n), i = step * kTileDepth + k;
                            BFloat16 value{};
                            if (output >= 0 && i < inputs) {
                                const int64_t o = adjoint ? outputs.output(i) : output, c = adjoint ? output : i;
                                const int64_t t = adjoint ? 8 - tap : tap;
                                value = store<BFloat16>(static_cast<float>(
                                    load(data[o * w.stride_o + c * w.stride_c + t / 3 * w.stride_h + t % 3 * w.stride_w])));
                            }
                            out[(k / 2 * kTileColumns + n) * 2 + k % 2] = value;
                        }
        }
    });
}

template <class T>
void pack(const Conv3x3Weight& w, bool adjoint, int64_t shuffle, bool amx, float* packed, int threads) {
    if (amx) return pack_pixels<T>(w, adjoint, shuffle, reinterpret_cast<BFloat16*>(packed), threads);
    pack<T>(w, adjoint, shuffle, packed, threads);
}

}  // namespace

int64_t conv3x3_packed_size(const Conv3x3Weight& w, bool adjoint, bool amx) {
    const int64_t inputs = adjoint ? w.O : w.C;
    const ColumnBlocks cut = column_blocks<float>(adjoint ? w.C : w.O);
    return amx ? packed_pairs(inputs, cut.vectors) : kPoints * packed_plane(inputs, cut);
}

void conv3x3_pack_weight(const Conv3x3Weight& weight, bool adjoint, int64_t shuffle, bool amx, float* packed, int threads) {
    switch (weight.dtype) {
        case f32: return pack<float>(weight, adjoint, shuffle, amx, packed, threads);
        case f16: return pack<Half>(weight, adjoint, shuffle, amx, packed, threads);
        case bf16: return pack<BFloat16>(weight, adjoint, shuffle, amx, packed, threads);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
