// SPDX-License-Identifier: Apache-2.0
// The product of bfloat16 on the processor's matrix tiles (AMX): lines of A are pixels, B are the packed weights.
#pragma once
#include "conv1x1/maps.h"
#include "core/activation.h"
#include "core/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Whether a step of the product is one of matrix tiles, and what the channels of a source are filled up to.
template <class Step>
constexpr bool kOnTiles = false;
template <class Step>
constexpr int64_t kWholeChannels = Step::terms;
constexpr int64_t kLeastChannels = 8;  // which a tile, of 32, does not pay for
// Multiplications that are worth a second thread.
template <class Step>
constexpr int64_t kWorthThreads = kOnTiles<Step> ? 16 * kShared : kShared;

#if defined(__AVX512BF16__)
// Weights are packed as for Bf16DotStep.
struct TileStep : Bf16DotStep {};
template <>
constexpr bool kOnTiles<TileStep> = true;
template <>
constexpr int64_t kWholeChannels<TileStep> = kTileDepth;

constexpr int64_t kBlock = 2 * kTileColumns;  // pixels and columns of a block of sums
constexpr int64_t kNearChannels = 512;        // of a block of pixels that stays in the first cache

// One block: Rows x Columns tiles (1 or 2 each) from a pixel of the panels on; bias: of its columns.
template <int Rows, int Columns, class Panel>
void tile_sums(const Panel* panels, int count, const float* bias, int64_t pixel, int64_t column, float* sums) {
    using Sums = TileSums<Rows, Columns>;
    Sums::begin(bias, 0, false);  // every line is the bias
    for (int s = 0; s < count; s++) {
        const Panel& p = panels[s];
        const BFloat16 *a = p.a + pixel * p.row, *b = p.b + column * p.steps * 2;
        for (int64_t step = 0; step < p.steps; step += kTileDepth / 2, a += kTileDepth, b += Columns * kTileColumns * kTileDepth)
            Sums::add(a, p.row * sizeof(BFloat16), b, Columns * kTileLine, kTileLine);
    }
    Sums::end(sums, kBlock);
}

// Lines of sums into y; f is what becomes of them before. lanes: of the columns that are outputs.
template <class F>
FASTDS_HD void store_lines(const float* sums, int64_t pixels, __mmask32 lanes, BFloat16* y, int64_t row, const F& f) {
    for (int64_t i = 0; i < pixels; i++, sums += kBlock, y += row) {
        const __m512 low = (__m512)f(load_vec<kL>(sums)), high = (__m512)f(load_vec<kL>(sums + kL));
        _mm512_mask_storeu_epi16(y, lanes, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

// The same with what follows the sums, to number `at` of y and the pixels behind it.
inline void finish_block(const Conv1x1& call, float* sums, int64_t pixels, int64_t at, int64_t columns) {
    const __mmask32 lanes = columns >= kBlock ? ~0u : (1u << columns) - 1;
    BFloat16* const y = static_cast<BFloat16*>(call.y) + at;
    const float slope = call.negative_slope;
    if (call.residual != nullptr) {
        const BFloat16* residual = static_cast<const BFloat16*>(call.residual) + at;
        for (int64_t i = 0; i < pixels; i++)
            for (int64_t c = 0; c < least(kBlock, columns); c += kL) {
                const V more = load_lanes(residual + i * call.outputs + c, static_cast<int>(least(kL, columns - c)));
                store_vec<kL>(sums + i * kBlock + c, V(load_vec<kL>(sums + i * kBlock + c) + more));
            }
    }
    switch (call.act) {
        case act_relu: return store_lines(sums, pixels, lanes, y, call.outputs, [](V v) { return activate(v, act_relu, 0.f); });
        case act_leaky_relu:
            return store_lines(sums, pixels, lanes, y, call.outputs, [&](V v) { return activate(v, act_leaky_relu, slope); });
        default: return store_lines(sums, pixels, lanes, y, call.outputs, [](V v) { return v; });
    }
}

// Some pixels, which are those of y from pixel `first` on. The last that are no whole tile are taken with some before them once
// more.
template <class Panel>
void multiply_on_tiles(const Conv1x1& call, const Panel* panels, const float* bias, int64_t first, int64_t pixels) {
    alignas(64) float sums[kBlock * kBlock];
    int64_t steps = 0;
    for (int s = 0; s < call.sources; s++) steps += panels[s].steps;
    const int64_t group = 2 * steps > kNearChannels ? pixels : kBlock;
    for (int64_t from = 0; from < pixels; from += group)
        for (int64_t column = 0; column < call.outputs; column += kBlock)
            for (int64_t next = from; next < least(from + group, pixels);) {
                const bool two = pixels - next > kTileRows && pixels >= kBlock, pair = call.outputs - column > kTileColumns;
                const int64_t rows = two ? kBlock : kTileRows, pixel = pixels < rows ? 0 : least(next, pixels - rows);
                const auto add = two ? (pair ? tile_sums<2, 2, Panel> : tile_sums<2, 1, Panel>)
                                     : (pair ? tile_sums<1, 2, Panel> : tile_sums<1, 1, Panel>);
                add(panels, call.sources, bias + column, pixel, column, sums);
                finish_block(call, sums, least(rows, pixels), (first + pixel) * call.outputs + column, call.outputs - column);
                next = pixel + rows;
            }
}
#endif

// Packed weights: calls f(Width, first column) for blocks of columns.
template <class Step, class F>
void for_packed_blocks(int64_t outputs, Range blocks, const F& f) {
    if (!kOnTiles<Step>) return for_column_blocks<float>(outputs, blocks, f);
    for (int64_t i = blocks.begin; i < blocks.end; i++) {
        const int64_t column = 2 * kTileColumns * i;
        outputs - column > kTileColumns ? f(Width<2>{}, column) : f(Width<1>{}, column);
    }
}
template <class Step>
int64_t packed_blocks(int64_t outputs) {
    return kOnTiles<Step> ? parts_of(outputs, 2 * kTileColumns) : column_blocks<float>(outputs).blocks;
}

// Calls f with the step of the product.
template <class T, class F>
auto by_step(bool tiles, const F& f) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(typename StepOf<T>::type::Stored) == 2)
        if (tiles) return f(TileStep{});
#endif
    return f(typename StepOf<T>::type{});
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
