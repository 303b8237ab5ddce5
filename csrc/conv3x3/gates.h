// SPDX-License-Identifier: Apache-2.0
// An output stage for recurrent cells: the pre-activations of all gates of a tile go from the convolution to a functor through a
// buffer in the L1 cache; they are not written, or only for the backward. For the cpu*.cpp of an op:
//
//     struct Gates {
//         int64_t channels;  // of the cell; gate g is outputs [g * channels, (g + 1) * channels) of the convolution
//         bool dense;        // pixels of all its tensors follow each other without gaps
//         // n values of each gate: the channels of pixel (tile.y + r, tile.x + c) and, when dense, of those behind it in its row
//         void operator()(const Tile& tile, int r, int c, int64_t n, const float* pre, int64_t plane) const {
//             ... pre[g * plane + i], i < n ...
//         }
//     };
//     conv3x3_run_gates<T>(call, plan, workspace, Gates{...});
//
// call: sources are x and h; sinks ONE view with all outputs of the convolution and the dtype T, in which the pre-activations
// are kept for the backward, or whose data is null; act none. residual: none, or what is added to the pre-activations: where the
// x-part of all steps was convolved at once, sources is h alone and residual that part. plan: conv3x3_plan(call, threads), one
// that makes all outputs in one pass: see makes_one_pass.
//
// The functor runs for every pixel once, on any thread: it must not change shared state.
#pragma once
#include "conv3x3/engine.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// One vector of columns of a tile's 16 pixels into the buffer [gate][pixel][channel].
FASTDS_HD void stage_vector(const V (&y)[4][4], int64_t column, int count, int64_t channels, float* buffer) {
    for (int from = 0; from < count;) {
        const int64_t gate = (column + from) / channels;
        const int to = static_cast<int>(least(count, (gate + 1) * channels - column));
        float* at = buffer + gate * 15 * channels + column;  // = gate * 16 * channels + channel - from
        if (to - from == kL) {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) store_vec<kL>(at + (r * 4 + c) * channels, y[r][c]);
        } else {
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++) store_range(at + (r * 4 + c) * channels, y[r][c], from, to);
        }
        from = to;
    }
}

template <class T, Store How, class Gates>
void finish_gates(const Conv3x3Call& call, const Gates& functor, const Layout& at, const float* bias, int64_t first, int64_t count,
                  float* scratch, int64_t outputs) {
    alignas(kVectorBytes) T staging[How == Store::staged ? 16 * kPassColumns : 1];
    const StoreStage<T, How> stage{call, bias, staging};
    float* buffer = scratch + at.staging;
    const int64_t channels = functor.channels;
    Tile tile = tile_at(call.geometry, first);
    for (int64_t i = 0; i < count; i++, to_next_tile(call.geometry, tile)) {
        const int rows = static_cast<int>(least(4, call.geometry.Ho - tile.y));
        const int columns = static_cast<int>(least(4, call.geometry.Wo - tile.x));
        const float* m = scratch + at.m + i * at.m_row;
        for (int64_t column = 0; column < outputs; column += kL, m += kL) {
            const int lanes = static_cast<int>(least(kL, outputs - column));
            V y[4][4];
            finish_vector(m, at.m_plane, y);
            stage.complete(tile, rows, columns, column, lanes, y);
            if (call.sinks.view[0].data != nullptr) stage.store(tile, rows, columns, column, lanes, y);
            stage_vector(y, column, lanes, channels, buffer);
        }
        if (call.sinks.view[0].data != nullptr) stage.end(tile, rows, columns);
        const int step = functor.dense ? columns : 1;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c += step)
                functor(tile, r, c, step * channels, buffer + (r * 4 + c) * channels, 16 * channels);
    }
}

template <class T, class Gates>
void conv3x3_run_gates(const Conv3x3Call& call, const Conv3x3Plan& plan, float* workspace, const Gates& functor) {
    const float* bias = bias_of_columns(call, plan, workspace);
    run_engine(call, plan, workspace, [&](const Layout& at, int64_t first, int64_t count, float* scratch, Range columns) {
        if constexpr (sizeof(T) == sizeof(float))
            if (static_cast<Store>(plan.store) == Store::streamed)
                return finish_gates<T, Store::streamed>(call, functor, at, bias, first, count, scratch, columns.end);
        if (static_cast<Store>(plan.store) == Store::staged)
            return finish_gates<T, Store::staged>(call, functor, at, bias, first, count, scratch, columns.end);
        finish_gates<T, Store::cached>(call, functor, at, bias, first, count, scratch, columns.end);
    });
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
