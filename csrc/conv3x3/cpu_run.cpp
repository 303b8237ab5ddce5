// SPDX-License-Identifier: Apache-2.0
// Entry points of the Winograd engine. They select the epilogue (bias, residual, activation and storage, or a recurrent cell)
// and divide a call into blocks.
#include "conv3x3/rnn_epilogue.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

template <class T, Store How>
void finish_block(const Epilogue& epilogue, const Layout& at, int64_t first, int64_t count, float* scratch, Range columns) {
    const StoreEpilogue<T, How> store{epilogue.call, epilogue.bias, reinterpret_cast<T*>(scratch + at.staging)};
    Tile tile = get_tile(epilogue.call.geometry, first);
    for (int64_t i = 0; i < count; i++, advance_tile(epilogue.call.geometry, tile))
        finish_tile(epilogue.call.geometry, store, tile, scratch + at.m + i * at.m_row, at.m_plane, columns.begin, columns.end);
}

template <class T>
Finish select_finish(bool cell, int store) {
    switch (static_cast<Store>(store)) {
        case Store::staged: return cell ? finish_cell<T, Store::staged> : finish_block<T, Store::staged>;
        case Store::streamed:
            if constexpr (sizeof(T) == sizeof(float) && kFillsLine)
                return cell ? finish_cell<T, Store::streamed> : finish_block<T, Store::streamed>;
        case Store::cached: break;
    }
    return cell ? finish_cell<T, Store::cached> : finish_block<T, Store::cached>;
}

Finish select_finish(DType dtype, bool cell, int store) {
    switch (dtype) {
        case f16: return select_finish<Half>(cell, store);
        case bf16: return select_finish<BFloat16>(cell, store);
        default: return select_finish<float>(cell, store);
    }
}

void run(const Conv3x3Call& call, const Conv3x3Cell* cell, const Conv3x3Plan& plan, float* workspace) {
    if (call.amx) return conv3x3_amx_run(call, cell, plan, workspace);
    const float* bias = copy_bias(call, workspace + plan.threads * plan.thread_floats);
    const Epilogue epilogue{call, bias, cell, select_finish(call.sinks.dtype, cell, plan.store)};
    run_engine(epilogue, plan, workspace);
}

// Outputs of at least this number of bytes do not fit into the caches. They are written with non-temporal stores if possible.
constexpr int64_t kStreamBytes = 8 << 20;

Store choose_store(const Conv3x3Call& call, bool one_pass) {
    const Conv3x3Geometry& g = call.geometry;
    const int64_t item = call.sinks.dtype == f32 ? 4 : 2;
    if (!kCanStream || g.B * g.Ho * g.Wo * call.sinks.channels() * item < kStreamBytes) return Store::cached;
    bool aligned = item == 4 && kFillsLine, dense = true;
    for (int s = 0; s < call.sinks.count; s++) {
        const Conv3x3View& view = call.sinks.view[s];
        dense = dense && view.w == view.channels;
        aligned = aligned && view.channels % kL == 0 && reinterpret_cast<intptr_t>(view.data) % kVectorBytes == 0;
    }
    if (aligned) return Store::streamed;
    return one_pass && dense ? Store::staged : Store::cached;
}

// The threads share one block if the filters are not packed, or if there are at most kSharedTiles tiles and at least
// kSharedFilters filters (inputs * outputs). If there is only one group of tiles, which one thread would compute alone,
// kSingleThreadFilters is the minimum instead.
constexpr int64_t kSharedTiles = 32, kSharedFilters = 128 * 128, kSingleThreadFilters = 64 * 64;

}  // namespace

Conv3x3Plan conv3x3_plan(const Conv3x3Call& call, bool cell, int threads) {
    if (call.amx) return conv3x3_amx_plan(call, cell, threads);
    Conv3x3Plan plan{};
    const int64_t inputs = call.sources.channels(), outputs = get_column_map(call).columns, tiles = call.geometry.tiles();
    const ColumnBlocks cut = column_blocks<float>(outputs);
    const int64_t vectors = cut.vectors;
    // These block lengths were measured. Long blocks are fastest for few channels. They are also fastest for filters far larger
    // than the L2 cache, because the filters are then read less often.
    const bool large_filters = has_large_filters(inputs, outputs), few_channels = inputs <= 32 && outputs <= 32;
    const int64_t pass = (large_filters ? kLargePassColumns : kPassColumns) / kL;
    plan.block_vectors = cell || fits_one_pass(inputs, outputs) ? vectors : min_of(pass, vectors);
    const int64_t most_tiles = large_filters ? 96 : few_channels ? 72 : 24;
    // Tile rows of the widest block of columns.
    plan.group_tiles = tile_rows(static_cast<int>((vectors + cut.blocks - 1) / cut.blocks));
    const int64_t groups = (tiles + plan.group_tiles - 1) / plan.group_tiles;
    const int64_t least_filters = groups == 1 ? kSingleThreadFilters : kSharedFilters;
    const bool few = threads > 1 && tiles <= kSharedTiles && inputs * outputs >= least_filters;
    const bool shares = tiles > 0 && (few || call.packed == nullptr);
    plan.sharing = shares ? threads : 0;
    plan.threads = shares ? 1 : static_cast<int>(min_of(threads, groups > 0 ? groups : 1));
    if (shares) plan.block_vectors = vectors;
    plan.blocks = shares ? 1 : round_up((tiles + most_tiles - 1) / most_tiles, plan.threads);
    plan.block_tiles = groups > 0 ? (groups + plan.blocks - 1) / plan.blocks * plan.group_tiles : 1;
    plan.store = static_cast<int>(choose_store(call, plan.block_vectors == vectors));
    const Layout at(call, plan.block_tiles, plan.block_vectors, plan.sharing);
    plan.thread_floats = at.floats;
    plan.bytes = (plan.threads * at.floats + round_up(outputs, 16)) * static_cast<int64_t>(sizeof(float));
    return plan;
}

void conv3x3_run(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace) { run(call, nullptr, plan, workspace); }

void conv3x3_run_cell(const Conv3x3Call& call, const Conv3x3Plan& plan, const Conv3x3Cell& cell, float* workspace) {
    run(call, &cell, plan, workspace);
}

bool conv3x3_one_pass(int64_t inputs, int64_t outputs) { return fits_one_pass(inputs, outputs); }

}  // namespace FASTDS_ISA
}  // namespace fastds
