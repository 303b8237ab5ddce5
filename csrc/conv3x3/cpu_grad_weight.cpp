// SPDX-License-Identifier: Apache-2.0
// Gradient of the filters in the Winograd domain: grad_weight = G^T [ sum over tiles of V^T (A grad A^T) ] G, and with it the
// gradient of the bias.
//
// Narrow layers: a task owns the sums of one lane, a range of tiles, and transforms and multiplies them block by block; lanes
// are added at the end. Wide layers, whose sums are too large for lanes: the threads transform a stretch of tiles together,
// short enough for the shared cache, then each multiplies for points of its own. Sums start from zero every kSumTiles tiles at
// most and are added in their order, and lanes follow from the shape: neither precision nor order of a sum know the threads.
#include "conv3x3/gradient_tiles.h"
#include "conv3x3/lanes_of_tiles.h"
#include "conv3x3/output.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kSumTiles = 64;

struct Layout {
    bool shared;                                        // V and D of all threads
    int64_t lanes, tiles;                               // tiles: transformed at once, at most
    int64_t v_row, v_plane, d_row, d_plane, sum_plane;  // floats
    int64_t lane, bias;                                 // sums[lane][point][input][column], bias[lane][column]
    int64_t scratch, thread_floats, d, zeros, floats;   // d and zeros from the beginning of a thread's scratch

    explicit Layout(const Conv3x3GradWeight& call) {
        constexpr int64_t item = sizeof(float);
        const int64_t all = call.geometry.tiles();
        v_row = source_columns(call.sources);
        d_row = source_columns(call.gradients);
        sum_plane = round_up((call.sources.channels() + 3) * d_row, 32) + 16;  // add_products may write three rows too many
        lane = kPoints * sum_plane;
        shared = lane * item > kLaneBytes;
        lanes = shared ? 1 : lanes_of_sums(all, lane * item);
        tiles = kSumTiles;
        if (shared) tiles = parts_of(all, parts_of(kPoints * all * (v_row + d_row) * item, stretch_bytes(lane * item)));
        // An odd number of cache lines between planes spreads them over the sets of the caches.
        v_plane = tiles * v_row + 16;
        d_plane = tiles * d_row + 16;
        const int64_t wide = widest(call.sources), wide_gradients = widest(call.gradients);
        bias = lanes * lane;
        scratch = round_up(bias + lanes * d_row, 16);
        d = kPoints * v_plane;
        zeros = d + (kPoints + 1) * d_plane;
        thread_floats = round_up(zeros + (wide > wide_gradients ? wide : wide_gradients) + kL, 16);
        floats = scratch + (shared ? 1 : call.threads) * thread_floats;
    }
};

// Tiles first + [begin, end) into V.
void transform_inputs(const Conv3x3GradWeight& call, const Layout& at, int64_t first, Range tiles, float* scratch) {
    const auto transform = [&](auto zero) {
        using T = decltype(zero);
        Tile tile = tile_at(call.geometry, first + tiles.begin);
        for (int64_t i = tiles.begin; i < tiles.end; i++, to_next_tile(call.geometry, tile))
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

// Zeros for the inputs that add_products takes beyond those of the last tile: see clear_tiles_behind in engine.h.
inline void clear_inputs_behind(const Layout& at, int64_t tiles, float* scratch) {
    for (int p = 0; p < kPoints; p++) store_vec<4>(scratch + p * at.v_plane + tiles * at.v_row, Vec<float, 4>{});
}

// Tiles first + [begin, end) into D.
void transform_gradients(const Conv3x3GradWeight& call, const Layout& at, int64_t first, Range tiles, float* scratch) {
    const auto transform = [&](auto zero) {
        using T = decltype(zero);
        const T* zeros = reinterpret_cast<const T*>(scratch + at.zeros);
        const bool has_sign = call.gradients.view[0].sign != nullptr;
        Tile tile = tile_at(call.geometry, first + tiles.begin);
        for (int64_t i = tiles.begin; i < tiles.end; i++, to_next_tile(call.geometry, tile)) {
            float* out = scratch + at.d + i * at.d_row;
            if (has_sign)
                transform_gradient_tile<T, true>(call, tile, zeros, out, at.d_plane);
            else
                transform_gradient_tile<T, false>(call, tile, zeros, out, at.d_plane);
        }
    };
    switch (call.gradients.dtype) {
        case f32: return transform(float{});
        case f16: return transform(Half{});
        case bf16: return transform(BFloat16{});
        case f64: break;
    }
}

constexpr int64_t kFarBytes = 4 << 20;  // sums that have left the L2 caches when they are added to again
// fresh: not there yet; streamed: nor wanted before other sums have passed the caches; far: fetched while the products are made
enum class Sums { fresh, streamed, near, far };

// sums[c, 0:NV*L] (+)= sum over tiles of V[t, c] * D[t, 0:NV*L] for MR inputs c.
template <int MR, int NV>
inline void add_rows(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t tiles, float* sums, Sums state) {
    V acc[MR][NV];
    clear<float>(acc);
    if (state == Sums::far) {
#pragma GCC unroll 12
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) __builtin_prefetch(sums + i * d_row + j * kL, 1);
    }
    multiply<FmaStep<float>, MR, NV>(acc, v, 1, v_row, d, d_row, tiles);
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            float* at = sums + i * d_row + j * kL;
            if (state == Sums::streamed)
                stream_vec(at, acc[i][j]);
            else
                store_vec<kL>(at, state == Sums::fresh ? acc[i][j] : acc[i][j] + load_vec<kL>(at));
        }
}

template <int NV>
inline void add_products(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles, float* sums,
                         Sums state) {
    constexpr int MR = tile_rows(NV), kRest = MR == 12 ? 8 : 4;
    int64_t c = 0;
    for (; c + MR <= inputs; c += MR) add_rows<MR, NV>(v + c, v_row, d, d_row, tiles, sums + c * d_row, state);
    for (; c + 4 < inputs && kRest == 8; c += 8) add_rows<kRest, NV>(v + c, v_row, d, d_row, tiles, sums + c * d_row, state);
    for (; c < inputs; c += 4) add_rows<4, NV>(v + c, v_row, d, d_row, tiles, sums + c * d_row, state);
}

// Point `p` of the planes in scratch, one block of columns, `tiles` tiles; sums: of that point. add: to sums that are there.
void add_columns(const Conv3x3GradWeight& call, const Layout& at, int64_t p, Range vectors, int64_t tiles, bool add,
                 const float* scratch, float* sums) {
    const int64_t inputs = call.sources.channels(), parts = parts_of(tiles, kSumTiles);
    sums += vectors.begin * kL;
    for (int64_t i = 0; i < parts; i++) {
        const Range part = part_of(tiles, parts, i);
        const float* v = scratch + p * at.v_plane + part.begin * at.v_row;
        const float* d = scratch + at.d + p * at.d_plane + part.begin * at.d_row + vectors.begin * kL;
        const int64_t count = part.end - part.begin;
        const bool is_far = i == 0 && at.lane * static_cast<int64_t>(sizeof(float)) > kFarBytes;
        const bool streams = is_far && parts == 1 && at.tiles < call.geometry.tiles();  // added to by the next stretch
        const Sums state = i > 0 || add ? (is_far ? Sums::far : Sums::near) : streams ? Sums::streamed : Sums::fresh;
        switch (vectors.end - vectors.begin) {
            case 1: add_products<1>(v, at.v_row, d, at.d_row, inputs, count, sums, state); break;
            case 2: add_products<2>(v, at.v_row, d, at.d_row, inputs, count, sums, state); break;
#if FASTDS_MANY_REGISTERS
            case 3: add_products<3>(v, at.v_row, d, at.d_row, inputs, count, sums, state); break;
            case 4: add_products<4>(v, at.v_row, d, at.d_row, inputs, count, sums, state); break;
#endif
        }
    }
}

void add_bias(const Layout& at, int64_t tiles, bool add, const float* scratch, float* bias) {
    const float* tile_sums = scratch + at.d + kPoints * at.d_plane;
    for (int64_t column = 0; column < at.d_row; column += kL) {
        V total = add ? load_vec<kL>(bias + column) : V{};
        const int64_t parts = parts_of(tiles, kSumTiles);
        for (int64_t i = 0; i < parts; i++) {
            const Range part = part_of(tiles, parts, i);
            V sum = {};
            for (int64_t t = part.begin; t < part.end; t++) sum += load_vec<kL>(tile_sums + t * at.d_row + column);
            total += sum;
        }
        store_vec<kL>(bias + column, total);
    }
}

void run_lane(const Conv3x3GradWeight& call, const Layout& at, int64_t lane, float* work, float* scratch) {
    const Range all = part_of(call.geometry.tiles(), at.lanes, lane);
    const ColumnBlocks cut = column_blocks<float>(call.gradients.channels());
    const int64_t stretches = parts_of(all.end - all.begin, at.tiles);
    for (int64_t i = 0; i < stretches; i++) {
        const Range stretch = part_of(all.end - all.begin, stretches, i);
        const int64_t first = all.begin + stretch.begin, count = stretch.end - stretch.begin;
        transform_inputs(call, at, first, {0, count}, scratch);
        clear_inputs_behind(at, count, scratch);
        transform_gradients(call, at, first, {0, count}, scratch);
        add_bias(at, count, i > 0, scratch, work + at.bias + lane * at.d_row);
        for (int64_t p = 0; p < kPoints; p++)
            for (int64_t b = 0; b < cut.blocks; b++)
                add_columns(call, at, p, part_of(cut.vectors, cut.blocks, b), count, i > 0, scratch,
                            work + lane * at.lane + p * at.sum_plane);
    }
}

void run_lanes(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = work + at.scratch + thread * at.thread_floats;
            __builtin_memset(scratch + at.zeros, 0, (at.thread_floats - at.zeros) * sizeof(float));
            const Range lanes = part_of(at.lanes, call.threads, thread);
            for (int64_t lane = lanes.begin; lane < lanes.end; lane++) run_lane(call, at, lane, work, scratch);
        }
    });
}

void run_stretches(const Conv3x3GradWeight& call, const Layout& at, float* work) {
    const int64_t all = call.geometry.tiles();
    const ColumnBlocks cut = column_blocks<float>(call.gradients.channels());
    float* scratch = work + at.scratch;
    __builtin_memset(scratch + at.zeros, 0, (at.thread_floats - at.zeros) * sizeof(float));
    const int64_t stretches = parts_of(all, at.tiles);
    for (int64_t i = 0; i < stretches; i++) {
        const Range stretch = part_of(all, stretches, i);
        const int64_t first = stretch.begin, count = stretch.end - first;
        parallel_for(count, call.threads, [&](int64_t begin, int64_t end) {
            transform_inputs(call, at, first, {begin, end}, scratch);
            transform_gradients(call, at, first, {begin, end}, scratch);
        });
        clear_inputs_behind(at, count, scratch);
        parallel_for(kPoints * cut.blocks + 1, call.threads, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; task++) {
                const int64_t p = task / cut.blocks;
                if (p == kPoints)
                    add_bias(at, count, i > 0, scratch, work + at.bias);
                else
                    add_columns(call, at, p, part_of(cut.vectors, cut.blocks, task % cut.blocks), count, i > 0, scratch,
                                work + p * at.sum_plane);
            }
            stream_fence();
        });
    }
}

// G^T sums G of one input and a vector of columns, of all lanes.
inline void finish_taps(const Layout& at, const float* sums, float (&taps)[9][kL]) {
    V half[3][6];
#pragma GCC unroll 6
    for (int q = 0; q < 6; q++) {
        V u[6], g[3];
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) {
            const float* lanes = sums + (r * 6 + q) * at.sum_plane;
            u[r] = load_vec<kL>(lanes);
            for (int64_t lane = 1; lane < at.lanes; lane++) u[r] += load_vec<kL>(lanes + lane * at.lane);
        }
        transform_weight_adjoint(u, g);
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) half[r][q] = g[r];
    }
#pragma GCC unroll 3
    for (int r = 0; r < 3; r++) {
        V g[3];
        transform_weight_adjoint(half[r], g);
#pragma GCC unroll 3
        for (int q = 0; q < 3; q++) store_vec<kL>(taps[r * 3 + q], g[q]);
    }
}

// Filters of a vector of columns and as many inputs into grad_weight (O, C, 3, 3), dense: 9 numbers of each input follow each
// other, so vectors of (input, tap) are made of vectors of columns. sums: of those inputs and columns.
template <class T>
void finish_filters(const Conv3x3GradWeight& call, const Layout& at, Range inputs, Range columns, const float* sums) {
    const ColumnMap outputs{call.gradients.channels(), call.shuffle};
    const int64_t numbers = (inputs.end - inputs.begin) * 9;
    float taps[kL][9][kL] = {};
    for (int64_t i = 0; i < inputs.end - inputs.begin; i++) finish_taps(at, sums + i * at.d_row, taps[i]);
    for (int64_t first = 0; first < numbers; first += kL) {
        V square[kL];
        for (int i = 0; i < kL; i++) square[i] = load_vec<kL>(taps[0][0] + (first + i) * kL);
        turn_rows(square);
        for (int64_t i = 0; i < columns.end - columns.begin; i++) {
            const int64_t filter = outputs.output(columns.begin + i) * call.sources.channels() + inputs.begin;
            store_first<kL>(static_cast<T*>(call.grad_weight) + filter * 9 + first, square[i], numbers - first);
        }
    }
}

template <class T>
void finish(const Conv3x3GradWeight& call, const Layout& at, const float* work) {
    const int64_t inputs = call.sources.channels(), outputs = call.gradients.channels(), vectors = parts_of(outputs, kL);
    parallel_for(parts_of(inputs, kL) * vectors, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t c = i / vectors * kL, column = i % vectors * kL;
            finish_filters<T>(call, at, {c, least(c + kL, inputs)}, {column, least(column + kL, outputs)},
                              work + c * at.d_row + column);
        }
    });
    finish_bias<T>(call, work + at.bias, at.lanes, at.d_row);
}

}  // namespace

int64_t conv3x3_grad_weight_bytes(const Conv3x3GradWeight& call) {
    return Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_grad_weight(const Conv3x3GradWeight& call, float* work) {
    const Layout at(call);
    if (at.shared)
        run_stretches(call, at, work);
    else
        run_lanes(call, at, work);
    switch (call.dtype) {
        case f32: return finish<float>(call, at, work);
        case f16: return finish<Half>(call, at, work);
        case bf16: return finish<BFloat16>(call, at, work);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
