// SPDX-License-Identifier: Apache-2.0
// Convolution with AMX tiles (forward or grad_x), which sums products of bfloat16 directly, and recurrent cells on top of it.
// Each thread computes disjoint blocks of rows. The value of an output does not depend on the partition into blocks.
#include "conv3x3/amx.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {

#if defined(__AVX512BF16__)
namespace {

constexpr int64_t kBlockBytes = 512 << 10;  // bytes of V in a block; V shares the L2 cache with filters and sums
constexpr int64_t kBlockPositions = 4096;   // maximum number of positions in a block

// Returns the approximate number of positions in a block. The factor accounts for the two more rows that each block copies.
inline int64_t most_positions(const PixelRows& pixels) {
    const int64_t bytes = pixels.pixel * static_cast<int64_t>(sizeof(BFloat16));
    return min_of(kBlockBytes / bytes * kBlockRows / (kBlockRows + 2), kBlockPositions);
}

// A call and its partition into blocks.
struct AmxCall {
    const Conv3x3Call& call;
    const Conv3x3Cell* cell;
    PixelRows pixels;
    Rows rows;
    int64_t columns, vectors;
    int64_t blocks, m_row, m_group;                          // floats of M between positions, and between groups
    int64_t m, places, tiles, zeros, buffer, thread_floats;  // offsets in the workspace of a thread; V is at offset 0

    AmxCall(const Conv3x3Call& c, const Conv3x3Cell* cell_, bool has_cell, int threads)
        : call(c), cell(cell_), pixels(c.sources.channels()), rows(c.geometry, most_positions(pixels)),
          columns(c.sinks.channels()), vectors(count_parts(columns, kL)) {
        const int64_t most = most_positions(pixels) / rows.row;
        blocks = round_up(count_parts(rows.count, most > 1 ? most : 1), threads);
        blocks = min_of(blocks, min_of(count_parts(rows.count * rows.row, kGroup), rows.count));
        const int64_t positions = round_up(count_parts(rows.count, blocks > 0 ? blocks : 1) * rows.row, kGroup);
        m_row = has_cell ? vectors * kL : kPair;
        m_group = kGroup * m_row + 16;
        m = round_up((positions + kTileRows + 2 * rows.row + 2) * pixels.pixel / 2, 16);
        places = m + kChunk / kGroup * m_group;
        tiles = places + (positions + kGroup) * static_cast<int64_t>(sizeof(OutputPosition) / sizeof(float));
        zeros = tiles + positions / kTileRows;
        buffer = round_up(zeros + get_max_channels(call.sources) / 2 + 1, 16);
        thread_floats = round_up(buffer + (has_cell ? kTileRows * columns : 0), 16);
    }
    const BFloat16* packed(int64_t vector) const {
        return reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
    }
};

// Calls take(part) for parts of at most `most` groups.
template <class Take>
void for_parts(Range groups, int64_t most, const Take& take) {
    for (int64_t begin = groups.begin; begin < groups.end; begin += most) take(Range{begin, min_of(begin + most, groups.end)});
}

// Calls take(pixel, n, sums) for each sequence of n adjacent outputs (at most kTileRows) of a chunk of groups.
template <class Take>
void for_sums(const AmxCall& amx_call, const Block& block, Range groups, const Take& take) {
    const Range tiles{2 * groups.begin, min_of(2 * groups.end, block.tiles.count)};
    for_runs(amx_call.call.geometry, amx_call.rows, block.tiles, tiles, [&](int64_t tile, int64_t i, const Tile& pixel, int64_t n) {
        const int64_t line = tile % 2 * kTileRows + i;
        take(pixel, n, block.m + (tile / 2 - groups.begin) * block.m_group + line * block.m_row);
    });
}

// Computes one or two vectors of columns for some groups of a block. All outputs are in one view, and each row of sums is
// stored as one row of outputs.
template <class T, int Columns>
void convolve_single_view(const AmxCall& amx_call, const Block& block, Range all, const OutputPosition* places,
                          const float* bias, int64_t vector) {
    const Conv3x3Call& call = amx_call.call;
    const int64_t column = vector * kL, rest = amx_call.columns - column;
    const __mmask32 lanes = rest >= kPair ? ~0u : (1u << rest) - 1;
    T* const to = static_cast<T*>(call.sinks.view[0].data) + column;
    const void* const residual = call.residual.count > 0 ? call.residual.view[0].data : nullptr;
    const T* const add = residual == nullptr ? nullptr : static_cast<const T*>(residual) + column;
    const V left = load_vec<kL>(bias + column), right = Columns > 1 ? load_vec<kL>(bias + column + kL) : V{};
    const int act = call.act;
    const float slope = call.negative_slope;
    const auto take = [=](int64_t group, const float* sums, Range lines) {
        const OutputPosition* place = places + group * kGroup;
        for (int64_t line = lines.begin; line < lines.end; line++) {
            prefetch_output_row<Columns>(to + place[line + kGroup].offset);
            const int64_t at = place[line].offset;
            const __mmask32 here = place[line].lanes & lanes;
            const V a = load_vec<kL>(sums + line * kPair) + left;
            const V b = Columns > 1 ? load_vec<kL>(sums + line * kPair + kL) + right : V{};
            store_output_row<Columns>(a, b, add == nullptr ? nullptr : add + at, act, slope, to + at, here);
        }
    };
    for_parts(all, kChunk / kGroup, [&](Range groups) {
        sum_products<Columns>(block, amx_call.pixels, amx_call.packed(vector), block.m, groups, take);
    });
}

// Like convolve_single_view, for outputs in several views.
template <class T, int Columns>
void convolve_views(const AmxCall& amx_call, const Block& block, Range all, const float* bias, int64_t vector) {
    const OutputEpilogue<T> outputs(amx_call.call, bias, Range{vector, vector + Columns}, amx_call.columns);
    for_parts(all, kChunk / kGroup, [&](Range groups) {
        sum_products<Columns>(block, amx_call.pixels, amx_call.packed(vector), block.m, groups, [](int64_t, float*, Range) {});
        for_sums(amx_call, block, groups, [&](const Tile& pixel, int64_t n, float* sums) {
            outputs.add_residual(pixel, n, sums, block.m_row);
            outputs.store(pixel, n, sums, block.m_row);
        });
    });
}

// Passes the pre-activations of up to 16 adjacent outputs of a row to the cell. The outputs have one view, and the residual, if
// any, has one too.
template <class T>
void finish_cell(const AmxCall& amx_call, const Tile& pixel, int64_t count, const float* bias, float* sums, float* buffer) {
    const Conv3x3Cell& cell = *amx_call.cell;
    const auto row_of = [&](const Conv3x3View& view) {
        return view.data == nullptr ? nullptr : static_cast<T*>(view.data) + view.offset(pixel.b, pixel.y, pixel.x);
    };
    const Conv3x3View &sink = amx_call.call.sinks.view[0], &residual = amx_call.call.residual.view[0];
    T* const to = row_of(sink);
    const T* const add = amx_call.call.residual.count > 0 ? row_of(residual) : nullptr;
    for (int64_t i = 0; i < count; i++, sums += amx_call.m_row) {
        for (int64_t c = 0; c < amx_call.columns; c += kL) {
            const int lanes = static_cast<int>(min_of(kL, amx_call.columns - c));
            V y = load_vec<kL>(sums + c);
            if (add != nullptr) y += load_lanes(add + i * residual.w + c, lanes);
            y += load_vec<kL>(bias + c);
            if (to != nullptr) store_lanes(to + i * sink.w + c, y, lanes);
            store_vec<kL>(sums + c, y);
        }
        for (int64_t gate = 0; gate < amx_call.columns / cell.channels; gate++)
            __builtin_memcpy(buffer + (gate * kTileRows + i) * cell.channels, sums + gate * cell.channels,
                             cell.channels * sizeof(float));
    }
    const int64_t step = cell.dense ? count : 1;
    for (int64_t i = 0; i < count; i += step)
        cell.row(cell.context, pixel.b, pixel.y, pixel.x + i, step * cell.channels, buffer + i * cell.channels,
                 kTileRows * cell.channels);
}

// Computes all columns of all positions of a block and runs the cell.
template <class T>
void convolve_cell(const AmxCall& amx_call, const Block& block, const float* bias, float* buffer) {
    const auto nothing = [](int64_t, float*, Range) {};
    for_parts(Range{0, block.groups()}, kChunk / kGroup, [&](Range groups) {
        for (int64_t vector = 0; vector < amx_call.vectors; vector += 2) {
            float* m = block.m + vector * kL;
            vector + 1 < amx_call.vectors ? sum_products<2>(block, amx_call.pixels, amx_call.packed(vector), m, groups, nothing)
                                     : sum_products<1>(block, amx_call.pixels, amx_call.packed(vector), m, groups, nothing);
        }
        for_sums(amx_call, block, groups, [&](const Tile& pixel, int64_t n, float* sums) {
            finish_cell<T>(amx_call, pixel, n, bias, sums, buffer);
        });
    });
}

template <class T>
void run_block(const AmxCall& amx_call, Range rows, const float* bias, float* scratch) {
    const Conv3x3Call& call = amx_call.call;
    const Conv3x3Geometry& g = call.geometry;
    BFloat16* v = reinterpret_cast<BFloat16*>(scratch);
    const BFloat16* zeros = reinterpret_cast<const BFloat16*>(scratch + amx_call.zeros);
    const Block block{v, amx_call.rows.row * amx_call.pixels.pixel, scratch + amx_call.m, amx_call.m_row, amx_call.m_group,
                      find_runs(g, amx_call.rows, rows, kTileRows, reinterpret_cast<int32_t*>(scratch + amx_call.tiles))};
    const auto copy = call.sources.view[0].sign != nullptr ? copy_row<true> : copy_row<false>;
    RowPosition at = get_row(g, amx_call.rows, rows.begin);
    for (int64_t r = rows.begin; r < min_of(rows.end + 2, amx_call.rows.count); r++, v += block.row, advance_row(g, amx_call.rows, at)) {
        copy(g, call.sources, call.negative_slope, at.b, at.y - g.pad_h, at.x - g.pad_w, amx_call.rows.row, zeros, v,
             amx_call.pixels.pixel);
    }
    if (amx_call.cell != nullptr) return convolve_cell<T>(amx_call, block, bias, scratch + amx_call.buffer);
    OutputPosition* places = reinterpret_cast<OutputPosition*>(scratch + amx_call.places);
    const bool lines = has_single_view(call);
    if (lines) find_output_positions(call, amx_call.rows, block, places);
    const int64_t groups = block.groups(), filters = 4 * amx_call.pixels.packed_pairs(amx_call.vectors);
    // Few groups at a time keep the cache lines of the outputs in the cache until they are full. If the filters are large, all
    // groups are computed at once instead, so that the filters are read less often.
    for_parts(Range{0, groups}, filters <= kBlockBytes ? kChunk / kGroup : groups, [&](Range part) {
        for (int64_t vector = 0; vector < amx_call.vectors; vector += 2) {
            const bool pair = vector + 1 < amx_call.vectors;
            if (lines)
                pair ? convolve_single_view<T, 2>(amx_call, block, part, places, bias, vector)
                     : convolve_single_view<T, 1>(amx_call, block, part, places, bias, vector);
            else
                pair ? convolve_views<T, 2>(amx_call, block, part, bias, vector)
                     : convolve_views<T, 1>(amx_call, block, part, bias, vector);
        }
    });
}

// Clears the padding after the channels of each pixel of V, which the products read, and the row of zeros that replaces pixels
// outside the image. Later copies into V do not overwrite the padding.
void clear(const AmxCall& amx_call, float* scratch) {
    const int64_t channels = amx_call.call.sources.channels(), end = amx_call.pixels.depth / amx_call.pixels.window;
    BFloat16* v = reinterpret_cast<BFloat16*>(scratch);
    for (int64_t at = 0; channels < end && at + end <= 2 * amx_call.m; at += amx_call.pixels.pixel)
        __builtin_memset(v + at + channels, 0, (end - channels) * sizeof(BFloat16));
    __builtin_memset(scratch + amx_call.zeros, 0, (amx_call.buffer - amx_call.zeros) * sizeof(float));
}

}  // namespace

Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call& call, bool cell, int threads) {
    Conv3x3Plan plan{};
    plan.threads = threads;
    plan.thread_floats = AmxCall(call, nullptr, cell, threads).thread_floats;
    plan.bytes = (threads * plan.thread_floats + round_up(call.sinks.channels(), kL)) * static_cast<int64_t>(sizeof(float));
    return plan;
}

void conv3x3_amx_run(const Conv3x3Call& call, const Conv3x3Cell* cell, const Conv3x3Plan& plan, float* workspace) {
    const AmxCall amx_call(call, cell, cell != nullptr, plan.threads);
    const float* bias = copy_bias(call, workspace + plan.threads * plan.thread_floats);
    const auto run = call.sinks.dtype == bf16 ? run_block<BFloat16> : run_block<float>;
    const int64_t threads = min_of(plan.threads, amx_call.blocks);
    parallel_for(threads, plan.threads, [&](int64_t begin, int64_t end) {
        const TileScope use(true, amx_call.pixels.in_step);
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = workspace + thread * plan.thread_floats;
            clear(amx_call, scratch);
            const Range assigned = get_part(amx_call.blocks, threads, thread);
            for (int64_t i = assigned.begin; i < assigned.end; i++)
                run(amx_call, get_part(amx_call.rows.count, amx_call.blocks, i), bias, scratch);
        }
    });
}
#else  // never called: the binding rejects calls with amx
Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call&, bool, int) { return {}; }
void conv3x3_amx_run(const Conv3x3Call&, const Conv3x3Cell*, const Conv3x3Plan&, float*) {}
#endif

}  // namespace FASTDS_ISA
}  // namespace fastds
