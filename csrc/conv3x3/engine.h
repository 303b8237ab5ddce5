// SPDX-License-Identifier: Apache-2.0
// The engine: transforms a block of tiles (6x6 inputs of 4x4 outputs), multiplies its 36 planes with the 36 packed matrices and
// hands the products to an output stage. Threads own disjoint blocks, the numbers of a tile depend on no blocking.
//
// Planes in the workspace of a thread: V[p][tile][channel] and M[p][tile][column]. When all outputs are made in one pass, M
// lies one plane before V: product p overwrites transformed input p - 1, which nobody needs any more.
#pragma once
#include "conv3x3/output.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

struct Layout {
    int64_t v_row, v_plane, m_row, m_plane, v, m;  // floats; v and m: where the planes begin
    int64_t zeros, staging, floats;

    Layout(const Conv3x3Call& call, int64_t block_tiles, int64_t block_vectors) {
        const int64_t rows = round_up(block_tiles, kTileRowsMultiple);
        const int64_t columns = columns_of(call).columns, vectors = (columns + kL - 1) / kL;
        v_row = source_columns(call.sources);
        m_row = block_vectors * kL;
        // An odd number of cache lines between planes spreads them over the sets of the caches.
        v_plane = rows * v_row + 16;
        m_plane = rows * m_row + 16;
        if (block_vectors >= vectors) {
            v_plane = m_plane = v_plane > m_plane ? v_plane : m_plane;
            m = 0;
            v = m_plane;
            zeros = v + kPoints * v_plane;
        } else {
            v = 0;
            m = kPoints * v_plane;
            zeros = m + kPoints * m_plane;
        }
        staging = round_up(zeros + round_up(widest(call.sources), kL), 16);
        floats = staging + round_up(16 * columns, 16);
    }
};

// Rows of M for one block of NV vectors: M[t, 0:NV*L] (+)= sum_k V[t, k] * packed[k, 0:NV*L].
template <int NV, bool Add>
inline void multiply_rows(const float* v, int64_t v_row, const float* packed, int64_t inputs, int64_t tiles, float* m,
                          int64_t m_row) {
    constexpr int MR = tile_rows(NV);
    for (int64_t t = 0; t < tiles; t += MR) {
        V acc[MR][NV];
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) acc[i][j] = Add ? load_vec<kL>(m + (t + i) * m_row + j * kL) : V{};
        multiply<FmaStep<float>, MR, NV>(acc, v + t * v_row, v_row, 1, packed, NV * kL, inputs);
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) store_vec<kL>(m + (t + i) * m_row + j * kL, acc[i][j]);
    }
}

// Long sums are cut so that the rows of `packed` in play stay in the L1 cache.
constexpr int64_t kStepInputs = 128;

template <int NV>
inline void multiply_columns(const float* v, int64_t v_row, const float* packed, int64_t inputs, int64_t tiles, float* m,
                             int64_t m_row) {
    multiply_rows<NV, false>(v, v_row, packed, least(kStepInputs, inputs), tiles, m, m_row);
    for (int64_t k = kStepInputs; k < inputs; k += kStepInputs)
        multiply_rows<NV, true>(v + k, v_row, packed + k * NV * kL, least(kStepInputs, inputs - k), tiles, m, m_row);
}

inline void multiply_block(int64_t vectors, const float* v, int64_t v_row, const float* packed, int64_t inputs, int64_t tiles,
                           float* m, int64_t m_row) {
    switch (vectors) {
        case 1: return multiply_columns<1>(v, v_row, packed, inputs, tiles, m, m_row);
        case 2: return multiply_columns<2>(v, v_row, packed, inputs, tiles, m, m_row);
#if defined(__AVX512F__)
        case 3: return multiply_columns<3>(v, v_row, packed, inputs, tiles, m, m_row);
        case 4: return multiply_columns<4>(v, v_row, packed, inputs, tiles, m, m_row);
#endif
    }
}

template <class T>
void transform_block(const Conv3x3Call& call, const Layout& at, int64_t first, int64_t count, float* scratch) {
    const T* zeros = reinterpret_cast<const T*>(scratch + at.zeros);
    Tile tile = tile_at(call.geometry, first);
    for (int64_t i = 0; i < count; i++, to_next_tile(call.geometry, tile)) {
        float* out = scratch + at.v + i * at.v_row;
        if (call.sources.view[0].sign != nullptr)
            transform_tile<T, true>(call.geometry, call.sources, tile, call.negative_slope, zeros, out, at.v_plane);
        else
            transform_tile<T, false>(call.geometry, call.sources, tile, 0.f, zeros, out, at.v_plane);
    }
}

// An output stage; M of the tiles [first, first + count) and of these columns lies at scratch + layout.m. A pointer: the engine
// is compiled once for all stages.
struct Stage;
using Finish = void (*)(const Stage& stage, const Layout& at, int64_t first, int64_t count, float* scratch, Range columns);
struct Stage {
    const Conv3x3Call& call;
    const float* bias;        // of the columns
    const Conv3x3Cell* cell;  // of conv3x3_run_cell
    Finish finish;
};

// Runs one block of tiles: transforms, products, output stage.
inline void run_block(const Stage& stage, const Layout& at, const Conv3x3Plan& plan, int64_t block, float* scratch) {
    const Conv3x3Call& call = stage.call;
    const int64_t tiles = call.geometry.tiles(), inputs = call.sources.channels(), outputs = columns_of(call).columns;
    const int64_t groups = (tiles + plan.group_tiles - 1) / plan.group_tiles;
    const int64_t first = groups * block / plan.blocks * plan.group_tiles;
    const int64_t count = least(tiles, groups * (block + 1) / plan.blocks * plan.group_tiles) - first;
    switch (call.sources.dtype) {
        case f32: transform_block<float>(call, at, first, count, scratch); break;
        case f16: transform_block<Half>(call, at, first, count, scratch); break;
        case bf16: transform_block<BFloat16>(call, at, first, count, scratch); break;
        case f64: break;
    }
    const ColumnBlocks cut = column_blocks<float>(outputs);
    const int64_t plane = packed_plane(inputs, cut);
    for (int64_t column_block = 0; column_block < cut.blocks;) {
        const int64_t begin = cut.vectors * column_block / cut.blocks;
        int64_t next = column_block, end = begin;
        while (next < cut.blocks && (end = cut.vectors * (next + 1) / cut.blocks) - begin <= plan.block_vectors) next++;
        end = cut.vectors * next / cut.blocks;
        for (int p = 0; p < kPoints; p++)
            for (int64_t b = column_block; b < next; b++) {
                const int64_t vector = cut.vectors * b / cut.blocks, vectors = cut.vectors * (b + 1) / cut.blocks - vector;
                multiply_block(vectors, scratch + at.v + p * at.v_plane, at.v_row,
                               call.packed + p * plane + vector * kL * inputs, inputs, count,
                               scratch + at.m + p * at.m_plane + (vector - begin) * kL, at.m_row);
            }
        stage.finish(stage, at, first, count, scratch, Range{begin * kL, least(end * kL, outputs)});
        column_block = next;
    }
}

// The workspace is 64-byte aligned and has plan.bytes bytes.
inline void run_engine(const Stage& stage, const Conv3x3Plan& plan, float* workspace) {
    const Layout at(stage.call, plan.block_tiles, plan.block_vectors);
    parallel_for(plan.threads, plan.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = workspace + thread * plan.thread_floats;
            __builtin_memset(scratch + at.zeros, 0, (at.floats - at.zeros) * sizeof(float));
            for (int64_t b = plan.blocks * thread / plan.threads; b < plan.blocks * (thread + 1) / plan.threads; b++)
                run_block(stage, at, plan, b, scratch);
        }
        stream_fence();
    });
}

// Bias of the columns, in the plan's last floats; zeros where there is none.
inline const float* bias_of_columns(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace) {
    float* bias = workspace + plan.threads * plan.thread_floats;
    const ColumnMap map = columns_of(call);
    for (int64_t i = 0; i < round_up(map.columns, kL); i++) {
        const int64_t output = call.bias == nullptr ? -1 : map.output(i);
        if (output < 0) {
            bias[i] = 0.f;
            continue;
        }
        switch (call.bias_dtype) {
            case f32: bias[i] = static_cast<const float*>(call.bias)[output]; break;
            case f16: bias[i] = load(static_cast<const Half*>(call.bias)[output]); break;
            case bf16: bias[i] = load(static_cast<const BFloat16*>(call.bias)[output]); break;
            case f64: break;
        }
    }
    return bias;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
