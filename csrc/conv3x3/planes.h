// SPDX-License-Identifier: Apache-2.0
// Conversion of rows of a feature map to planes of floats, one per channel, including the padding around the map. A plane is
// one contiguous sequence of rows of `row` elements. The neighbours of element i are at i + dy * row + dx, so that one loop
// over the whole plane replaces loops over rows with remainders. Its results between two rows are discarded.
#pragma once
#include "conv3x3/tiles.h"
#include "core/transpose_simd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

constexpr int64_t kPlanes = 16;                             // channels that are converted at once
constexpr int kRunVectors = FASTDS_MANY_REGISTERS ? 6 : 3;  // vectors of a plane that are processed at once

// Sizes of the planes of a band of rows.
struct Band {
    int64_t rows;   // rows of outputs
    int64_t row;    // elements of a row
    int64_t plane;  // elements of a plane, including those that the last vector reads beyond the end; an odd number of cache lines

    Band(const Conv3x3Geometry& g, int64_t rows)
        : rows(rows), row(g.Wo + 2), plane(round_up((rows + 2) * row + 2 + kRunVectors * kL, 16) | 16) {}
    int64_t length() const { return rows * row; }
};

inline int64_t get_row_bytes(const Conv3x3Map& map, int64_t width) { return width * map.channels * (map.dtype == f32 ? 4 : 2); }

// Converts n values to float. Writes whole vectors with zeros after the last value.
template <class T>
void convert_to_float(const T* from, int64_t n, float* to) {
    for (int64_t i = 0; i < n; i += kL) store_vec<kL>(to + i, load_partial(from + i, static_cast<int>(min_of(n - i, kL))));
}

// Inverse of transpose_registers: the columns of a block, one after the other, become its N rows.
template <int N>
FASTDS_HD void transpose_registers_inverse(V (&rows)[N]) {
    for (int round = 1; round < N; round *= 2) {
        V next[N];
#pragma GCC unroll 4
        for (int i = 0; i < N / 2; i++) {
            next[i] = every_second<0>(rows[2 * i], rows[2 * i + 1], lanes_of<kL>{});
            next[i + N / 2] = every_second<1>(rows[2 * i], rows[2 * i + 1], lanes_of<kL>{});
        }
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) rows[i] = next[i];
    }
}

// to[c * plane + x] = from[x * count + c] with 1 < count <= N. Reads and writes whole vectors, beyond the last element.
template <int N>
void deinterleave_pixels(const float* from, int64_t count, int64_t width, float* to, int64_t plane) {
    for (int64_t x = 0; x < width; x += kL) {
        float numbers[N * kL];
        for (int pixel = 0; count < N && pixel < kL; pixel++)
            __builtin_memcpy(numbers + pixel * N, from + (x + pixel) * count, N * sizeof(float));
        const float* next = count == N ? from + x * N : numbers;
        V rows[N];
#pragma GCC unroll 8
        for (int i = 0; i < N; i++) rows[i] = load_vec<kL>(next + i * kL);
        transpose_registers_inverse(rows);
#pragma GCC unroll 8
        for (int i = 0; i < N; i++)
            if (i < count) store_vec<kL>(to + i * plane + x, rows[i]);
    }
}

// to[x * count + c] = from[c * plane + x] with 1 < count <= N. Reads and writes whole vectors, beyond the last element.
template <int N>
void interleave_planes(const float* from, int64_t plane, int64_t count, int64_t width, float* to) {
    for (int64_t x = 0; x < width; x += kL) {
        V rows[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) rows[i] = i < count ? load_vec<kL>(from + i * plane + x) : V{};
        transpose_registers(rows);
        float numbers[N * kL];
        float* next = count == N ? to + x * N : numbers;
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) store_vec<kL>(next + i * kL, rows[i]);
        // Each copy writes beyond its pixel; the copy of the next pixel overwrites the excess.
        for (int pixel = 0; count < N && pixel < kL; pixel++)
            __builtin_memcpy(to + (x + pixel) * count, numbers + pixel * N, N * sizeof(float));
    }
}

inline void interleave_planes(const float* from, int64_t plane, int64_t count, int64_t width, float* to) {
    if (count == 2) return interleave_planes<2>(from, plane, count, width, to);
    if (count <= 4) return interleave_planes<4>(from, plane, count, width, to);
    if (count <= 8) return interleave_planes<8>(from, plane, count, width, to);
    transpose_rows(reinterpret_cast<const uint32_t*>(from), plane, count, width, reinterpret_cast<uint32_t*>(to), count);
}

// Converts a row of `width` pixels with `count` contiguous channels to `count` planes. `work` has at least kPlanes * width
// elements.
template <class T>
void deinterleave_row(const T* from, int64_t pixel, int64_t width, int64_t count, float* work, float* to, int64_t plane) {
    if (pixel == count && 1 < count && count <= 8) {
        convert_to_float(from, width * count, work);
        if (count == 2) return deinterleave_pixels<2>(work, count, width, to, plane);
        return count <= 4 ? deinterleave_pixels<4>(work, count, width, to, plane) : deinterleave_pixels<8>(work, count, width, to, plane);
    }
    if constexpr (sizeof(T) == sizeof(float)) {
        transpose_rows(reinterpret_cast<const uint32_t*>(from), pixel, width, count, reinterpret_cast<uint32_t*>(to), plane);
    } else {
        uint16_t* rows = reinterpret_cast<uint16_t*>(work);
        transpose_rows(reinterpret_cast<const uint16_t*>(from), pixel, width, count, rows, width);
        for (int64_t c = 0; c < count; c++) convert_to_float(reinterpret_cast<const T*>(rows) + c * width, width, to + c * plane);
    }
}

// The padding columns of a row and, for each, the column whose value it takes (-1 for zero).
struct Margin {
    int count = 0;
    int64_t column[4], from[4];

    explicit Margin(const Conv3x3Geometry& g) {
        for (int i = 1; i <= g.pad_w; i++)
            for (int64_t outside = -i; outside < g.W + i; outside += g.W + 2 * i - 1) {
                column[count] = outside;
                from[count++] = apply_padding(outside, g.W, g.mode_w);
            }
    }
    void fill(float* row) const {
        for (int i = 0; i < count; i++) row[column[i]] = from[i] < 0 ? 0.f : row[from[i]];
    }
};

// Converts the channels [channels.begin, channels.end) of image b, from output row `first` on. For `work` see deinterleave_row.
template <class T>
void convert_to_planes(const Conv3x3Geometry& g, const Conv3x3Map& map, Range channels, int64_t b, int64_t first, const Band& band,
             float* work, float* to) {
    const Margin margin(g);
    const int64_t count = channels.end - channels.begin;
    const T* image = static_cast<const T*>(map.data) + b * map.b + channels.begin * map.c;
    for (int64_t r = 0; r < band.rows + 2; r++) {
        const int64_t y = apply_padding(first + r - g.pad_h, g.H, g.mode_h);
        float* row = to + r * band.row;
        if (y < 0) {
            for (int64_t c = 0; c < count; c++) __builtin_memset(row + c * band.plane, 0, band.row * sizeof(float));
            continue;
        }
        const T* source = image + y * map.h;
        if (map.w != 1 && map.c == 1)
            deinterleave_row(source, map.w, g.W, count, work, row + g.pad_w, band.plane);
        else
            for (int64_t c = 0; c < count; c++) convert_to_float(source + c * map.c, g.W, row + g.pad_w + c * band.plane);
        for (int64_t c = 0; c < count; c++) margin.fill(row + g.pad_w + c * band.plane);
    }
    // Zeros what the last vector of a plane reads beyond the last row (see clear_excess_tiles in engine.h).
    float* after_rows = to + (band.rows + 2) * band.row;
    for (int64_t c = 0; c < count; c++) __builtin_memset(after_rows + c * band.plane, 0, (kL + 2) * sizeof(float));
}

inline void convert_to_planes(const Conv3x3Geometry& g, const Conv3x3Map& map, Range channels, int64_t b, int64_t first,
                              const Band& band,
                    float* work, float* to) {
    switch (map.dtype) {
        case f32: return convert_to_planes<float>(g, map, channels, b, first, band, work, to);
        case f16: return convert_to_planes<Half>(g, map, channels, b, first, band, work, to);
        case bf16: return convert_to_planes<BFloat16>(g, map, channels, b, first, band, work, to);
        case f64: break;
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
