// SPDX-License-Identifier: Apache-2.0
// Matrix product of conv1x1 in bfloat16 with AMX tiles. The rows of the left matrix A are pixels. The right matrix B holds the
// packed weights.
#pragma once
#include "conv1x1/inputs.h"
#include "core/activation.h"
#include "core/amx.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Returns the minimum number of multiplications for which several threads are used.
inline int64_t get_thread_threshold(bool tiles) { return tiles ? 16 * kMinThreadedProducts : kMinThreadedProducts; }

#if defined(__AVX512BF16__)
constexpr int64_t kBlock = 2 * kTileColumns;  // pixels and columns of a block of sums
constexpr int64_t kNearChannels = 512;        // channels of a block of pixels that stays in the L1 cache

// Copies `count` pixels to rows with a stride of `row` elements. Zeros fill each row up to a multiple of kTileDepth channels.
inline void stage_tiles(const Conv1x1Map& map, int64_t b, int64_t first, int64_t count, BFloat16* to, int64_t row) {
    const uint16_t* from = get_pixel<uint16_t>(map, b, first);
    uint16_t* lines = reinterpret_cast<uint16_t*>(to);
    const int64_t whole = map.channels / kTileDepth * kTileDepth;
    const __mmask32 rest = (1u << (map.channels - whole)) - 1;
    if (map.c != 1) {
        transpose_rows(from, map.c, map.channels, count, lines, row);
        for (int64_t i = 0; rest != 0 && i < count; i++) _mm512_mask_storeu_epi16(lines + i * row + whole, ~rest, __m512i{});
        return;
    }
    for (int64_t i = 0; i < count; i++, from += map.p, lines += row) {
        for (int64_t c = 0; c < whole; c += kTileDepth) _mm512_storeu_si512(lines + c, _mm512_loadu_si512(from + c));
        if (rest != 0) _mm512_storeu_si512(lines + whole, _mm512_maskz_loadu_epi16(rest, from + whole));
    }
}

// Computes the sums of one block of Rows x Columns tiles (1 or 2 in each direction), which starts at a pixel of the panels and
// at a column. Each row of `sums` has Columns vectors. `bias` points to the bias of the first column. after() is called after
// each multiplication of a block.
template <int Rows, int Columns, class Panel, class After>
FASTDS_HD void compute_tile_sums(const Panel* panels, int count, const float* bias, int64_t pixel, int64_t column, float* sums,
                         const After& after) {
    using Sums = TileSums<Rows, Columns>;
    Sums::begin(bias, 0, false);  // each row starts with the bias
    for (int s = 0; s < count; s++) {
        const Panel& p = panels[s];
        const BFloat16 *a = p.a + pixel * p.row, *b = p.b + column * p.steps * 2;
        const int64_t stride = p.row * sizeof(*a);
        constexpr int64_t tiles = Columns * kTileColumns * kTileDepth;
        for (int64_t step = 0; step < p.steps; step += kTileDepth / 2, a += kTileDepth, b += tiles) {
            Sums::add(a, stride, kTileRows * stride, b, Columns * kTileRowBytes, kTileRowBytes);
            after();
        }
    }
    Sums::end(sums, Columns * kTileColumns);
}

// Stores the sums of one block while the next block is computed, so that the stores overlap with the products.
class DeferredStores {
public:
    // `steps` is the number of steps of a block.
    DeferredStores(const Conv1x1& call, int64_t steps)
        : residual_(static_cast<const BFloat16*>(call.residual)), y_(static_cast<BFloat16*>(call.y)), row_(call.outputs),
          each_(count_parts(kBlock, steps)), act_(call.act), slope_(call.negative_slope) {}

    // Sets the position in y of the block that is computed next.
    FASTDS_HD void set_next(int64_t at) { next_ = at; }
    // Sets the sums that the next calls of store_some() and store_rest() store: `lines` rows of Vectors vectors. `count` is the
    // number of outputs from the first column of the block on.
    template <int Vectors>
    FASTDS_HD void accept(const float* sums, int64_t lines, int64_t count) {
        sums_ = sums, at_ = next_, line_ = 0, lines_ = lines, vectors_ = Vectors;
        lanes_ = count >= Vectors * kL ? ~0u >> (32 - Vectors * kL) : (1u << count) - 1;
    }
    FASTDS_HD void store_some() { store(min_of(line_ + each_, lines_)); }
    FASTDS_HD void store_rest() { store(lines_); }

private:
    FASTDS_HD void store(int64_t end) {
        const bool stores_sums = residual_ == nullptr && act_ == act_none;
        if (vectors_ == 2)
            stores_sums ? store<2, true>(end) : store<2, false>(end);
        else
            stores_sums ? store<1, true>(end) : store<1, false>(end);
    }
    template <int Vectors, bool Plain>
    FASTDS_HD void store(int64_t end) {
        const int64_t count = end - line_, row = row_, at = at_ + line_ * row;
        const float *sums = sums_ + line_ * Vectors * kL, slope = slope_;
        const __mmask32 lanes = lanes_;
        const int act = Plain ? static_cast<int>(act_none) : act_;
        BFloat16 *y = y_ + at, *ahead = y_ + next_ + line_ * row;
        const BFloat16* residual = Plain || residual_ == nullptr ? nullptr : residual_ + at;
        for (int64_t i = 0; i < count; i++, sums += Vectors * kL, y += row, ahead += row) {
            if (Vectors > 1) prefetch_output_row<Vectors>(ahead);
            const V right = Vectors > 1 ? load_vec<kL>(sums + kL) : V{};
            store_output_row<Vectors>(load_vec<kL>(sums), right, residual, act, slope, y, lanes);
            if (residual != nullptr) residual += row;
        }
        line_ = end;
    }

    const BFloat16* const residual_;
    BFloat16* const y_;
    const int64_t row_, each_;
    const int act_;
    const float slope_;
    const float* sums_ = nullptr;
    int64_t at_ = 0, next_ = 0, line_ = 0, lines_ = 0, vectors_ = 1;
    __mmask32 lanes_ = 0;
};

// Computes `pixels` pixels of y from pixel `first` on. The last block of pixels may overlap the block before, so that some
// pixels are computed twice.
template <class Panel>
void multiply_on_tiles(const Conv1x1& call, const Panel* panels, const float* bias, int64_t first, int64_t pixels) {
    int64_t steps = 0;
    for (int s = 0; s < call.sources; s++) steps += panels[s].steps;
    const int64_t group = 2 * steps > kNearChannels ? pixels : kBlock;
    alignas(64) float sums[2][kBlock * kBlock + 16];
    int64_t from = 0, block = 0;
    const bool hides = steps > kTileDepth;  // blocks of one or two products are too short to overlap with stores
    DeferredStores stores(call, 2 * steps / kTileDepth);
    const auto multiply_block = [&](auto width, int64_t column) {
        constexpr int NV = decltype(width)::value;
        if constexpr (NV <= 2)
            for (int64_t next = from; next < min_of(from + group, pixels); block++) {
                const bool two = pixels - next > kTileRows && pixels >= kBlock;
                const int64_t rows = two ? kBlock : kTileRows, pixel = pixels < rows ? 0 : min_of(next, pixels - rows);
                float* const to = sums[block % 2];
                const auto sum = [&](const auto& after) __attribute__((always_inline)) {
                    two ? compute_tile_sums<2, NV>(panels, call.sources, bias + column, pixel, column, to, after)
                        : compute_tile_sums<1, NV>(panels, call.sources, bias + column, pixel, column, to, after);
                };
                stores.set_next((first + pixel) * call.outputs + column);
                if (hides)
                    sum([&] { stores.store_some(); });
                else
                    sum([] {});
                stores.store_rest();
                stores.template accept<NV>(to, min_of(rows, pixels), call.outputs - column);
                if (!hides) stores.store_rest();
                next = pixel + rows;
            }
    };
    for (; from < pixels; from += group) for_column_blocks<float>(call.outputs, multiply_block, Blocking{true}.vectors());
    stores.store_rest();
}
#endif

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
