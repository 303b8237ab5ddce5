// SPDX-License-Identifier: Apache-2.0
// The convolution, forward or grad_x, as plain sums of products of bfloat16 on matrix tiles (AMX), and recurrent cells behind it.
// Threads own disjoint blocks of rows; the numbers of an output depend on no blocking.
#include "conv3x3/amx_outputs.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {

#if defined(__AVX512BF16__)
namespace {

struct Blocks {
    int64_t count, rows;                       // at most so many rows each
    int64_t m_row, m_group;                    // floats of M from position to position and from group to group
    int64_t v, m, places, zeros, cell, thread_floats;  // where they begin in the workspace of a thread

    Blocks(const Conv3x3Call& call, const Rows& all, const PixelRows& pixels, bool is_cell, int threads) {
        const int64_t columns = call.sinks.channels(), row_bytes = all.row * pixels.pixel * sizeof(BFloat16);
        const int64_t most = least(kBlockBytes / row_bytes - 2, kBlockPositions / all.row);
        const int64_t groups = parts_of(all.count * all.row, kGroup);
        count = least(round_up(parts_of(all.count, most > 1 ? most : 1), threads), least(groups, all.count));
        rows = parts_of(all.count, count > 0 ? count : 1);
        m_row = is_cell ? round_up(columns, kL) : kPair;
        m_group = kGroup * m_row + 16;
        v = 0;
        m = round_up((round_up(rows * all.row, kGroup) + 2 * all.row + 2) * pixels.pixel / 2, 16);
        places = m + kChunk / kGroup * m_group;
        zeros = places + (round_up(rows * all.row, kGroup) + kGroup) * static_cast<int64_t>(sizeof(LinePlace) / sizeof(float));
        cell = round_up(zeros + widest(call.sources) / 2 + 1, 16);
        thread_floats = round_up(cell + (is_cell ? kTileRows * columns : 0), 16);
    }
};

// One or two vectors of columns of all positions of a block, looked up in `places`.
template <class T, int Columns>
void convolve_lines(const Conv3x3Call& call, const PixelRows& pixels, const Block& block, const LinePlace* places,
                    const float* bias, int64_t vector) {
    const int64_t column = vector * kL, groups = parts_of(block.positions, kGroup), rest = call.sinks.channels() - column;
    const __mmask32 lanes = rest >= kPair ? ~0u : (1u << rest) - 1;
    T* const to = static_cast<T*>(call.sinks.view[0].data) + column;
    const T* const add = call.residual.count > 0 && call.residual.view[0].data != nullptr
                             ? static_cast<const T*>(call.residual.view[0].data) + column
                             : nullptr;
    const V left = load_vec<kL>(bias + column), right = Columns > 1 ? load_vec<kL>(bias + column + kL) : V{};
    const int act = call.act;
    const float slope = call.negative_slope;
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
    const auto take = [=](int64_t group, const float* sums, Range lines) {
        const LinePlace* place = places + group * kGroup;
        for (int64_t line = lines.begin; line < lines.end; line++) {
            __builtin_prefetch(to + place[line + kGroup].offset, 1);
            const int64_t at = place[line].offset;
            const __mmask32 here = place[line].lanes & lanes;
            V a = load_vec<kL>(sums + line * kPair) + left, b = right;
            if (Columns > 1) b += load_vec<kL>(sums + line * kPair + kL);
            if (add != nullptr) {
                a += load_piece(add + at, static_cast<__mmask16>(here));
                if (Columns > 1) b += load_piece(add + at + kL, static_cast<__mmask16>(here >> kL));
            }
            if (act != act_none) {
                a = activate(a, act, slope);
                b = activate(b, act, slope);
            }
            if (Columns > 1)
                store_pair(to + at, a, b, here);
            else
                store_piece(to + at, a, static_cast<__mmask16>(here));
        }
    };
    for (int64_t begin = 0; begin < groups; begin += kChunk / kGroup)
        sum_products<Columns>(block, pixels, packed, block.m, Range{begin, least(begin + kChunk / kGroup, groups)}, take);
}

// The same for any outputs, whose first row is `first`.
template <class T, int Columns>
void convolve_runs(const Conv3x3Call& call, const Rows& rows, const PixelRows& pixels, const Block& block, int64_t first,
                   const float* bias, int64_t vector) {
    const int64_t columns = call.sinks.channels(), groups = parts_of(block.positions, kGroup);
    const Outputs<T> outputs(call, bias, Range{vector, vector + Columns}, columns);
    const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
    for (int64_t begin = 0; begin < groups; begin += kChunk / kGroup) {
        const Range here{begin, least(begin + kChunk / kGroup, groups)};
        sum_products<Columns>(block, pixels, packed, block.m, here, [](int64_t, float*, Range) {});
        const int64_t end = least(here.end * kGroup, block.positions);
        Walk walk(call.geometry, rows, first, begin * kGroup);
        for (int64_t p = begin * kGroup, n; p < end; p += n, walk.advance(n)) {
            n = least(walk.run(), least(kGroup - p % kGroup, end - p));
            if (!walk.has_output()) continue;
            float* sums = block.m + (p / kGroup - begin) * block.m_group + p % kGroup * block.m_row;
            outputs.add_residual(walk.pixel(), n, sums, block.m_row, columns);
            outputs.store(walk.pixel(), n, sums, block.m_row);
        }
    }
}

// Hands the pre-activations of 16 outputs of a row at once to the cell.
template <class T>
void finish_cell(const Conv3x3Call& call, const Conv3x3Cell& cell, const Tile& pixel, int64_t count, const float* bias,
                 float* sums, int64_t m_row, float* buffer) {
    const int64_t columns = call.sinks.channels(), gates = columns / cell.channels;
    for (int64_t vector = 0; vector * kL < columns; vector += 2) {
        const Outputs<T> outputs(call, bias, Range{vector, least(vector + 2, parts_of(columns, kL))}, columns);
        outputs.add_residual(pixel, count, sums + vector * kL, m_row, columns);
        outputs.store(pixel, count, sums + vector * kL, m_row);
    }
    for (int64_t i = 0; i < count; i++, sums += m_row) {
        for (int64_t c = 0; c < columns; c += kL) store_vec<kL>(sums + c, load_vec<kL>(sums + c) + load_vec<kL>(bias + c));
        for (int64_t gate = 0; gate < gates; gate++)
            __builtin_memcpy(buffer + (gate * kTileRows + i) * cell.channels, sums + gate * cell.channels,
                             cell.channels * sizeof(float));
    }
    const int64_t step = cell.dense ? count : 1;
    for (int64_t i = 0; i < count; i += step)
        cell.row(cell.context, pixel.b, pixel.y, pixel.x + i, step * cell.channels, buffer + i * cell.channels,
                 kTileRows * cell.channels);
}

// All columns of all positions of a block, and the cell behind them.
template <class T>
void convolve_cell(const Conv3x3Call& call, const Conv3x3Cell& cell, const Rows& rows, const PixelRows& pixels,
                   const Block& block, int64_t first, const float* bias, float* buffer) {
    const int64_t columns = call.sinks.channels(), vectors = parts_of(columns, kL), groups = parts_of(block.positions, kGroup);
    for (int64_t begin = 0; begin < groups; begin += kChunk / kGroup) {
        const Range here{begin, least(begin + kChunk / kGroup, groups)};
        const auto nothing = [](int64_t, float*, Range) {};
        for (int64_t vector = 0; vector < vectors; vector += 2) {
            const BFloat16* packed = reinterpret_cast<const BFloat16*>(call.packed) + 2 * pixels.packed_pairs(vector);
            if (vector + 1 < vectors)
                sum_products<2>(block, pixels, packed, block.m + vector * kL, here, nothing);
            else
                sum_products<1>(block, pixels, packed, block.m + vector * kL, here, nothing);
        }
        const int64_t end = least(here.end * kGroup, block.positions);
        Walk walk(call.geometry, rows, first, begin * kGroup);
        for (int64_t p = begin * kGroup, n; p < end; p += n, walk.advance(n)) {
            const int64_t in_group = p % kGroup;
            n = least(least(kTileRows, walk.run()), least(kGroup - in_group, end - p));
            if (walk.has_output())
                finish_cell<T>(call, cell, walk.pixel(), n, bias,
                        block.m + (p / kGroup - begin) * block.m_group + in_group * block.m_row, block.m_row, buffer);
        }
    }
}

struct Job {
    const Conv3x3Call& call;
    const Conv3x3Cell* cell;
    PixelRows pixels;
    Rows rows;
    Blocks blocks;

    Job(const Conv3x3Call& c, const Conv3x3Cell* cell_, bool is_cell, int threads)
        : call(c), cell(cell_), pixels(c.sources.channels()), rows(c.geometry, pixels),
          blocks(c, rows, pixels, is_cell, threads) {}
};

template <class T>
void run_block(const Job& job, int64_t index, const float* bias, float* scratch) {
    const Conv3x3Call& call = job.call;
    const Range rows = part_of(job.rows.count, job.blocks.count, index);
    const int64_t row = job.rows.row * job.pixels.pixel, columns = call.sinks.channels(), vectors = parts_of(columns, kL);
    BFloat16* v = reinterpret_cast<BFloat16*>(scratch + job.blocks.v);
    const BFloat16* zeros = reinterpret_cast<const BFloat16*>(scratch + job.blocks.zeros);
    const auto copy = call.sources.view[0].sign != nullptr ? copy_row<true> : copy_row<false>;
    for (int64_t r = rows.begin; r < least(rows.end + 2, job.rows.count); r++) {
        const Place at = row_at(call.geometry, job.rows, r);
        copy(call, at.b, at.y - call.geometry.pad_h, at.x - call.geometry.pad_w, job.rows.row, zeros, v + (r - rows.begin) * row,
             job.pixels.pixel);
    }
    const int64_t positions = (rows.end - rows.begin) * job.rows.row;
    const Block block{v, row, positions, scratch + job.blocks.m, job.blocks.m_row, job.blocks.m_group};
    if (job.cell != nullptr)
        return convolve_cell<T>(call, *job.cell, job.rows, job.pixels, block, rows.begin, bias, scratch + job.blocks.cell);
    if (!has_lines(call)) {
        for (int64_t vector = 0; vector < vectors; vector += 2)
            vector + 1 < vectors ? convolve_runs<T, 2>(call, job.rows, job.pixels, block, rows.begin, bias, vector)
                                 : convolve_runs<T, 1>(call, job.rows, job.pixels, block, rows.begin, bias, vector);
        return;
    }
    LinePlace* places = reinterpret_cast<LinePlace*>(scratch + job.blocks.places);
    find_places(call, job.rows, block, rows.begin, places);
    for (int64_t vector = 0; vector < vectors; vector += 2)
        vector + 1 < vectors ? convolve_lines<T, 2>(call, job.pixels, block, places, bias, vector)
                             : convolve_lines<T, 1>(call, job.pixels, block, places, bias, vector);
}

// Zeros for what sums read beyond the channels of a pixel, and for pixels outside; copies do not touch them.
void clear(const Job& job, float* scratch) {
    const int64_t channels = job.call.sources.channels(), pixel = job.pixels.pixel, end = job.pixels.depth / job.pixels.window;
    BFloat16* v = reinterpret_cast<BFloat16*>(scratch + job.blocks.v);
    for (int64_t at = 0; channels < end && at + end <= 2 * job.blocks.m; at += pixel)
        __builtin_memset(v + at + channels, 0, (end - channels) * sizeof(BFloat16));
    __builtin_memset(scratch + job.blocks.zeros, 0, (job.blocks.cell - job.blocks.zeros) * sizeof(float));
}

}  // namespace

Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call& call, bool cell, int threads) {
    const Job job(call, nullptr, cell, threads);
    Conv3x3Plan plan{};
    plan.threads = threads;
    plan.thread_floats = job.blocks.thread_floats;
    plan.bytes = (threads * job.blocks.thread_floats + round_up(call.sinks.channels(), kL)) * static_cast<int64_t>(sizeof(float));
    return plan;
}

void conv3x3_amx_run(const Conv3x3Call& call, const Conv3x3Cell* cell, const Conv3x3Plan& plan, float* workspace) {
    const Job job(call, cell, cell != nullptr, plan.threads);
    const float* bias = bias_of_columns(call, workspace + plan.threads * plan.thread_floats);
    const int64_t blocks = job.blocks.count;
    const auto run = call.sinks.dtype == bf16 ? run_block<BFloat16> : run_block<float>;
    parallel_for(least(plan.threads, blocks), plan.threads, [&](int64_t begin, int64_t end) {
        const TileUse use(true, job.pixels.in_step);
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = workspace + thread * plan.thread_floats;
            clear(job, scratch);
            const Range own = part_of(blocks, least(plan.threads, blocks), thread);
            for (int64_t block = own.begin; block < own.end; block++) run(job, block, bias, scratch);
        }
    });
}
#else  // refused by the binding
Conv3x3Plan conv3x3_amx_plan(const Conv3x3Call&, bool, int) { return {}; }
void conv3x3_amx_run(const Conv3x3Call&, const Conv3x3Cell*, const Conv3x3Plan&, float*) {}
#endif

}  // namespace FASTDS_ISA
}  // namespace fastds
