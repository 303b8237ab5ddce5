// SPDX-License-Identifier: Apache-2.0
// The engine with the output stage of conv3x3 and grad_x: bias, residual, activation, sinks. How calls are cut into blocks.
#include "conv3x3/engine.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T, Store How>
void finish_block(const Conv3x3Call& call, const Layout& at, const float* bias, int64_t first, int64_t count, float* scratch,
                  Range columns) {
    const StoreStage<T, How> stage{call, bias, reinterpret_cast<T*>(scratch + at.staging)};
    Tile tile = tile_at(call.geometry, first);
    for (int64_t i = 0; i < count; i++, to_next_tile(call.geometry, tile))
        finish_tile(call.geometry, stage, tile, scratch + at.m + i * at.m_row, at.m_plane,
                    columns.begin, columns.end);
}

template <class T>
void finish_block(const Conv3x3Call& call, const Conv3x3Plan& plan, const Layout& at, const float* bias, int64_t first,
                  int64_t count, float* scratch, Range columns) {
    switch (static_cast<Store>(plan.store)) {
        case Store::cached: return finish_block<T, Store::cached>(call, at, bias, first, count, scratch, columns);
        case Store::staged: return finish_block<T, Store::staged>(call, at, bias, first, count, scratch, columns);
        case Store::streamed:
            if constexpr (sizeof(T) == sizeof(float))
                return finish_block<T, Store::streamed>(call, at, bias, first, count, scratch, columns);
    }
}

// Outputs of this size push each other and everything else out of the caches.
constexpr int64_t kStreamBytes = 8 << 20;

Store choose_store(const Conv3x3Call& call, bool one_pass) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t item = call.sinks.dtype == f32 ? 4 : 2;
    if (!kCanStream || g.B * g.Ho * g.Wo * call.sinks.channels() * item < kStreamBytes) return Store::cached;
    bool aligned = item == 4, dense = true;
    for (int s = 0; s < call.sinks.count; s++) {
        const Conv3x3View& view = call.sinks.view[s];
        dense = dense && view.w == view.channels;
        aligned = aligned && view.channels % kL == 0 && reinterpret_cast<intptr_t>(view.data) % kVectorBytes == 0;
    }
    if (aligned) return Store::streamed;
    return one_pass && dense ? Store::staged : Store::cached;
}

}  // namespace

Conv3x3Plan conv3x3_plan(const Conv3x3Call& call, int threads) {
    Conv3x3Plan plan{};
    const int64_t inputs = call.sources.channels(), outputs = columns_of(call).columns, tiles = call.geometry.tiles();
    const ColumnBlocks cut = column_blocks<float>(outputs);
    const int64_t vectors = cut.vectors;
    // Measured: few channels want long blocks, matrices far beyond the L2 cache too, so that they are read less often.
    const bool wide = is_wide(inputs, outputs), narrow = inputs <= 32 && outputs <= 32;
    const int64_t most_tiles = wide ? 96 : narrow ? 72 : 24;
    const int64_t pass = (wide ? kWidePassColumns : kPassColumns) / kL;
    plan.block_vectors = makes_one_pass(inputs, outputs) ? vectors : pass;
    plan.group_tiles = tile_rows(static_cast<int>((vectors + cut.blocks - 1) / cut.blocks));  // of the widest column block
    const int64_t groups = (tiles + plan.group_tiles - 1) / plan.group_tiles;
    plan.threads = static_cast<int>(least(threads, groups > 0 ? groups : 1));
    plan.blocks = round_up((tiles + most_tiles - 1) / most_tiles, plan.threads);
    plan.block_tiles = groups > 0 ? (groups + plan.blocks - 1) / plan.blocks * plan.group_tiles : 1;
    plan.store = static_cast<int>(choose_store(call, plan.block_vectors == vectors));
    const Layout at(call, plan.block_tiles, plan.block_vectors);
    plan.thread_floats = at.floats;
    plan.bytes = (plan.threads * at.floats + round_up(outputs, 16)) * static_cast<int64_t>(sizeof(float));
    return plan;
}

void conv3x3_run(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace) {
    const float* bias = bias_of_columns(call, plan, workspace);
    run_engine(call, plan, workspace, [&](const Layout& at, int64_t first, int64_t count, float* scratch, Range columns) {
        switch (call.sinks.dtype) {
            case f32: return finish_block<float>(call, plan, at, bias, first, count, scratch, columns);
            case f16: return finish_block<Half>(call, plan, at, bias, first, count, scratch, columns);
            case bf16: return finish_block<BFloat16>(call, plan, at, bias, first, count, scratch, columns);
            case f64: break;
        }
    });
}

}  // namespace FASTDS_ISA
}  // namespace fastds
