// SPDX-License-Identifier: Apache-2.0
// Epilogue of the Winograd engine. It computes A^T m A of a tile in registers. StoreEpilogue then adds bias and residual,
// applies the activation and stores the outputs in the sinks (params.h).
#pragma once
#include "conv3x3/tiles.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Computes y = A^T m A for one vector of columns. The vector at point p starts at m[p * plane].
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

// Copies the bias in the order of the columns to `bias`, padded with zeros to whole vectors. Without a bias all values are
// zero.
inline const float* copy_bias(const Conv3x3Call& call, float* bias) {
    const ColumnMap map = get_column_map(call);
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

// Non-temporal stores, for outputs too large for the caches. They do not read a cache line before writing it.
#if defined(__AVX512F__)
constexpr bool kCanStream = true;
FASTDS_HD void stream_vec(void* p, V v) { _mm512_stream_ps(static_cast<float*>(p), (__m512)v); }
#elif defined(__AVX2__)
constexpr bool kCanStream = true;
FASTDS_HD void stream_vec(void* p, V v) { _mm256_stream_ps(static_cast<float*>(p), (__m256)v); }
#else
constexpr bool kCanStream = false;  // stream_vec is not called in this case
FASTDS_HD void stream_vec(void* p, V v) { __builtin_memcpy(p, &v, sizeof(v)); }
#endif

constexpr int64_t kLineBytes = 64;  // bytes of a cache line
// True if a vector fills a cache line. A non-temporal store of half a line becomes a separate, slow write to memory if the
// other half follows only after many other stores.
constexpr bool kFillsLine = kVectorBytes == kLineBytes;

// Makes the non-temporal stores of a thread visible to other threads.
FASTDS_HD void stream_fence() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

// Copies bytes with non-temporal stores for whole cache lines and ordinary stores for the rest. A line that is written in both
// ways goes to memory twice.
inline void stream_bytes(char* to, const char* from, int64_t bytes) {
    const int64_t head = min_of(bytes, -reinterpret_cast<intptr_t>(to) & (kLineBytes - 1));
    __builtin_memcpy(to, from, head);
    int64_t done = head;
    for (; done + kLineBytes <= bytes; done += kLineBytes)
#pragma GCC unroll 2
        for (int64_t i = done; i < done + kLineBytes; i += kVectorBytes)
            stream_vec(to + i, load_vec<kL>(reinterpret_cast<const float*>(from + i)));
    __builtin_memcpy(to + done, from + done, bytes - done);
}

// How outputs are stored. cached: ordinary stores. streamed: non-temporal stores of whole vectors. staged: the outputs of a
// tile are collected in a buffer and then written with non-temporal stores; this is used for contiguous pixels if they are not
// aligned to vectors or if a vector does not fill a cache line.
enum class Store { cached, streamed, staged };

// Computes y = act(y + bias + residual) and stores it in the outputs (`sinks`, see params.h). A column of the product is one
// channel of the concatenated outputs.
template <class T, Store How>
struct StoreEpilogue {
    const Conv3x3Call& call;
    const float* bias;  // one value per column, padded to whole vectors
    T* staging;         // buffer for the 16 pixels of one tile

    // Calls f(view, first column of the view, from, to) for each view that holds some of the columns [column, column + count).
    // The view holds the lanes [from, to).
    template <class F>
    static FASTDS_HD void for_views(const Conv3x3Views& views, int64_t column, int count, const F& f) {
        int64_t first = 0;
        for (int s = 0, done = 0; done < count; first += views.view[s++].channels) {
            const Conv3x3View& view = views.view[s];
            const int64_t left = first + view.channels - (column + done);
            if (left <= 0) continue;
            const int to = done + static_cast<int>(min_of(count - done, left));
            f(view, first, done, to);
            done = to;
        }
    }

    static FASTDS_HD T* get_pixels(const Conv3x3View& view, const Tile& tile) {
        return static_cast<T*>(view.data) + view.offset(tile.b, tile.y, tile.x);
    }

    // Adds the residual of the columns [column, column + count).
    FASTDS_HD void add_residual(const Tile& tile, int rows, int columns, int64_t column, int count, V (&y)[4][4]) const {
        if (call.shuffle > 1) return add_shuffled(tile, rows, columns, column, count, y);
        for_views(call.residual, column, count, [&](const Conv3x3View& view, int64_t first, int from, int to) {
            if (view.data == nullptr) return;
            const T* at = get_pixels(view, tile) + (column - first);
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < columns; c++) {
                    const T* pixel = at + r * view.h + c * view.w;
                    y[r][c] += to - from == kL ? load_vec<kL>(pixel) : load_range(pixel, from, to);
                }
        });
    }

    // Like add_residual, for a residual in one view whose channels are in the order before the pixel shuffle.
    FASTDS_HD void add_shuffled(const Tile& tile, int rows, int columns, int64_t column, int count, V (&y)[4][4]) const {
        const Conv3x3View& view = call.residual.view[0];
        const int64_t parts = call.shuffle * call.shuffle, per_part = view.channels / parts;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                const T* pixel = get_pixels(view, tile) + r * view.h + c * view.w;
                float lanes[kL] = {};
                for (int i = 0; i < count; i++)
                    lanes[i] = load(pixel[(column + i) % per_part * parts + (column + i) / per_part]);
                y[r][c] += load_vec<kL>(lanes);
            }
    }

    // Adds bias and residual and applies the activation. Only rows x columns of the 4 x 4 pixels of the tile exist.
    FASTDS_HD void complete(const Tile& tile, int rows, int columns, int64_t column, int count, V (&y)[4][4]) const {
        const V bias_here = load_vec<kL>(bias + column);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) y[r][c] += bias_here;
        if (call.residual.count > 0) add_residual(tile, rows, columns, column, count, y);
        if (call.act != act_none) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) y[r][c] = activate(y[r][c], call.act, call.negative_slope);
        }
    }

    FASTDS_HD void store(const Tile& tile, int rows, int columns, int64_t column, int count, V (&y)[4][4]) const {
        for_views(call.sinks, column, count, [&](const Conv3x3View& sink, int64_t first, int from, int to) {
            if (How == Store::staged)
                store_pixels(staged(first) + (column - first), 4 * sink.channels, sink.channels, rows, columns, from, to, y);
            else
                store_pixels(get_pixels(sink, tile) + (column - first), sink.h, sink.w, rows, columns, from, to, y);
        });
    }

    // Prefetches the outputs of the next tile to the right, so that their cache lines arrive while this tile is transformed.
    FASTDS_HD void fetch_next(const Tile& tile, int64_t column) const {
        if (How != Store::cached || call.sinks.count > 1) return;
        const Conv3x3View& sink = call.sinks.view[0];
        const T* at = static_cast<const T*>(sink.data) + sink.offset(tile.b, tile.y, tile.x + 4) + column;
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) __builtin_prefetch(at + r * sink.h + c * sink.w, 1);
    }

    // Returns the buffer of the 16 pixels of the sink whose first column is `first`.
    FASTDS_HD T* staged(int64_t first) const { return staging + 16 * first; }

    // Stores the lanes [from, to) of the pixels. `at` is the address of lane 0 of the first pixel, even if lane 0 is not
    // stored.
    FASTDS_HD void store_pixels(T* at, int64_t row, int64_t pixel, int rows, int columns, int from, int to, V (&y)[4][4]) const {
        if (to - from < kL) {
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < columns; c++) store_range(at + r * row + c * pixel, y[r][c], from, to);
            return;
        }
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
    }

    // Streams the buffered outputs of a tile after its last column.
    FASTDS_HD void end(const Tile& tile, int rows, int columns) const {
        if (How != Store::staged) return;
        int64_t first = 0;
        for (int s = 0; s < call.sinks.count; first += call.sinks.view[s++].channels) {
            const Conv3x3View& sink = call.sinks.view[s];
            for (int r = 0; r < rows; r++)
                stream_bytes(reinterpret_cast<char*>(get_pixels(sink, tile) + r * sink.h),
                             reinterpret_cast<const char*>(staged(first) + r * 4 * sink.channels),
                             columns * sink.channels * sizeof(T));
        }
    }
};

// Applies the epilogue to the columns [column, end) of one tile. `m` points to column `column` of the tile in plane 0.
template <class Epilogue>
inline void finish_tile(const Conv3x3Geometry& g, const Epilogue& epilogue, const Tile& tile, const float* m, int64_t plane,
                        int64_t column, int64_t end) {
    const int rows = static_cast<int>(min_of(4, g.Ho - tile.y)), columns = static_cast<int>(min_of(4, g.Wo - tile.x));
    for (; column < end; column += kL, m += kL) {
        V y[4][4];
        epilogue.fetch_next(tile, column);
        finish_vector(m, plane, y);
        const int count = static_cast<int>(min_of(kL, end - column));
        epilogue.complete(tile, rows, columns, column, count, y);
        epilogue.store(tile, rows, columns, column, count, y);
    }
    epilogue.end(tile, rows, columns);
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
