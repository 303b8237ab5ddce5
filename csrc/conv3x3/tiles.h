// SPDX-License-Identifier: Apache-2.0
// The one-dimensional Winograd transforms, and their application to tiles of 4x4 outputs.
#pragma once
#include "conv3x3/params.h"
#include "core/activation.h"
#include "core/gemm.h"
#include "core/isa.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// One-dimensional transforms of Winograd's F(4, 3) with the points 0, +-sqrt(1/2), +-sqrt(2) and infinity. A two-dimensional
// transform applies them first to columns, then to rows. V is float or a vector of floats.
//
// y = A^T ((G g) * (B^T d)) gives four outputs y from six inputs d and three taps g. With these points the error is smaller by
// half a decimal digit than with 0, +-1, +-2.

constexpr float kRootHalf = 0.70710678118654752f, kRootTwo = 1.41421356237309505f;

// v = B^T d
template <class V>
FASTDS_HD void transform_input(const V (&d)[6], V (&v)[6]) {
    v[0] = d[0] - 2.5f * d[2] + d[4];
    const V even_half = d[4] - 2.f * d[2], odd_half = kRootHalf * (d[3] - 2.f * d[1]);
    v[1] = even_half + odd_half;
    v[2] = even_half - odd_half;
    const V even_two = d[4] - 0.5f * d[2], odd_two = kRootTwo * (d[3] - 0.5f * d[1]);
    v[3] = even_two + odd_two;
    v[4] = even_two - odd_two;
    v[5] = d[1] - 2.5f * d[3] + d[5];
}

// y = A^T m
template <class V>
FASTDS_HD void transform_output(const V (&m)[6], V (&y)[4]) {
    const V sum_half = m[1] + m[2], difference_half = m[1] - m[2], sum_two = m[3] + m[4], difference_two = m[3] - m[4];
    y[0] = m[0] + sum_half + sum_two;
    y[1] = kRootHalf * difference_half + kRootTwo * difference_two;
    y[2] = 0.5f * sum_half + 2.f * sum_two;
    y[3] = (0.5f * kRootHalf) * difference_half + (2.f * kRootTwo) * difference_two + m[5];
}

// m = A y, the adjoint of transform_output
template <class V>
FASTDS_HD void transform_output_adjoint(const V (&y)[4], V (&m)[6]) {
    m[0] = y[0];
    const V even_half = y[0] + 0.5f * y[2], odd_half = kRootHalf * y[1] + (0.5f * kRootHalf) * y[3];
    m[1] = even_half + odd_half;
    m[2] = even_half - odd_half;
    const V even_two = y[0] + 2.f * y[2], odd_two = kRootTwo * y[1] + (2.f * kRootTwo) * y[3];
    m[3] = even_two + odd_two;
    m[4] = even_two - odd_two;
    m[5] = y[3];
}

// u = G g
template <class V>
FASTDS_HD void transform_weight(const V (&g)[3], V (&u)[6]) {
    u[0] = g[0];
    const V even_half = (-2.f / 3.f) * g[0] - (1.f / 3.f) * g[2], odd_half = (-2.f / 3.f * kRootHalf) * g[1];
    u[1] = even_half + odd_half;
    u[2] = even_half - odd_half;
    const V even_two = (1.f / 6.f) * g[0] + (1.f / 3.f) * g[2], odd_two = (kRootTwo / 6.f) * g[1];
    u[3] = even_two + odd_two;
    u[4] = even_two - odd_two;
    u[5] = g[2];
}

// g = G^T u, the adjoint of transform_weight
template <class V>
FASTDS_HD void transform_weight_adjoint(const V (&u)[6], V (&g)[3]) {
    const V sum_half = u[1] + u[2], sum_two = u[3] + u[4];
    g[0] = u[0] - (2.f / 3.f) * sum_half + (1.f / 6.f) * sum_two;
    g[1] = (-2.f / 3.f * kRootHalf) * (u[1] - u[2]) + (kRootTwo / 6.f) * (u[3] - u[4]);
    g[2] = u[5] - (1.f / 3.f) * sum_half + (1.f / 3.f) * sum_two;
}

// Tiles of 4x4 outputs: the addresses of their pixels, and the transform of their inputs into 36 planes.

constexpr int kPoints = 36;

constexpr int64_t kPassColumns = 256, kLargePassColumns = 128;  // columns of M that are computed at once

// Returns whether the filters are far larger than the L2 cache. Blocks then have more tiles, and a pass has fewer columns.
inline bool has_large_filters(int64_t inputs, int64_t columns) { return inputs * columns > 64 << 10; }

// Order of the outputs in packed columns. The outputs of a pixel-shuffled convolution are in the order (sub-pixel, channel).
struct ColumnMap {
    int64_t columns, shuffle;

    // Returns the output of the convolution in a packed column, or -1 for a column of zeros.
    FASTDS_HD int64_t output(int64_t column) const {
        const int64_t parts = shuffle * shuffle, per_part = columns / parts;
        return column < columns ? column % per_part * parts + column / per_part : -1;
    }
};

// Returns the number of floats between two of the 36 packed matrices. The additional 16 floats are one cache line. If the size
// of a matrix is a multiple of 32 floats, the distance is then an odd number of cache lines, and the 36 elements of one filter
// fall into different sets of the cache. If they shared a few sets, packing would be several times slower.
FASTDS_HD int64_t packed_plane(int64_t inputs, const ColumnBlocks& cut) { return inputs * cut.vectors * kL + 16; }

inline ColumnMap get_column_map(const Conv3x3Call& call) { return {call.sinks.channels(), call.shuffle}; }

// Returns whether the engine computes all columns of a block of tiles before it runs the epilogue.
inline bool fits_one_pass(int64_t inputs, int64_t columns) {
    return round_up(columns, kL) <= (has_large_filters(inputs, columns) ? kLargePassColumns : kPassColumns);
}

struct Tile {
    int64_t b, y, x;  // image, first row and first column of the outputs
};

FASTDS_HD Tile get_tile(const Conv3x3Geometry& g, int64_t index) {
    const int64_t per_image = g.tiles_h() * g.tiles_w(), in_image = index % per_image;
    return {index / per_image, in_image / g.tiles_w() * 4, in_image % g.tiles_w() * 4};
}

FASTDS_HD void advance_tile(const Conv3x3Geometry& g, Tile& tile) {
    tile.x += 4;
    if (tile.x < g.Wo) return;
    tile.x = 0;
    tile.y += 4;
    if (tile.y < g.Ho) return;
    tile.y = 0;
    tile.b++;
}

// Returns the input row or column that padding supplies at position i, or -1 for zero.
FASTDS_HD int64_t apply_padding(int64_t i, int64_t size, int mode) {
    if (i >= 0 && i < size) return i;
    if (mode == pad_zeros) return -1;
    if (mode == pad_replicate) return i < 0 ? 0 : size - 1;
    const int64_t rest = i % size;
    return rest < 0 ? rest + size : rest;
}

// Addresses of the N x N pixels of a tile in one view.
template <class T, int N>
struct Pixels {
    const T* first;      // for a tile inside the image
    int64_t h, w;        // strides
    const T* at[N * N];  // for any other tile
};

// Finds the pixels of a tile. A row or column of -1 means a pixel of zeros.
template <bool Inside, class T, int N>
FASTDS_HD void find_pixels(Pixels<T, N>& pixels, const void* data, const Conv3x3View& view, int64_t b, const int64_t* row,
                           const int64_t* column, const T* zeros) {
    const T* base = static_cast<const T*>(data) + b * view.b;
    pixels.h = view.h;
    pixels.w = view.w;
    if constexpr (Inside) {
        pixels.first = base + row[0] * view.h + column[0] * view.w;
    } else {
        for (int r = 0; r < N; r++)
            for (int c = 0; c < N; c++)
                pixels.at[r * N + c] = row[r] < 0 || column[c] < 0 ? zeros : base + row[r] * view.h + column[c] * view.w;
    }
}

// Returns `value` where the activation's output is positive, otherwise slope * value.
FASTDS_HD V activation_gradient(V value, V output, float slope) { return output > 0.f ? value : value * slope; }

// Loads column c of a tile's pixels, `count` channels from `channel` on. It also prefetches the pixels that the next tile does
// not share with this one, because the hardware does not prefetch rows of six pixels well enough.
template <bool Inside, bool Signed, class T, int N>
FASTDS_HD void load_column(const Pixels<T, N>& data, const Pixels<T, N>& sign, int c, int64_t channel, int count, float slope,
                           V (&d)[N]) {
    const T* top = Inside ? opaque(data.first + c * data.w + channel) : nullptr;
    const T* sign_top = Inside && Signed ? opaque(sign.first + c * sign.w + channel) : nullptr;
#pragma GCC unroll 6
    for (int r = 0; r < N; r++) {
        const T* at = Inside ? top + r * data.h : data.at[r * N + c] + channel;
        d[r] = load_partial(at, count);
        if (!Signed) continue;
        const T* sign_at = Inside ? sign_top + r * sign.h : sign.at[r * N + c] + channel;
        d[r] = activation_gradient(d[r], load_partial(sign_at, count), slope);
    }
    if (!Inside || c < N - 4) return;
    top = opaque(top + 4 * data.w);
    if (Signed) sign_top = opaque(sign_top + 4 * sign.w);
#pragma GCC unroll 6
    for (int r = 0; r < N; r++) {
        __builtin_prefetch(top + r * data.h);
        if (Signed) __builtin_prefetch(sign_top + r * sign.h);
    }
}

// Two-dimensional transform of N x N pixels of one vector of channels into 36 planes. column(c, d) loads a column of pixels.
// one(in, out) is the one-dimensional transform, applied to columns, then to rows.
template <int N, class Column, class One>
FASTDS_HD void transform_planes(const Column& column, const One& one, float* out, int64_t plane) {
    V half[6][N];
#pragma GCC unroll 6
    for (int c = 0; c < N; c++) {
        V d[N], v[6];
        column(c, d);
        one(d, v);
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) half[r][c] = v[r];
    }
#pragma GCC unroll 6
    for (int r = 0; r < 6; r++) {
        V v[6];
        one(half[r], v);
        float* row = opaque(out + r * 6 * plane);
#pragma GCC unroll 6
        for (int c = 0; c < 6; c++) store_vec<kL>(row + c * plane, v[c]);
    }
}

// Rows and columns of the 6x6 inputs of a tile.
struct InputWindow {
    int64_t row[6], column[6];
    bool inside;  // no padding needed
};
FASTDS_HD InputWindow input_window(const Conv3x3Geometry& g, const Tile& tile) {
    InputWindow w;
    const int64_t y = tile.y - g.pad_h, x = tile.x - g.pad_w;
    w.inside = y >= 0 && y + 6 <= g.H && x >= 0 && x + 6 <= g.W;
    for (int i = 0; i < 6; i++) {
        w.row[i] = w.inside ? y + i : apply_padding(y + i, g.H, g.mode_h);
        w.column[i] = w.inside ? x + i : apply_padding(x + i, g.W, g.mode_w);
    }
    return w;
}

// Computes B^T d B for the channels of one view of a tile.
template <bool Inside, class T, bool Signed>
inline void transform_view(const Conv3x3View& view, const Tile& tile, const InputWindow& window, float slope, const T* zeros,
                           float* out, int64_t plane) {
    Pixels<T, 6> data, sign;
    find_pixels<Inside>(data, view.data, view, tile.b, window.row, window.column, zeros);
    if (Signed) find_pixels<Inside>(sign, view.sign, view, tile.b, window.row, window.column, zeros);
    const auto transform = [](const V(&d)[6], V(&v)[6]) { transform_input(d, v); };
    const auto vector = [&](int64_t channel, int count) {
        transform_planes<6>(
            [&](int c, V(&d)[6]) { load_column<Inside, Signed>(data, sign, c, channel, count, slope, d); }, transform,
            out + channel, plane);
    };
    for_vectors(view.channels, vector);
}

// Transforms all channels of one tile to out[p * plane + channel]. The last vector of a view writes beyond its channels, where
// the next view then writes its own. A row therefore needs source_columns() floats.
template <class T, bool Signed>
inline void transform_tile(const Conv3x3Geometry& g, const Conv3x3Views& sources, const Tile& tile, float slope, const T* zeros,
                           float* out, int64_t plane) {
    const InputWindow window = input_window(g, tile);
    for (int s = 0; s < sources.count; s++) {
        const Conv3x3View& view = sources.view[s];
        if (window.inside)
            transform_view<true, T, Signed>(view, tile, window, slope, zeros, out, plane);
        else
            transform_view<false, T, Signed>(view, tile, window, slope, zeros, out, plane);
        out += view.channels;
    }
}

// Returns the number of floats of one tile in a plane of transformed sources.
inline int64_t source_columns(const Conv3x3Views& sources) {
    int64_t first = 0, end = 0;
    for (int s = 0; s < sources.count; s++) {
        const int64_t last = first + round_up(sources.view[s].channels, kL);
        if (last > end) end = last;
        first += sources.view[s].channels;
    }
    return round_up(end, kL);
}

inline int64_t get_max_channels(const Conv3x3Views& views) {
    int64_t most = 0;
    for (int s = 0; s < views.count; s++)
        if (views.view[s].channels > most) most = views.view[s].channels;
    return most;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
