// SPDX-License-Identifier: Apache-2.0
// Gradient of the filters in the Winograd domain: grad_weight = G^T [ sum over tiles of V^T (A grad A^T) ] G, and with it the
// gradient of the bias.
//
// A task owns the sums of 12 of the 36 points (two rows of the transforms), of some output columns and of one lane, a range
// of tiles. It transforms blocks of tiles for its points alone, so that they and the sums stay in the L2 cache. Lanes are
// added at the end. Tasks and lanes follow from the shape: neither precision nor order of a sum know the threads.
#include "conv3x3/tiles.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kBlockTiles = 64;            // summed from zero, then added
constexpr int kRowGroups = 3, kGroupPoints = 12;
constexpr int64_t kPassVectors = 128 / kL;     // of output columns in a task
constexpr int64_t kLaneBytes = 8 << 20;        // images read three times: a part of the shared cache
constexpr int64_t kLaneSumBytes = 32 << 20;    // of all lanes
constexpr int64_t kTasks = 16, kMostLanes = 16;

struct Layout {
    int64_t passes, lanes;
    int64_t v_row, v_plane, d_row, d_plane;        // of one task's block of tiles
    int64_t sum_row, sum_plane, lane;              // sums[lane][point][input][column]
    int64_t sums, bias, scratch, thread_floats, d, zeros, floats;

    explicit Layout(const Conv3x3GradWeight& call) {
        const int64_t tiles = call.geometry.tiles(), inputs = call.sources.channels();
        const int64_t outputs = call.gradients.channels(), blocks = column_blocks<float>(outputs).blocks;
        sum_row = source_columns(call.gradients);
        // Tasks cut the columns of a single view only.
        passes = call.gradients.count > 1 ? 1 : least(blocks, (sum_row / kL + kPassVectors - 1) / kPassVectors);
        sum_plane = (inputs + 3) * sum_row;  // add_products may write three rows too many
        lane = kPoints * sum_plane;
        const int64_t item = sizeof(float), image = tiles * 16 * (inputs + outputs) * item;
        lanes = (kTasks + kRowGroups * passes - 1) / (kRowGroups * passes);
        if (lanes < image / kLaneBytes) lanes = image / kLaneBytes;
        lanes = least(least(lanes, kMostLanes), least(kLaneSumBytes / (lane * item), (tiles + kBlockTiles - 1) / kBlockTiles));
        if (lanes < 1) lanes = 1;
        v_row = source_columns(call.sources);
        d_row = passes == 1 ? sum_row : (sum_row / kL + passes - 1) / passes * kL + kTileVectors * kL;
        v_plane = kBlockTiles * v_row + 16;
        d_plane = kBlockTiles * d_row + 16;
        sums = 0;
        bias = sums + lanes * lane;
        scratch = round_up(bias + lanes * sum_row, 16);
        d = kGroupPoints * v_plane;
        zeros = d + kGroupPoints * d_plane + d_row;  // behind the bias of a block
        const int64_t wide = widest(call.sources), wide_gradients = widest(call.gradients);
        thread_floats = round_up(zeros + (wide > wide_gradients ? wide : wide_gradients) + kL, 16);
        floats = scratch + call.threads * thread_floats;
    }
};

// Rows R0 and R1 of B^T d B for one vector of channels, into 12 planes. What the other rows need is never computed.
template <int R0, int R1, class T>
FASTDS_HD void input_rows(const Pixels<T, 6>& data, int64_t channel, int count, float* out, int64_t plane) {
    V half[2][6];
#pragma GCC unroll 6
    for (int c = 0; c < 6; c++) {
        V d[6], v[6];
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) d[r] = load_pixel<T, 6, false>(data, data, r * 6 + c, channel, count, 0.f);
        transform_input(d, v);
        half[0][c] = v[R0];
        half[1][c] = v[R1];
    }
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) {
        V v[6];
        transform_input(half[r], v);
#pragma GCC unroll 6
        for (int c = 0; c < 6; c++) store_vec<kL>(out + (r * 6 + c) * plane, v[c]);
    }
}

// Rows R0 and R1 of A g A^T likewise; adds the tile's sum to bias where that is not null.
template <int R0, int R1, class T, bool Signed>
FASTDS_HD void gradient_rows(const Pixels<T, 4>& data, const Pixels<T, 4>& sign, int64_t channel, int count, float slope,
                             float* out, int64_t plane, float* bias) {
    V half[2][4], sum = {};
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        V g[4], m[6];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) g[r] = load_pixel<T, 4, Signed>(data, sign, r * 4 + c, channel, count, slope);
        if (R0 == 1) sum += (g[0] + g[1]) + (g[2] + g[3]);
        transform_output_adjoint(g, m);
        half[0][c] = m[R0];
        half[1][c] = m[R1];
    }
    if (R0 == 1) store_vec<kL>(bias, load_vec<kL>(bias) + sum);
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) {
        V m[6];
        transform_output_adjoint(half[r], m);
#pragma GCC unroll 6
        for (int c = 0; c < 6; c++) store_vec<kL>(out + (r * 6 + c) * plane, m[c]);
    }
}

template <int R0, int R1, class T>
void transform_inputs(const Conv3x3GradWeight& call, const Tile& tile, const T* zeros, float* out, int64_t plane) {
    const InputWindow window = input_window(call.geometry, tile);
    for (int s = 0; s < call.sources.count; s++) {
        const Conv3x3View& view = call.sources.view[s];
        Pixels<T, 6> data;
        find_pixels(data, view.data, view, tile.b, window.row, window.column, zeros);
        int64_t channel = 0;
        for (; channel + kL <= view.channels; channel += kL) input_rows<R0, R1>(data, channel, kL, out + channel, plane);
        if (channel < view.channels)
            input_rows<R0, R1>(data, channel, static_cast<int>(view.channels - channel), out + channel, plane);
        out += view.channels;
    }
}

// Columns [begin, end) of the gradients, which are all of them where there are several views.
template <int R0, int R1, class T, bool Signed>
void transform_gradients(const Conv3x3GradWeight& call, const Tile& tile, const T* zeros, int64_t begin, int64_t end, float* out,
                         int64_t plane, float* bias) {
    int64_t row[4], column[4];
    for (int i = 0; i < 4; i++) {
        row[i] = tile.y + i < call.geometry.Ho ? tile.y + i : -1;
        column[i] = tile.x + i < call.geometry.Wo ? tile.x + i : -1;
    }
    for (int s = 0; s < call.gradients.count; s++) {
        const Conv3x3View& view = call.gradients.view[s];
        const int64_t last = call.gradients.count > 1 ? view.channels : end;
        Pixels<T, 4> data, sign;
        find_pixels(data, view.data, view, tile.b, row, column, zeros);
        if (Signed) find_pixels(sign, view.sign, view, tile.b, row, column, zeros);
        int64_t channel = begin;
        for (; channel + kL <= last; channel += kL)
            gradient_rows<R0, R1, T, Signed>(data, sign, channel, kL, call.negative_slope, out + channel - begin, plane,
                                             bias + channel - begin);
        if (channel < last)
            gradient_rows<R0, R1, T, Signed>(data, sign, channel, static_cast<int>(last - channel), call.negative_slope,
                                             out + channel - begin, plane, bias + channel - begin);
        out += view.channels;
        bias += view.channels;
    }
}

struct Block {
    int64_t first, count;  // tiles
    int64_t begin, end;    // columns
};

template <int R0, int R1, class T, class U>
void transform_block(const Conv3x3GradWeight& call, const Layout& at, const Block& block, float* scratch, float* bias) {
    const T* zeros = reinterpret_cast<const T*>(scratch + at.zeros);
    const U* gradient_zeros = reinterpret_cast<const U*>(scratch + at.zeros);
    for (int64_t i = 0; i < block.count; i++) {
        const Tile tile = tile_at(call.geometry, block.first + i);
        transform_inputs<R0, R1>(call, tile, zeros, scratch + i * at.v_row, at.v_plane);
        float* d = scratch + at.d + i * at.d_row;
        if (call.gradients.view[0].sign != nullptr)
            transform_gradients<R0, R1, U, true>(call, tile, gradient_zeros, block.begin, block.end, d, at.d_plane, bias);
        else
            transform_gradients<R0, R1, U, false>(call, tile, gradient_zeros, block.begin, block.end, d, at.d_plane, bias);
    }
}

template <class T, class U>
void transform_block(const Conv3x3GradWeight& call, const Layout& at, int group, const Block& block, float* scratch, float* bias) {
    switch (group) {
        case 0: return transform_block<1, 2, T, U>(call, at, block, scratch, bias);
        case 1: return transform_block<3, 4, T, U>(call, at, block, scratch, bias);
        case 2: return transform_block<0, 5, T, U>(call, at, block, scratch, bias);
    }
}
constexpr int kGroupRows[kRowGroups][2] = {{1, 2}, {3, 4}, {0, 5}};

template <class T>
void transform_block(const Conv3x3GradWeight& call, const Layout& at, int group, const Block& block, float* scratch, float* bias) {
    switch (call.gradients.dtype) {
        case f32: return transform_block<T, float>(call, at, group, block, scratch, bias);
        case f16: return transform_block<T, Half>(call, at, group, block, scratch, bias);
        case bf16: return transform_block<T, BFloat16>(call, at, group, block, scratch, bias);
        case f64: break;
    }
}

// sums[c, 0:NV*L] (+)= sum over tiles of V[t, c] * D[t, 0:NV*L] for MR inputs c.
template <int MR, int NV>
inline void add_rows(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t tiles, float* sums, int64_t sum_row,
                     bool add) {
    V acc[MR][NV];
    clear<float>(acc);
    multiply<FmaStep<float>, MR, NV>(acc, v, 1, v_row, d, d_row, tiles);
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            float* at = sums + i * sum_row + j * kL;
            store_vec<kL>(at, add ? acc[i][j] + load_vec<kL>(at) : acc[i][j]);
        }
}

template <int NV>
inline void add_products(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles, float* sums,
                         int64_t sum_row, bool add) {
    constexpr int MR = tile_rows(NV);
    int64_t c = 0;
    for (; c + MR <= inputs; c += MR) add_rows<MR, NV>(v + c, v_row, d, d_row, tiles, sums + c * sum_row, sum_row, add);
    for (; c < inputs; c += 4) add_rows<4, NV>(v + c, v_row, d, d_row, tiles, sums + c * sum_row, sum_row, add);
}

void add_columns(int64_t vectors, const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles,
                 float* sums, int64_t sum_row, bool add) {
    switch (vectors) {
        case 1: return add_products<1>(v, v_row, d, d_row, inputs, tiles, sums, sum_row, add);
        case 2: return add_products<2>(v, v_row, d, d_row, inputs, tiles, sums, sum_row, add);
#if defined(__AVX512F__)
        case 3: return add_products<3>(v, v_row, d, d_row, inputs, tiles, sums, sum_row, add);
        case 4: return add_products<4>(v, v_row, d, d_row, inputs, tiles, sums, sum_row, add);
#endif
    }
}

void run_task(const Conv3x3GradWeight& call, const Layout& at, int64_t task, float* work, float* scratch) {
    const int64_t lane = task / (kRowGroups * at.passes), pass = task / kRowGroups % at.passes;
    const int group = static_cast<int>(task % kRowGroups);
    const int64_t tiles = call.geometry.tiles(), inputs = call.sources.channels(), outputs = call.gradients.channels();
    const ColumnBlocks cut = column_blocks<float>(outputs);
    const int64_t first_block = cut.blocks * pass / at.passes, end_block = cut.blocks * (pass + 1) / at.passes;
    const int64_t first_vector = cut.vectors * first_block / cut.blocks, end_vector = cut.vectors * end_block / cut.blocks;
    const int64_t end = tiles * (lane + 1) / at.lanes, first = tiles * lane / at.lanes;
    float* bias = scratch + at.zeros - at.d_row;  // of one block
    float* lane_bias = work + at.bias + lane * at.sum_row + first_vector * kL;
    for (int64_t t = first; t < end; t += kBlockTiles) {
        const Block block{t, least(kBlockTiles, end - t), first_vector * kL, least(end_vector * kL, outputs)};
        for (int64_t i = 0; i < at.d_row; i++) bias[i] = 0.f;
        switch (call.sources.dtype) {
            case f32: transform_block<float>(call, at, group, block, scratch, bias); break;
            case f16: transform_block<Half>(call, at, group, block, scratch, bias); break;
            case bf16: transform_block<BFloat16>(call, at, group, block, scratch, bias); break;
            case f64: break;
        }
        if (group == 0)
            for (int64_t i = 0; i < (end_vector - first_vector) * kL; i++) lane_bias[i] = t > first ? lane_bias[i] + bias[i] : bias[i];
        for (int q = 0; q < kGroupPoints; q++) {
            float* sums = work + at.sums + lane * at.lane + (kGroupRows[group][q / 6] * 6 + q % 6) * at.sum_plane;
            for (int64_t b = first_block; b < end_block; b++) {
                const int64_t vector = cut.vectors * b / cut.blocks, vectors = cut.vectors * (b + 1) / cut.blocks - vector;
                add_columns(vectors, scratch + q * at.v_plane, at.v_row,
                            scratch + at.d + q * at.d_plane + (vector - first_vector) * kL, at.d_row, inputs, block.count,
                            sums + vector * kL, at.sum_row, t > first);
            }
        }
    }
}

// G^T sums G into grad_weight (O, C, 3, 3), dense.
template <class T>
void finish(const Conv3x3GradWeight& call, const Layout& at, const float* work) {
    const int64_t inputs = call.sources.channels(), outputs = call.gradients.channels();
    const int64_t parts = call.shuffle * call.shuffle, per_part = outputs / parts;
    T* grad = static_cast<T*>(call.grad_weight);
    parallel_for((outputs + kL - 1) / kL, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t vector = begin; vector < end; vector++)
            for (int64_t c = 0; c < inputs; c++) {
                const float* sums = work + at.sums + c * at.sum_row + vector * kL;
                V half[3][6];
                for (int q = 0; q < 6; q++) {
                    V u[6], g[3];
                    for (int r = 0; r < 6; r++) {
                        u[r] = load_vec<kL>(sums + (r * 6 + q) * at.sum_plane);
                        for (int64_t lane = 1; lane < at.lanes; lane++)
                            u[r] += load_vec<kL>(sums + lane * at.lane + (r * 6 + q) * at.sum_plane);
                    }
                    transform_weight_adjoint(u, g);
                    for (int r = 0; r < 3; r++) half[r][q] = g[r];
                }
                float taps[9][kL];
                for (int r = 0; r < 3; r++) {
                    V g[3];
                    transform_weight_adjoint(half[r], g);
                    for (int q = 0; q < 3; q++) store_vec<kL>(taps[r * 3 + q], g[q]);
                }
                for (int64_t lane = 0; lane < kL && vector * kL + lane < outputs; lane++) {
                    const int64_t column = vector * kL + lane, o = column % per_part * parts + column / per_part;
                    for (int k = 0; k < 9; k++) grad[(o * inputs + c) * 9 + k] = store<T>(taps[k][lane]);
                }
            }
    });
    if (call.grad_bias == nullptr) return;
    for (int64_t column = 0; column < outputs; column++) {
        float sum = work[at.bias + column];
        for (int64_t lane = 1; lane < at.lanes; lane++) sum += work[at.bias + lane * at.sum_row + column];
        static_cast<T*>(call.grad_bias)[column % per_part * parts + column / per_part] = store<T>(sum);
    }
}

}  // namespace

int64_t conv3x3_grad_weight_bytes(const Conv3x3GradWeight& call) {
    return Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_grad_weight(const Conv3x3GradWeight& call, float* work) {
    const Layout at(call);
    const int64_t tasks = at.lanes * at.passes * kRowGroups;
    parallel_for(call.threads, call.threads, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; thread++) {
            float* scratch = work + at.scratch + thread * at.thread_floats;
            __builtin_memset(scratch + at.zeros, 0, (at.thread_floats - at.zeros) * sizeof(float));
            for (int64_t task = tasks * thread / call.threads; task < tasks * (thread + 1) / call.threads; task++)
                run_task(call, at, task, work, scratch);
        }
    });
    switch (call.dtype) {
        case f32: return finish<float>(call, at, work);
        case f16: return finish<Half>(call, at, work);
        case bf16: return finish<BFloat16>(call, at, work);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
