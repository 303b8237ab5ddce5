// SPDX-License-Identifier: Apache-2.0
// The product of bfloat16 on the processor's matrix tiles (AMX): lines of A are pixels, B are the packed weights.
#pragma once
#include "conv1x1/maps.h"
#include "core/activation.h"
#include "core/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Multiplications that are worth a second thread.
inline int64_t worth_threads(bool tiles) { return tiles ? 16 * kShared : kShared; }

#if defined(__AVX512BF16__)
constexpr int64_t kBlock = 2 * kTileColumns;  // pixels and columns of a block of sums
constexpr int64_t kNearChannels = 512;        // of a block of pixels that stays in the first cache

// Pixels as lines of whole tiles, `row` numbers apart: zeros behind the last channel.
inline void stage_tiles(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, BFloat16* to, int64_t row) {
    const uint16_t* from = pixel_at<uint16_t>(map, b, first);
    uint16_t* lines = reinterpret_cast<uint16_t*>(to);
    const int64_t whole = map.channels / kTileDepth * kTileDepth;
    const __mmask32 rest = (1u << (map.channels - whole)) - 1;
    if (map.c != 1) {
        turn(from, map.c, map.channels, count, lines, row);
        for (int64_t i = 0; rest != 0 && i < count; i++) _mm512_mask_storeu_epi16(lines + i * row + whole, ~rest, __m512i{});
        return;
    }
    for (int64_t i = 0; i < count; i++, from += map.p, lines += row) {
        for (int64_t c = 0; c < whole; c += kTileDepth) _mm512_storeu_si512(lines + c, _mm512_loadu_si512(from + c));
        if (rest != 0) _mm512_storeu_si512(lines + whole, _mm512_maskz_loadu_epi16(rest, from + whole));
    }
}

// One block: Rows x Columns tiles (1 or 2 each) from a pixel of the panels on, rows of Columns vectors; bias: of its columns.
template <int Rows, int Columns, class Panel>
void tile_sums(const Panel* panels, int count, const float* bias, int64_t pixel, int64_t column, float* sums) {
    using Sums = TileSums<Rows, Columns>;
    Sums::begin(bias, 0, false);  // every line is the bias
    for (int s = 0; s < count; s++) {
        const Panel& p = panels[s];
        const BFloat16 *a = p.a + pixel * p.row, *b = p.b + column * p.steps * 2;
        const int64_t stride = p.row * sizeof(*a);
        for (int64_t step = 0; step < p.steps; step += kTileDepth / 2, a += kTileDepth, b += Columns * kTileColumns * kTileDepth)
            Sums::add(a, stride, kTileRows * stride, b, Columns * kTileLine, kTileLine);
    }
    Sums::end(sums, Columns * kTileColumns);
}

// Rows of NV vectors of sums into y; f is what becomes of them before. count: of their columns that are outputs.
template <int NV, class F>
FASTDS_HD void store_rows(const float* sums, int64_t pixels, int64_t count, BFloat16* y, int64_t row, const F& f) {
    const __mmask32 lanes = count >= NV * kL ? ~0u : (1u << count) - 1;
    for (int64_t i = 0; i < pixels; i++, sums += NV * kL, y += row) {
        const __m512 low = (__m512)f(load_vec<kL>(sums));
        if (NV == 1)
            _mm256_mask_storeu_epi16(y, static_cast<__mmask16>(lanes), (__m256i)_mm512_cvtneps_pbh(low));
        else
            _mm512_mask_storeu_epi16(y, lanes, (__m512i)_mm512_cvtne2ps_pbh((__m512)f(load_vec<kL>(sums + (NV - 1) * kL)), low));
    }
}

// The same with what follows the sums, to number `at` of y and the pixels behind it.
template <int NV>
void finish_rows(const Conv1x1& call, float* sums, int64_t pixels, int64_t at, int64_t count) {
    BFloat16* const y = static_cast<BFloat16*>(call.y) + at;
    const float slope = call.negative_slope;
    if (call.residual != nullptr) {
        const BFloat16* residual = static_cast<const BFloat16*>(call.residual) + at;
        for (int64_t i = 0; i < pixels; i++, residual += call.outputs)
            for (int64_t c = 0; c < least(NV * kL, count); c += kL) {
                float* sum = sums + i * NV * kL + c;
                store_vec<kL>(sum, V(load_vec<kL>(sum) + load_lanes(residual + c, static_cast<int>(least(kL, count - c)))));
            }
    }
    const auto store = [&](const auto& f) { store_rows<NV>(sums, pixels, count, y, call.outputs, f); };
    switch (call.act) {
        case act_relu: return store([](V v) { return activate(v, act_relu, 0.f); });
        case act_leaky_relu: return store([&](V v) { return activate(v, act_leaky_relu, slope); });
        default: return store([](V v) { return v; });
    }
}

// Some pixels, which are those of y from pixel `first` on. The last that are no whole tile are taken with some before them once
// more.
template <class Panel>
void multiply_on_tiles(const Conv1x1& call, const Panel* panels, const float* bias, int64_t first, int64_t pixels) {
    int64_t steps = 0;
    for (int s = 0; s < call.sources; s++) steps += panels[s].steps;
    const int64_t group = 2 * steps > kNearChannels ? pixels : kBlock;
    int64_t from = 0;
    const auto multiply_block = [&](auto width, int64_t column) {
        constexpr int NV = decltype(width)::value;
        if constexpr (NV <= 2)
            for (int64_t next = from; next < least(from + group, pixels);) {
                alignas(64) float sums[kBlock * NV * kL];
                const bool two = pixels - next > kTileRows && pixels >= kBlock;
                const int64_t rows = two ? kBlock : kTileRows, pixel = pixels < rows ? 0 : least(next, pixels - rows);
                const auto sum = two ? tile_sums<2, NV, Panel> : tile_sums<1, NV, Panel>;
                sum(panels, call.sources, bias + column, pixel, column, sums);
                finish_rows<NV>(call, sums, least(rows, pixels), (first + pixel) * call.outputs + column, call.outputs - column);
                next = pixel + rows;
            }
    };
    for (; from < pixels; from += group) for_column_blocks<float>(call.outputs, multiply_block, Blocking{true}.vectors());
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
