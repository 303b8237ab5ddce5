// SPDX-License-Identifier: Apache-2.0
// The output stage: A^T m A of a tile and what follows it, in registers. A stage takes finished pixels; StoreStage adds bias
// and residual, applies the activation and stores into the sinks.
#pragma once
#include "conv3x3/tiles.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// y = A^T m A for one vector of columns; m[p * plane].
FASTDS_HD void finish_vector(const float* m, int64_t plane, V (&y)[4][4]) {
    V half[4][6];
#pragma GCC unroll 6
    for (int c = 0; c < 6; c++) {
        V column[6], out[4];
        const float* top = opaque(m + c * plane);
#pragma GCC unroll 6
        for (int r = 0; r < 6; r++) column[r] = load_vec<kL>(top + r * 6 * plane);
        transform_output(column, out);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) half[r][c] = out[r];
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) transform_output(half[r], y[r]);
}

// Stores past the caches: for outputs that would not stay there anyway. Reads no line before writing it.
#if defined(__AVX512F__)
constexpr bool kCanStream = true;
FASTDS_HD void stream_vec(void* p, V v) { _mm512_stream_ps(static_cast<float*>(p), (__m512)v); }
#elif defined(__AVX2__)
constexpr bool kCanStream = true;
FASTDS_HD void stream_vec(void* p, V v) { _mm256_stream_ps(static_cast<float*>(p), (__m256)v); }
#else
constexpr bool kCanStream = false;  // and never called
FASTDS_HD void stream_vec(void* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
#endif

// Makes a thread's streamed stores visible to the others.
FASTDS_HD void stream_fence() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

inline void stream_bytes(char* to, const char* from, int64_t bytes) {
    const int64_t head = least(bytes, -reinterpret_cast<intptr_t>(to) & (kVectorBytes - 1));
    __builtin_memcpy(to, from, head);
    int64_t done = head;
    for (; done + kVectorBytes <= bytes; done += kVectorBytes)
        stream_vec(to + done, load_vec<kL>(reinterpret_cast<const float*>(from + done)));
    __builtin_memcpy(to + done, from + done, bytes - done);
}

enum class Store { cached, streamed, staged };  // staged: streamed from a copy of the tile, for pixels off the vector's alignment

// y = act(y + bias + residual), stored. Columns are the sinks' channels side by side.
template <class T, Store How>
struct StoreStage {
    const Conv3x3Call& call;
    const float* bias;  // one per column, padded to whole vectors
    T* staging;         // of one tile's 16 pixels

    FASTDS_HD V activate(V v) const {
        if (call.act == act_relu) return v < 0.f ? V{} : v;
        if (call.act == act_leaky_relu) return v < 0.f ? v * call.negative_slope : v;
        return v;
    }

    // Residual of columns [column, column + count) at a pixel; the residual has the channel order before the shuffle.
    FASTDS_HD V residual(const T* pixel, int64_t column, int count) const {
        if (call.shuffle == 1) return count == kL ? load_vec<kL>(pixel + column) : load_lanes(pixel + column, count);
        const int64_t parts = call.shuffle * call.shuffle, per_part = call.residual.channels / parts;
        float lanes[kL] = {};
        for (int i = 0; i < count; i++) lanes[i] = load(pixel[(column + i) % per_part * parts + (column + i) / per_part]);
        return load_vec<kL>(lanes);
    }

    // Adds bias and residual and activates; rows x columns of the tile's 4 x 4 pixels exist.
    FASTDS_HD void complete(const Tile& tile, int rows, int columns, int64_t column, int count, V (&y)[4][4]) const {
        const V bias_here = load_vec<kL>(bias + column);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) y[r][c] += bias_here;
        if (call.residual.data != nullptr) {
            const Conv3x3View& view = call.residual;
            const T* at = static_cast<const T*>(view.data) + tile.b * view.b + tile.y * view.h + tile.x * view.w;
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < columns; c++) y[r][c] += residual(at + r * view.h + c * view.w, column, count);
        }
        if (call.act != act_none) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) y[r][c] = activate(y[r][c]);
        }
    }

    FASTDS_HD void store(const Tile& tile, int rows, int columns, int64_t column, int count, V (&y)[4][4]) const {
        if (How == Store::staged) {
            const int64_t pixel = call.sinks.view[0].channels;
            store_pixels(staging + column, 4 * pixel, pixel, rows, columns, 0, count, y);
            return;
        }
        // The sinks that these columns fall into.
        int64_t first = 0;
        for (int s = 0, done = 0; done < count; first += call.sinks.view[s++].channels) {
            const Conv3x3View& sink = call.sinks.view[s];
            const int64_t channel = column + done - first;
            if (channel >= sink.channels) continue;
            const int here = static_cast<int>(least(count - done, sink.channels - channel));
            T* at = static_cast<T*>(sink.data) + tile.b * sink.b + tile.y * sink.h + tile.x * sink.w + channel;
            store_pixels(at, sink.h, sink.w, rows, columns, done, here, y);
            done += here;
        }
    }

    // Fetches the pixels of the tile to the right, which is finished next: their lines arrive while this tile is transformed.
    FASTDS_HD void fetch_next(const Tile& tile, int64_t column) const {
        if (How != Store::cached || call.sinks.count > 1) return;
        const Conv3x3View& sink = call.sinks.view[0];
        const T* at = static_cast<const T*>(sink.data) + tile.b * sink.b + tile.y * sink.h + (tile.x + 4) * sink.w + column;
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) __builtin_prefetch(at + r * sink.h + c * sink.w, 1);
    }

    // Lanes [from, from + count) of the pixels.
    FASTDS_HD void store_pixels(T* at, int64_t row, int64_t pixel, int rows, int columns, int from, int count, V (&y)[4][4]) const {
        if (count == kL) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                if (r >= rows) break;
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) {
                    if (c >= columns) break;
                    if constexpr (How == Store::streamed)
                        stream_vec(at + r * row + c * pixel, y[r][c]);
                    else
                        store_vec<kL>(at + r * row + c * pixel, y[r][c]);
                }
            }
            return;
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                T* to = at + r * row + c * pixel;
                if (from == 0) {
                    store_lanes(to, y[r][c], count);
                } else {
                    float lanes[kL];
                    store_vec<kL>(lanes, y[r][c]);
                    for (int i = 0; i < count; i++) to[i] = fastds::FASTDS_ISA::store<T>(lanes[from + i]);
                }
            }
    }

    // After the last column of a tile.
    FASTDS_HD void end(const Tile& tile, int rows, int columns) const {
        if (How != Store::staged) return;
        const Conv3x3View& sink = call.sinks.view[0];
        T* at = static_cast<T*>(sink.data) + tile.b * sink.b + tile.y * sink.h + tile.x * sink.w;
        for (int r = 0; r < rows; r++)
            stream_bytes(reinterpret_cast<char*>(at + r * sink.h), reinterpret_cast<const char*>(staging + r * 4 * sink.channels),
                         columns * sink.channels * sizeof(T));
    }
};

// Finishes columns [column, end) of one tile, whose row in plane 0 starts at m (column `column` first).
template <class Stage>
inline void finish_tile(const Conv3x3Geometry& g, const Stage& stage, const Tile& tile, const float* m, int64_t plane,
                        int64_t column, int64_t end) {
    const int rows = static_cast<int>(least(4, g.Ho - tile.y)), columns = static_cast<int>(least(4, g.Wo - tile.x));
    for (; column < end; column += kL, m += kL) {
        V y[4][4];
        stage.fetch_next(tile, column);
        finish_vector(m, plane, y);
        const int count = static_cast<int>(least(kL, end - column));
        stage.complete(tile, rows, columns, column, count, y);
        stage.store(tile, rows, columns, column, count, y);
    }
    stage.end(tile, rows, columns);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
