// SPDX-License-Identifier: Apache-2.0
// The Winograd engine. It transforms a block of tiles (6x6 inputs for 4x4 outputs), multiplies its 36 planes by the 36 packed
// matrices and passes the products to an epilogue. Each thread computes disjoint blocks. The values of a tile do not depend on
// the partition into blocks.
//
// The workspace of a thread holds the planes V[p][tile][channel] and M[p][tile][column]. If all outputs are computed in one
// pass, M starts one plane before V: product p overwrites the transformed inputs of point p - 1, which are no longer needed. If
// there are few tiles and many filters, reading the filters takes most of the time. All threads then share one block, and each
// thread reads a part of the filters. If the filters were not packed beforehand, each thread packs its part, some inputs at a
// time.
#pragma once
#include "conv3x3/epilogue.h"
#include "conv3x3/filters.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Size of the filters that a thread packs at once. These filters and the sums of their products fit into an L2 cache of 1 MB.
constexpr int64_t kPackInputs = 32, kPackVectors = kTileVectors, kPackPlane = kPackInputs * kPackVectors * kL + 16;
constexpr int64_t kPackFloats = kPoints * kPackPlane;

struct Layout {
    int64_t v_row, v_plane, m_row, m_plane, v, m;  // strides in floats; v and m are the positions of the planes
    int64_t zeros, staging, staging_row, packing, floats;

    Layout(const Conv3x3Call& call, int64_t block_tiles, int64_t block_vectors, int sharing) {
        const int64_t rows = round_up(block_tiles, kTileRowsMultiple);
        const int64_t columns = get_column_map(call).columns, vectors = (columns + kL - 1) / kL;
        v_row = source_columns(call.sources);
        m_row = block_vectors * kL;
        // The stride of the planes is an odd number of cache lines, which spreads them over the sets of the cache.
        v_plane = rows * v_row + 16;
        m_plane = rows * m_row + 16;
        if (block_vectors >= vectors && sharing == 0) {
            v_plane = m_plane = v_plane > m_plane ? v_plane : m_plane;
            m = 0;
            v = m_plane;
            zeros = v + kPoints * v_plane;
        } else {
            v = 0;
            m = kPoints * v_plane;
            zeros = m + kPoints * m_plane;
        }
        staging = round_up(zeros + round_up(get_max_channels(call.sources), kL), 16);
        staging_row = round_up(16 * columns, 16);
        packing = staging + (sharing > 0 ? sharing : 1) * staging_row;
        floats = packing + (call.packed == nullptr ? sharing * kPackFloats : 0);
    }

    // Returns the layout for one of the threads that share a block. The thread processes the tiles from `tile` on.
    Layout of_thread(int64_t thread, int64_t tile) const {
        Layout thread_layout = *this;
        thread_layout.v += tile * v_row;
        thread_layout.m += tile * m_row;
        thread_layout.staging += thread * staging_row;
        return thread_layout;
    }
};

// Multiplies rows of tiles by one block of NV vectors: M[t, j] (+)= sum over k of V[t, k] * packed[k, j] for j < NV * kL.
template <int NV, bool Add>
inline void multiply_rows(const float* v, int64_t v_row, const float* packed, int64_t inputs, int64_t tiles, float* m,
                          int64_t m_row) {
    constexpr int MR = tile_rows(NV);
    for (int64_t t = 0; t < tiles; t += MR, v += MR * v_row) {
        V acc[MR][NV];
        if constexpr (Add) {
            const float* from = m;
#pragma GCC unroll 12
            for (int i = 0; i < MR; i++, from = next_row(from, m_row))
#pragma GCC unroll 4
                for (int j = 0; j < NV; j++) acc[i][j] = load_vec<kL>(from + j * kL);
        } else {
            clear<float>(acc);
        }
        multiply<FmaStep<float>, MR, NV>(acc, v, v_row, 1, packed, NV * kL, inputs);
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++, m = next_row(m, m_row))
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) store_vec<kL>(m + j * kL, acc[i][j]);
    }
}

// Long sums are split so that the rows of `packed` in use stay in the L1 cache.
constexpr int64_t kStepInputs = 128;

// Multiplies the tiles by one block of NV vectors. If `add` is true, the products are added to M.
template <int NV>
inline void multiply_columns(const float* v, int64_t v_row, const float* packed, int64_t inputs, int64_t tiles, float* m,
                             int64_t m_row, bool add) {
    for (int64_t k = 0; k < inputs; k += kStepInputs) {
        const auto multiply = k > 0 || add ? multiply_rows<NV, true> : multiply_rows<NV, false>;
        multiply(v + k, v_row, packed + k * NV * kL, min_of(kStepInputs, inputs - k), tiles, m, m_row);
    }
}

inline void multiply_block(int64_t vectors, const float* v, int64_t v_row, const float* packed, int64_t inputs, int64_t tiles,
                           float* m, int64_t m_row, bool add) {
    switch (vectors) {
        case 1: return multiply_columns<1>(v, v_row, packed, inputs, tiles, m, m_row, add);
        case 2: return multiply_columns<2>(v, v_row, packed, inputs, tiles, m, m_row, add);
#if FASTDS_MANY_REGISTERS
        case 3: return multiply_columns<3>(v, v_row, packed, inputs, tiles, m, m_row, add);
        case 4: return multiply_columns<4>(v, v_row, packed, inputs, tiles, m, m_row, add);
#endif
    }
}

// Transforms the tiles [first, first + count) into the planes of V.
template <class T>
void transform_block(const Conv3x3Call& call, const Layout& at, int64_t first, int64_t count, float* scratch) {
    const T* zeros = reinterpret_cast<const T*>(scratch + at.zeros);
    Tile tile = get_tile(call.geometry, first);
    for (int64_t i = 0; i < count; i++, advance_tile(call.geometry, tile)) {
        float* out = scratch + at.v + i * at.v_row;
        if (call.sources.view[0].sign != nullptr)
            transform_tile<T, true>(call.geometry, call.sources, tile, call.negative_slope, zeros, out, at.v_plane);
        else
            transform_tile<T, false>(call.geometry, call.sources, tile, 0.f, zeros, out, at.v_plane);
    }
}

// An epilogue. Its function `finish` processes the products M of the tiles [first, first + count) for a range of columns; M
// starts at scratch + layout.m. A function pointer is used so that the engine is compiled only once.
struct Epilogue;
using Finish = void (*)(const Epilogue& epilogue, const Layout& at, int64_t first, int64_t count, float* scratch, Range columns);
struct Epilogue {
    const Conv3x3Call& call;
    const float* bias;        // one value per column
    const Conv3x3Cell* cell;  // the cell of conv3x3_run_cell
    Finish finish;
};

inline void transform_block(const Conv3x3Call& call, const Layout& at, int64_t first, int64_t count, float* scratch) {
    switch (call.sources.dtype) {
        case f32: return transform_block<float>(call, at, first, count, scratch);
        case f16: return transform_block<Half>(call, at, first, count, scratch);
        case bf16: return transform_block<BFloat16>(call, at, first, count, scratch);
        case f64: return;
    }
}

// Clears the tiles that the products read beyond the last tile. The results of these tiles are not used. Uninitialized memory,
// however, often contains denormal floats, which Intel processors multiply about a hundred times slower.
inline void clear_excess_tiles(const Conv3x3Call& call, const Layout& at, int64_t count, float* scratch) {
    const int64_t end = min_of(count + tile_rows(1) - 1, round_up(count, kTileRowsMultiple));
    for (int p = 0; p < kPoints; p++)
        __builtin_memset(scratch + at.v + p * at.v_plane + count * at.v_row, 0, (end - count) * at.v_row * sizeof(float));
}

// The products of a call. Values that are the same for all 36 points are computed once, because the products of a layer with
// few channels are short.
struct Products {
    const float* packed;
    int64_t inputs;
    ColumnBlocks cut;  // partition of the columns
    int64_t plane;     // floats between two matrices in `packed`

    explicit Products(const Conv3x3Call& call)
        : packed(call.packed),
          inputs(call.sources.channels()),
          cut(column_blocks<float>(get_column_map(call).columns)),
          plane(packed_plane(inputs, cut)) {}

    // Computes M at one point for the block with the given vectors of columns. `first` is the vector at which M starts.
    void multiply(const Layout& at, int64_t count, float* scratch, int64_t p, Range vectors, int64_t first) const {
        multiply_block(vectors.end - vectors.begin, scratch + at.v + p * at.v_plane, at.v_row,
                       packed + p * plane + vectors.begin * kL * inputs, inputs, count,
                       scratch + at.m + p * at.m_plane + (vectors.begin - first) * kL, at.m_row, false);
    }

    // Returns the blocks of columns of the pass that starts with block `begin`. A pass has at most block_vectors vectors.
    Range pass(int64_t begin, int64_t block_vectors) const {
        int64_t end = begin + 1;
        while (end < cut.blocks && cut.get_vectors(end).end - cut.get_vectors(begin).begin <= block_vectors) end++;
        return {begin, end};
    }

    // Computes M for all blocks of a pass.
    void multiply_pass(const Layout& at, int64_t count, float* scratch, Range blocks) const {
        const Range first = cut.get_vectors(blocks.begin);
        for (int64_t p = 0; p < kPoints; p++) {
            multiply(at, count, scratch, p, first, first.begin);
            for (int64_t block = blocks.begin + 1; block < blocks.end; block++)
                multiply(at, count, scratch, p, cut.get_vectors(block), first.begin);
        }
    }
};

// Processes one block of tiles: input transform, products, epilogue.
inline void run_block(const Epilogue& epilogue, const Layout& at, const Conv3x3Plan& plan, int64_t block, float* scratch) {
    const Conv3x3Call& call = epilogue.call;
    const int64_t tiles = call.geometry.tiles(), outputs = get_column_map(call).columns;
    const int64_t groups = (tiles + plan.group_tiles - 1) / plan.group_tiles;
    const int64_t first = groups * block / plan.blocks * plan.group_tiles;
    const int64_t count = min_of(tiles, groups * (block + 1) / plan.blocks * plan.group_tiles) - first;
    transform_block(call, at, first, count, scratch);
    if (count % kTileRowsMultiple != 0) clear_excess_tiles(call, at, count, scratch);
    const Products products(call);
    for (Range blocks{0, 0}; blocks.end < products.cut.blocks;) {
        blocks = products.pass(blocks.end, plan.block_vectors);
        products.multiply_pass(at, count, scratch, blocks);
        const int64_t begin = products.cut.get_vectors(blocks.begin).begin, end = products.cut.get_vectors(blocks.end - 1).end;
        epilogue.finish(epilogue, at, first, count, scratch, Range{begin * kL, min_of(end * kL, outputs)});
    }
}

// Initializes the scratch of a thread before its first block.
inline void begin_thread(const Layout& at, float* scratch) {
    __builtin_memset(scratch + at.zeros, 0, (at.staging - at.zeros) * sizeof(float));
}

// Computes M for one block of columns, packing the filters into `packing_buffer` on the way.
inline void multiply_packed_columns(const Conv3x3Call& call, const Layout& at, const PackedMaps& maps, Range vectors,
                                    float* packing_buffer,
                                float* scratch) {
    const int64_t tiles = call.geometry.tiles(), first = vectors.begin * kL, width = vectors.end - vectors.begin;
    for (int64_t i = 0; i < maps.inputs; i += kPackInputs) {
        const Range inputs{i, min_of(i + kPackInputs, maps.inputs)};
        for (int64_t k = 0; k < width; k++)
            pack_vector(call.filters, maps, vectors.begin + k, inputs, packing_buffer + k * kL, width * kL, kPackPlane);
        for (int64_t p = 0; p < kPoints; p++)
            multiply_block(width, scratch + at.v + p * at.v_plane + i, at.v_row, packing_buffer + p * kPackPlane,
                           inputs.end - inputs.begin, tiles, scratch + at.m + p * at.m_plane + first, at.m_row, i > 0);
    }
}

// Computes M for all tiles. Each thread packs its columns of the filters, some inputs at a time. The results equal those of
// filters packed beforehand.
inline void multiply_with_packing(const Conv3x3Call& call, const Layout& at, int threads, float* scratch) {
    const PackedMaps maps(call.filters);
    const int64_t vectors = count_parts(maps.columns.columns, kL), blocks = count_parts(vectors, kPackVectors);
    parallel_for(threads, threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* packing_buffer = scratch + at.packing + thread * kPackFloats;
            const Range assigned = get_part(blocks, threads, thread);
            for (int64_t block = assigned.begin; block < assigned.end; block++)
                multiply_packed_columns(call, at, maps, get_part(vectors, blocks, block), packing_buffer, scratch);
        }
    });
}

// Processes all tiles with all threads together.
inline void run_shared(const Epilogue& epilogue, const Conv3x3Plan& plan, float* scratch) {
    const Conv3x3Call& call = epilogue.call;
    const Layout at(call, plan.block_tiles, plan.block_vectors, plan.sharing);
    const int64_t tiles = call.geometry.tiles(), outputs = get_column_map(call).columns;
    begin_thread(at, scratch);
    // Calls work(layout, first tile, number of tiles) on each thread for its part of the tiles.
    const auto share_tiles = [&](const auto& work) {
        parallel_for(plan.sharing, plan.sharing, [&](int64_t begin, int64_t end) {
            for (int64_t thread = begin; thread < end; thread++) {
                const Range part = get_part(tiles, plan.sharing, thread);
                if (part.begin < part.end) work(at.of_thread(thread, part.begin), part.begin, part.end - part.begin);
            }
            stream_fence();
        });
    };
    share_tiles([&](const Layout& thread_layout, int64_t first, int64_t count) { transform_block(call, thread_layout, first,
                                                                                                 count, scratch); });
    clear_excess_tiles(call, at, tiles, scratch);
    const Products products(call);
    const int64_t blocks = products.cut.blocks;
    if (call.packed == nullptr)
        multiply_with_packing(call, at, plan.sharing, scratch);
    else
        parallel_for(kPoints * blocks, plan.sharing, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; task++)
                products.multiply(at, tiles, scratch, task / blocks, products.cut.get_vectors(task % blocks), 0);
        });
    share_tiles([&](const Layout& thread_layout, int64_t first, int64_t count) {
        epilogue.finish(epilogue, thread_layout, first, count, scratch, Range{0, outputs});
    });
}

// Runs the engine. The workspace is 64-byte aligned and has plan.bytes bytes.
inline void run_engine(const Epilogue& epilogue, const Conv3x3Plan& plan, float* workspace) {
    if (plan.sharing > 0) return run_shared(epilogue, plan, workspace);
    const Layout at(epilogue.call, plan.block_tiles, plan.block_vectors, plan.sharing);
    parallel_for(plan.threads, plan.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = workspace + thread * plan.thread_floats;
            begin_thread(at, scratch);
            for (int64_t b = plan.blocks * thread / plan.threads; b < plan.blocks * (thread + 1) / plan.threads; b++)
                run_block(epilogue, at, plan, b, scratch);
        }
        stream_fence();
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
