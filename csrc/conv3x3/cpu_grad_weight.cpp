// SPDX-License-Identifier: Apache-2.0
// Gradient of the filters in the Winograd domain, grad_weight = G^T [ sum over tiles of V^T (A grad A^T) ] G, and of the bias.
//
// There are three ways to divide the work (Layout::partition):
//   by_accumulators: few channels. Ranges of tiles have private accumulators, which are added at the end. A thread
//     transforms and multiplies the tiles of an accumulator block by block.
//   by_stretches: many channels, whose sums are too large for private accumulators. All threads together transform a stretch of
//     tiles that fits into the shared cache. Then each thread multiplies its share of the 36 points. With many columns and few
//     inputs, each thread instead multiplies its own columns and transforms their gradients into its own panel, which avoids
//     traffic between cores without a common cache.
//   by_blocks: few tiles. Each thread computes complete filters for its blocks of inputs and columns, from sums that stay in
//     its cache.
//
// Sums restart from zero after at most kSumTiles tiles and are added in order, and the accumulators depend only on the shape.
// Neither the precision nor the order of a sum depends on the number of threads.
#include "conv3x3/grad_weight.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kSumTiles = 64;
constexpr int64_t kTwoAccumulatorTiles = 16;  // with fewer tiles, a second accumulator does not reduce the time
constexpr int64_t kManyColumns = 4;           // minimum ratio of columns to inputs for panels; all threads read all inputs
// Maximum number of tiles for by_blocks. With more tiles, reading all tiles again for each block takes longer than writing and
// reading the sums.
constexpr int64_t kBlockTiles = 96;
constexpr int64_t kBlockInputs = 48;    // inputs of a block of sums (442 KB); a multiple of kL and of each tile_rows

struct Layout {
    enum { by_accumulators, by_stretches, by_blocks } partition;
    SumsLayout sums;                                   // by_blocks: sums of one thread's block
    int64_t tiles;                                     // maximum number of tiles transformed at once
    ColumnBlocks cut;                                  // partition of all columns
    int64_t v_row, v_plane, d_row, d_plane;            // strides in floats
    int64_t panels, d_panel;                           // D[panel][point][tile][column]; the sums of each tile are one more point
    int64_t bias;                                      // position of bias[accumulator][column]
    int64_t scratch, thread_floats, d, zeros, floats;  // d and zeros are relative to the start of a thread's scratch

    explicit Layout(const Conv3x3GradWeight& call) {
        constexpr int64_t item = sizeof(float);
        const int64_t all = call.geometry.tiles();
        v_row = source_columns(call.sources);
        const int64_t columns = source_columns(call.gradients);
        cut = column_blocks<float>(call.gradients.channels());
        sums = SumsLayout(1, call.sources.channels(), columns);
        partition = sums.accumulator * item > kAccumulatorBytes ? by_stretches : by_accumulators;
        tiles = kSumTiles;
        if (partition == by_accumulators)
            sums.accumulators = count_accumulators(all, sums.accumulator * item, kTwoAccumulatorTiles);
        else
            tiles = count_parts(all, count_parts(kPoints * all * (v_row + columns) * item,
                                                 get_stretch_bytes(sums.accumulator * item)));
        if (partition == by_stretches && tiles == all && all <= kBlockTiles) {
            partition = by_blocks;
            sums = SumsLayout(1, kBlockInputs, kTileVectors * kL);
        }
        // With several views the last vectors of neighbouring views overlap (see transform_tile), so that panels need a single
        // view.
        const bool has_panels = partition == by_stretches && call.gradients.count == 1 && columns >= kManyColumns * v_row;
        panels = has_panels ? min_of(call.threads, cut.blocks) : 1;
        d_row = columns;
        if (panels > 1) d_row = count_parts(cut.blocks, panels) * kTileVectors * kL;
        // Rows whose distance is a multiple of 512 floats would share few sets of the L1 cache and evict each other, although
        // each row is read several times.
        if (partition == by_stretches && d_row % 512 == 0) d_row += 16;
        // Planes at a distance of a power of two would share few sets of the cache. d_plane is an odd number of cache lines;
        // v_plane has one cache line more than its rows need.
        v_plane = tiles * v_row + 16;
        d_plane = (count_parts(tiles * d_row, 16) | 1) * 16;
        d_panel = (kPoints + 1) * d_plane;
        const int64_t input_width = get_max_channels(call.sources), gradient_width = get_max_channels(call.gradients);
        bias = (partition == by_blocks ? call.threads : sums.accumulators) * sums.accumulator;
        scratch = round_up(bias + sums.accumulators * columns, 16);
        d = kPoints * v_plane;
        zeros = d + panels * d_panel;
        thread_floats = round_up(zeros + (input_width > gradient_width ? input_width : gradient_width) + kL, 16);
        floats = scratch + (partition == by_accumulators ? call.threads : 1) * thread_floats;
    }

    // Returns the first vector of the columns of a panel. Panels consist of whole blocks of columns.
    int64_t panel_begin(int64_t panel) const { return cut.get_vectors(get_part(cut.blocks, panels, panel).begin).begin; }
    // Returns the position in D at which a block of columns starts.
    int64_t columns(int64_t block) const {
        if (panels == 1) return d + cut.get_vectors(block).begin * kL;
        const int64_t panel = ((block + 1) * panels - 1) / cut.blocks;
        return d + panel * d_panel + (cut.get_vectors(block).begin - panel_begin(panel)) * kL;
    }
};

// Transforms the inputs of the tiles first + tiles.begin ... first + tiles.end - 1 into V, the matrix of transformed inputs.
void transform_inputs(const Conv3x3GradWeight& call, const Layout& at, int64_t first, Range tiles, float* scratch) {
    const auto transform = [&](auto zero) {
        using T = decltype(zero);
        Tile tile = get_tile(call.geometry, first + tiles.begin);
        for (int64_t i = tiles.begin; i < tiles.end; i++, advance_tile(call.geometry, tile))
            transform_tile<T, false>(call.geometry, call.sources, tile, 0.f, reinterpret_cast<const T*>(scratch + at.zeros),
                                     scratch + i * at.v_row, at.v_plane);
    };
    switch (call.sources.dtype) {
        case f32: return transform(float{});
        case f16: return transform(Half{});
        case bf16: return transform(BFloat16{});
        case f64: break;
    }
}

// Zeros the inputs that add_products reads beyond those of the last tile (see clear_excess_tiles in winograd.h).
inline void clear_excess_inputs(const Layout& at, int64_t tiles, float* scratch) {
    for (int p = 0; p < kPoints; p++) store_vec<4>(scratch + p * at.v_plane + tiles * at.v_row, Vec<float, 4>{});
}

// Transforms the gradients of the tiles first + tiles.begin ... first + tiles.end - 1 into one panel of D, the matrix of
// transformed gradients.
void transform_gradients(const Conv3x3GradWeight& call, const Layout& at, int64_t first, int64_t panel, Range tiles,
                         float* scratch) {
    const auto transform = [&](auto zero) {
        using T = decltype(zero);
        const T* zeros = reinterpret_cast<const T*>(scratch + at.zeros);
        const Conv3x3View* views = call.gradients.view;
        Conv3x3View panel_view;
        if (at.panels > 1) {
            panel_view = select_channels<T>(*views, {at.panel_begin(panel), at.panel_begin(panel + 1)});
            views = &panel_view;
        }
        const int n = call.gradients.count;
        const bool has_sign = views->sign != nullptr;
        Tile tile = get_tile(call.geometry, first + tiles.begin);
        for (int64_t i = tiles.begin; i < tiles.end; i++, advance_tile(call.geometry, tile)) {
            float* out = scratch + at.d + panel * at.d_panel + i * at.d_row;
            if (has_sign)
                transform_gradient_tile<T, true>(call.geometry, views, n, tile, call.negative_slope, zeros, out, at.d_plane);
            else
                transform_gradient_tile<T, false>(call.geometry, views, n, tile, 0.f, zeros, out, at.d_plane);
        }
    };
    switch (call.gradients.dtype) {
        case f32: return transform(float{});
        case f16: return transform(Half{});
        case bf16: return transform(BFloat16{});
        case f64: break;
    }
}

constexpr int64_t kFarBytes = 4 << 20;  // size of sums that leave the L2 cache before they are added to again
// State of the sums. fresh: not yet written. streamed: not yet written, and stored past the caches because they are not needed
// soon. near: in the cache. far: not in the cache, prefetched during the products.
enum class Sums { fresh, streamed, near, far };

// Computes sums[c, j] (+)= sum over tiles t of V[t, c] * D[t, j], for MR inputs c and NV vectors of columns j.
template <int MR, int NV>
inline void add_rows(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t tiles, float* sums, int64_t row,
                     Sums state) {
    V acc[MR][NV];
    clear<float>(acc);
    if (state == Sums::far) {
        const float* at = sums;
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++, at = next_row(at, row))
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) __builtin_prefetch(at + j * kL, 1);
    }
    multiply<FmaStep<float>, MR, NV>(acc, v, 1, v_row, d, d_row, tiles);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++, sums = next_row(sums, row))
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            float* at = sums + j * kL;
            if (state == Sums::streamed)
                stream_vec(at, acc[i][j]);
            else
                store_vec<kL>(at, state == Sums::fresh ? acc[i][j] : acc[i][j] + load_vec<kL>(at));
        }
}

// Adds the last inputs, fewer than MR, in one product, which may include up to three excess inputs.
template <int MR, int NV>
inline void add_rest(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles, float* sums,
                     int64_t row, Sums state) {
    constexpr int kFewer = (MR - 1) / 4 * 4;
    if constexpr (kFewer > 0)
        if (inputs <= kFewer) return add_rest<kFewer, NV>(v, v_row, d, d_row, inputs, tiles, sums, row, state);
    if (inputs > 0) add_rows<MR, NV>(v, v_row, d, d_row, tiles, sums, row, state);
}

template <int NV>
inline void add_products(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles,
                         float* sums, int64_t row, Sums state) {
    constexpr int MR = NV == 1 && FASTDS_MANY_REGISTERS ? 16 : tile_rows(NV);
    int64_t c = 0;
    for (; c + MR <= inputs; c += MR) add_rows<MR, NV>(v + c, v_row, d, d_row, tiles, sums + c * row, row, state);
    add_rest<MR, NV>(v + c, v_row, d, d_row, inputs - c, tiles, sums + c * row, row, state);
}

// Adds the products of point `p` over `tiles` tiles in scratch, for a range of inputs and one block of columns. `before` is the
// state of the sums.
void add_columns(const Layout& at, int64_t p, Range inputs, int64_t block, int64_t tiles, const float* scratch, float* sums,
                 Sums before) {
    const int64_t parts = count_parts(tiles, kSumTiles), count_inputs = inputs.end - inputs.begin, row = at.sums.row;
    const Range vectors = at.cut.get_vectors(block);
    const float* planes = scratch + at.columns(block) + p * at.d_plane;
    for (int64_t i = 0; i < parts; i++) {
        const Range part = get_part(tiles, parts, i);
        const float* v = scratch + p * at.v_plane + part.begin * at.v_row + inputs.begin;
        const float* d = planes + part.begin * at.d_row;
        const int64_t count = part.end - part.begin;
        const Sums state = i > 0 ? Sums::near : before;
        switch (vectors.end - vectors.begin) {
            case 1: add_products<1>(v, at.v_row, d, at.d_row, count_inputs, count, sums, row, state); break;
            case 2: add_products<2>(v, at.v_row, d, at.d_row, count_inputs, count, sums, row, state); break;
#if FASTDS_MANY_REGISTERS
            case 3: add_products<3>(v, at.v_row, d, at.d_row, count_inputs, count, sums, row, state); break;
            case 4: add_products<4>(v, at.v_row, d, at.d_row, count_inputs, count, sums, row, state); break;
#endif
        }
    }
}

// Adds the bias gradients of one vector of columns from the sums of its tiles.
void add_bias(const Layout& at, const float* compute_tile_sums, int64_t tiles, bool add, float* bias) {
    V total = add ? load_vec<kL>(bias) : V{};
    const int64_t parts = count_parts(tiles, kSumTiles);
    for (int64_t i = 0; i < parts; i++) {
        const Range part = get_part(tiles, parts, i);
        V sum = {};
        for (int64_t t = part.begin; t < part.end; t++) sum += load_vec<kL>(compute_tile_sums + t * at.d_row);
        total += sum;
    }
    store_vec<kL>(bias, total);
}

// Adds the bias gradients of a range of blocks of columns.
void add_bias(const Layout& at, Range blocks, int64_t tiles, bool add, const float* scratch, float* bias) {
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
        const float* compute_tile_sums = scratch + at.columns(block) + kPoints * at.d_plane;
        const Range vectors = at.cut.get_vectors(block);
        for (int64_t vector = vectors.begin; vector < vectors.end; vector++, compute_tile_sums += kL)
            add_bias(at, compute_tile_sums, tiles, add, bias + vector * kL);
    }
}

inline void clear_zeros(const Layout& at, float* scratch) {
    __builtin_memset(scratch + at.zeros, 0, (at.thread_floats - at.zeros) * sizeof(float));
}

// Transforms a stretch of tiles into V and D with the given number of threads.
void transform_stretch(const Conv3x3GradWeight& call, const Layout& at, Range stretch, int threads, float* scratch) {
    const int64_t count = stretch.end - stretch.begin;
    parallel_for(threads, threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            transform_inputs(call, at, stretch.begin, get_part(count, threads, thread), scratch);
            const auto first = [&](int64_t panel) { return at.panel_begin(panel); };
            for_rectangles(get_cells(at.panels, first, count, threads, thread), count, [&](Range panels, Range tiles) {
                for (int64_t panel = panels.begin; panel < panels.end; panel++)
                    transform_gradients(call, at, stretch.begin, panel, tiles, scratch);
            });
        }
    });
    clear_excess_inputs(at, count, scratch);
}

void run_accumulator(const Conv3x3GradWeight& call, const Layout& at, int64_t accumulator, float* work, float* scratch) {
    const Range all = get_part(call.geometry.tiles(), at.sums.accumulators, accumulator);
    const int64_t stretches = count_parts(all.end - all.begin, at.tiles);
    for (int64_t i = 0; i < stretches; i++) {
        const Range stretch = get_part(all.end - all.begin, stretches, i);
        const int64_t count = stretch.end - stretch.begin;
        transform_stretch(call, at, {all.begin + stretch.begin, all.begin + stretch.end}, 1, scratch);
        add_bias(at, {0, at.cut.blocks}, count, i > 0, scratch, work + at.bias + accumulator * at.sums.row);
        for (int64_t p = 0; p < kPoints; p++)
            for (int64_t block = 0; block < at.cut.blocks; block++) {
                float* sums = work + accumulator * at.sums.accumulator + p * at.sums.plane + at.cut.get_vectors(block).begin * kL;
                add_columns(at, p, {0, call.sources.channels()}, block, count, scratch, sums, i > 0 ? Sums::near : Sums::fresh);
            }
    }
}

void run_accumulators(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = work + at.scratch + thread * at.thread_floats;
            clear_zeros(at, scratch);
            const Range accumulators = get_part(at.sums.accumulators, call.threads, thread);
            for (int64_t accumulator = accumulators.begin; accumulator < accumulators.end; accumulator++)
                run_accumulator(call, at, accumulator, work, scratch);
        }
    });
}

// Adds one thread's share of the products of a stretch. With several panels the products are divided by columns, otherwise by
// points.
void add_stretch(const Conv3x3GradWeight& call, const Layout& at, int64_t thread, int64_t tiles, const float* scratch,
                 float* sums, Sums before) {
    const auto add = [&](int64_t p, int64_t block) {
        add_columns(at, p, {0, call.sources.channels()}, block, tiles, scratch,
                    sums + p * at.sums.plane + at.cut.get_vectors(block).begin * kL, before);
    };
    if (at.panels > 1) {
        const auto first = [&](int64_t block) { return at.cut.get_vectors(block).begin; };
        const Range cells = get_cells(at.cut.blocks, first, kPoints, call.threads, thread);
        for_rectangles(cells, kPoints, [&](Range blocks, Range points) {
            for (int64_t p = points.begin; p < points.end; p++)
                for (int64_t block = blocks.begin; block < blocks.end; block++) add(p, block);
        });
    } else {
        const Range tasks = get_part(kPoints * at.cut.blocks, call.threads, thread);
        for (int64_t task = tasks.begin; task < tasks.end; task++) add(task / at.cut.blocks, task % at.cut.blocks);
    }
}

void run_stretches(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    const int64_t all = call.geometry.tiles(), stretches = count_parts(all, at.tiles);
    const bool is_far = at.sums.accumulator * static_cast<int64_t>(sizeof(float)) > kFarBytes;
    float* scratch = work + at.scratch;
    clear_zeros(at, scratch);
    for (int64_t i = 0; i < stretches; i++) {
        const Range stretch = get_part(all, stretches, i);
        const int64_t count = stretch.end - stretch.begin;
        transform_stretch(call, at, stretch, call.threads, scratch);
        const bool streams = is_far && count <= kSumTiles && stretches > 1;  // only the next stretch adds to these sums
        const Sums before = i > 0 ? (is_far ? Sums::far : Sums::near) : streams ? Sums::streamed : Sums::fresh;
        parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
            for (int64_t thread = begin; thread < end; thread++) {
                add_bias(at, get_part(at.cut.blocks, call.threads, thread), count, i > 0, scratch, work + at.bias);
                add_stretch(call, at, thread, count, scratch, work, before);
            }
            stream_fence();
        });
    }
}

template <class T>
void finish(const Conv3x3GradWeight& call, const Layout& at, const float* work) {
    const int64_t inputs = call.sources.channels(), outputs = call.gradients.channels(), vectors = count_parts(outputs, kL);
    parallel_for(count_parts(inputs, kL) * vectors, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t c = i / vectors * kL, column = i % vectors * kL;
            finish_filters<T>(call, at.sums, {c, min_of(c + kL, inputs)}, {column, min_of(column + kL, outputs)},
                              work + c * at.sums.row + column);
        }
    });
}

// Computes the filters block by block. A block has some inputs and one block of columns; its sums are transformed into filters
// before the next block.
template <class T>
void run_blocks(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    const int64_t all = call.geometry.tiles(), inputs = call.sources.channels(), outputs = call.gradients.channels();
    const ColumnBlocks& cut = at.cut;
    int64_t rows = kBlockInputs;
    while (rows > kL && count_parts(inputs, rows) * cut.blocks < 4 * call.threads) rows -= kL;
    const int64_t tasks = count_parts(inputs, rows) * cut.blocks;
    float* scratch = work + at.scratch;
    clear_zeros(at, scratch);
    transform_stretch(call, at, {0, all}, call.threads, scratch);
    add_bias(at, {0, cut.blocks}, all, false, scratch, work + at.bias);
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* sums = work + thread * at.sums.accumulator;
            const Range assigned = get_part(tasks, call.threads, thread);
            for (int64_t task = assigned.begin; task < assigned.end; task++) {
                const int64_t first = task / cut.blocks * rows;
                const Range some{first, min_of(first + rows, inputs)};
                const int64_t block = task % cut.blocks;
                const Range vectors = at.cut.get_vectors(block);
                for (int64_t p = 0; p < kPoints; p++)
                    add_columns(at, p, some, block, all, scratch, sums + p * at.sums.plane, Sums::fresh);
                finish_block<T>(call, at.sums, some, {vectors.begin * kL, min_of(vectors.end * kL, outputs)}, sums);
            }
        }
    });
}

template <class T>
void run(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    if (at.partition == Layout::by_blocks) {
        run_blocks<T>(call, at, work);
    } else {
        (at.partition == Layout::by_accumulators ? run_accumulators : run_stretches)(call, at, work);
        finish<T>(call, at, work);
    }
    finish_bias<T>(call, work + at.bias, at.sums.accumulators, at.sums.row);
}

}  // namespace

int64_t conv3x3_grad_weight_bytes(const Conv3x3GradWeight& call) {
    return Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_grad_weight(const Conv3x3GradWeight& call, float* work) {
    const Layout at(call);
    switch (call.dtype) {
        case f32: return run<float>(call, at, work);
        case f16: return run<Half>(call, at, work);
        case bf16: return run<BFloat16>(call, at, work);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
