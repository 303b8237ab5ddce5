// SPDX-License-Identifier: Apache-2.0
// Gradient of the filters in the Winograd domain: grad_weight = G^T [ sum over tiles of V^T (A grad A^T) ] G, and with it the
// gradient of the bias.
//
// A group of tiles is transformed by all threads, then each thread adds the products of its own points and columns. Sums run
// over blocks of kSumTiles tiles, each from zero, in the order of the tiles: neither precision nor order know the threads.
#include "conv3x3/tiles.h"
#include "core/parallel.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kSumTiles = 64, kBiasTiles = 16;
constexpr int64_t kGroupBytes = 8 << 20;  // of transformed tiles: a part of the shared cache

struct Layout {
    int64_t group;                      // tiles
    int64_t v_row, v_plane, d_row, d_plane, sum_plane;
    int64_t v, d, sums, bias, bias_parts, zeros, floats;

    explicit Layout(const Conv3x3GradWeight& call) {
        const int64_t tiles = call.geometry.tiles(), inputs = call.sources.channels();
        v_row = source_columns(call.sources);
        d_row = source_columns(call.gradients);
        const int64_t fit = kGroupBytes / (kPoints * (v_row + d_row) * static_cast<int64_t>(sizeof(float)));
        group = least(round_up(fit > 0 ? fit : 1, kSumTiles), round_up(tiles > 0 ? tiles : 1, kBiasTiles));
        v_plane = group * v_row + 16;
        d_plane = group * d_row + 16;
        sum_plane = (inputs + 3) * d_row;  // add_products may write three rows too many
        v = 0;
        d = kPoints * v_plane;
        sums = d + kPoints * d_plane;
        bias = sums + kPoints * sum_plane;
        bias_parts = bias + d_row;
        zeros = bias_parts + (group + kBiasTiles - 1) / kBiasTiles * d_row;
        const int64_t wide = widest(call.sources), wide_gradients = widest(call.gradients);
        floats = round_up(zeros + (wide > wide_gradients ? wide : wide_gradients) + kL, 16);
    }
};

// A g A^T of one tile and one vector of channels into 36 planes; adds the tile's sum to bias.
template <class T, bool Signed>
FASTDS_HD void adjoint_vector(const Pixels<T, 4>& data, const Pixels<T, 4>& sign, int64_t channel, int count, float slope,
                              float* out, int64_t plane, float* bias) {
    V half[6][4], sum = load_vec<kL>(bias);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        V g[4], m[6];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) g[r] = load_pixel<T, 4, Signed>(data, sign, r * 4 + c, channel, count, slope);
        sum += (g[0] + g[1]) + (g[2] + g[3]);
        transform_output_adjoint(g, m);
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) half[r][c] = m[r];
    }
    store_vec<kL>(bias, sum);
#pragma GCC unroll 6
    for (int r = 0; r < 6; r++) {
        V m[6];
        transform_output_adjoint(half[r], m);
#pragma GCC unroll 6
        for (int c = 0; c < 6; c++) store_vec<kL>(out + (r * 6 + c) * plane, m[c]);
    }
}

template <class T, bool Signed>
void adjoint_tile(const Conv3x3GradWeight& call, const Tile& tile, const T* zeros, float* out, int64_t plane, float* bias) {
    int64_t row[4], column[4];
    for (int i = 0; i < 4; i++) {
        row[i] = tile.y + i < call.geometry.Ho ? tile.y + i : -1;
        column[i] = tile.x + i < call.geometry.Wo ? tile.x + i : -1;
    }
    for (int s = 0; s < call.gradients.count; s++) {
        const Conv3x3View& view = call.gradients.view[s];
        Pixels<T, 4> data, sign;
        find_pixels(data, view.data, view, tile.b, row, column, zeros);
        if (Signed) find_pixels(sign, view.sign, view, tile.b, row, column, zeros);
        for (int64_t channel = 0; channel < view.channels; channel += kL) {
            const int64_t left = view.channels - channel;
            if (left >= kL)
                adjoint_vector<T, Signed>(data, sign, channel, kL, call.negative_slope, out + channel, plane, bias + channel);
            else
                adjoint_vector<T, Signed>(data, sign, channel, static_cast<int>(left), call.negative_slope, out + channel, plane,
                                          bias + channel);
        }
        out += view.channels;
        bias += view.channels;
    }
}

// Tiles [first, first + count) of kBiasTiles at most, standing at row `at_row` of the planes.
template <class T, class U>
void transform_part(const Conv3x3GradWeight& call, const Layout& at, int64_t first, int64_t count, int64_t at_row, float* work) {
    const T* zeros = reinterpret_cast<const T*>(work + at.zeros);
    const U* gradient_zeros = reinterpret_cast<const U*>(work + at.zeros);
    float* bias = work + at.bias_parts + at_row / kBiasTiles * at.d_row;
    for (int64_t i = 0; i < at.d_row; i++) bias[i] = 0.f;
    for (int64_t i = 0; i < count; i++) {
        const Tile tile = tile_at(call.geometry, first + i);
        transform_tile<T, false>(call.geometry, call.sources, tile, 0.f, zeros, work + at.v + (at_row + i) * at.v_row, at.v_plane);
        float* d = work + at.d + (at_row + i) * at.d_row;
        if (call.gradients.view[0].sign != nullptr)
            adjoint_tile<U, true>(call, tile, gradient_zeros, d, at.d_plane, bias);
        else
            adjoint_tile<U, false>(call, tile, gradient_zeros, d, at.d_plane, bias);
    }
}

template <class T>
void transform_part(const Conv3x3GradWeight& call, const Layout& at, int64_t first, int64_t count, int64_t at_row, float* work) {
    switch (call.gradients.dtype) {
        case f32: return transform_part<T, float>(call, at, first, count, at_row, work);
        case f16: return transform_part<T, Half>(call, at, first, count, at_row, work);
        case bf16: return transform_part<T, BFloat16>(call, at, first, count, at_row, work);
        case f64: break;
    }
}

// sums[c, 0:NV*L] (+)= sum over tiles of V[t, c] * D[t, 0:NV*L] for MR inputs c.
template <int MR, int NV>
inline void add_rows(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t tiles, float* sums, bool add) {
    V acc[MR][NV];
    clear<float>(acc);
    multiply<FmaStep<float>, MR, NV>(acc, v, 1, v_row, d, d_row, tiles);
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) {
            float* at = sums + i * d_row + j * kL;
            store_vec<kL>(at, add ? acc[i][j] + load_vec<kL>(at) : acc[i][j]);
        }
}

template <int NV>
inline void add_products(const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles, float* sums,
                         bool add) {
    constexpr int MR = tile_rows(NV);
    for (int64_t t = 0; t < tiles; t += kSumTiles, add = true) {
        const int64_t count = least(kSumTiles, tiles - t);
        const float *v_at = v + t * v_row, *d_at = d + t * d_row;
        int64_t c = 0;
        for (; c + MR <= inputs; c += MR) add_rows<MR, NV>(v_at + c, v_row, d_at, d_row, count, sums + c * d_row, add);
        for (; c < inputs; c += 4) add_rows<4, NV>(v_at + c, v_row, d_at, d_row, count, sums + c * d_row, add);
    }
}

void add_block(int64_t vectors, const float* v, int64_t v_row, const float* d, int64_t d_row, int64_t inputs, int64_t tiles,
               float* sums, bool add) {
    switch (vectors) {
        case 1: return add_products<1>(v, v_row, d, d_row, inputs, tiles, sums, add);
        case 2: return add_products<2>(v, v_row, d, d_row, inputs, tiles, sums, add);
#if defined(__AVX512F__)
        case 3: return add_products<3>(v, v_row, d, d_row, inputs, tiles, sums, add);
        case 4: return add_products<4>(v, v_row, d, d_row, inputs, tiles, sums, add);
#endif
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
                const float* sums = work + at.sums + c * at.d_row + vector * kL;
                V half[3][6];
                for (int q = 0; q < 6; q++) {
                    V u[6], g[3];
                    for (int r = 0; r < 6; r++) u[r] = load_vec<kL>(sums + (r * 6 + q) * at.sum_plane);
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
    for (int64_t column = 0; column < outputs; column++)
        static_cast<T*>(call.grad_bias)[column % per_part * parts + column / per_part] = store<T>(work[at.bias + column]);
}

}  // namespace

int64_t conv3x3_grad_weight_bytes(const Conv3x3GradWeight& call) {
    return Layout(call).floats * static_cast<int64_t>(sizeof(float));
}

void conv3x3_grad_weight(const Conv3x3GradWeight& call, float* work) {
    const Layout at(call);
    const int64_t tiles = call.geometry.tiles(), inputs = call.sources.channels();
    const ColumnBlocks cut = column_blocks<float>(call.gradients.channels());
    __builtin_memset(work + at.bias, 0, at.d_row * sizeof(float));
    __builtin_memset(work + at.zeros, 0, (at.floats - at.zeros) * sizeof(float));
    for (int64_t first = 0; first < tiles; first += at.group) {
        const int64_t count = least(at.group, tiles - first), chunks = (count + kBiasTiles - 1) / kBiasTiles;
        parallel_for(chunks, call.threads, [&](int64_t begin, int64_t end) {
            for (int64_t chunk = begin; chunk < end; chunk++) {
                const int64_t row = chunk * kBiasTiles, part = least(kBiasTiles, count - row);
                switch (call.sources.dtype) {
                    case f32: transform_part<float>(call, at, first + row, part, row, work); break;
                    case f16: transform_part<Half>(call, at, first + row, part, row, work); break;
                    case bf16: transform_part<BFloat16>(call, at, first + row, part, row, work); break;
                    case f64: break;
                }
            }
        });
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (int64_t i = 0; i < at.d_row; i++) work[at.bias + i] += work[at.bias_parts + chunk * at.d_row + i];
        parallel_for(kPoints * cut.blocks, call.threads, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; task++) {
                const int64_t p = task / cut.blocks, b = task % cut.blocks, vector = cut.vectors * b / cut.blocks;
                add_block(cut.vectors * (b + 1) / cut.blocks - vector, work + at.v + p * at.v_plane, at.v_row,
                          work + at.d + p * at.d_plane + vector * kL, at.d_row, inputs, count,
                          work + at.sums + p * at.sum_plane + vector * kL, first > 0);
            }
        });
    }
    if (tiles == 0) __builtin_memset(work + at.sums, 0, kPoints * at.sum_plane * sizeof(float));
    switch (call.dtype) {
        case f32: return finish<float>(call, at, work);
        case f16: return finish<Half>(call, at, work);
        case bf16: return finish<BFloat16>(call, at, work);
        case f64: break;
    }
}

}  // namespace FASTDS_ISA
}  // namespace fastds
