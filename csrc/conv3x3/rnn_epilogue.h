// SPDX-License-Identifier: Apache-2.0
// Epilogue for recurrent cells. The pre-activations of all gates of a tile pass from the convolution to Conv3x3Cell::row
// through a buffer in the L1 cache. They are written to memory only if the backward pass needs them.
#pragma once
#include "conv3x3/winograd.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Writes one vector of columns of the 16 pixels of a tile into the buffer, whose order is [gate][pixel][channel].
FASTDS_HD void buffer_vector(const V (&y)[4][4], int64_t column, int count, int64_t channels, float* buffer) {
    for (int from = 0; from < count;) {
        const int64_t gate = (column + from) / channels;
        const int to = static_cast<int>(min_of(count, (gate + 1) * channels - column));
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

template <class T, Store How>
void finish_cell(const Epilogue& epilogue, const Layout& at, int64_t first, int64_t count, float* scratch, Range all) {
    const Conv3x3Call& call = epilogue.call;
    const Conv3x3Cell& cell = *epilogue.cell;
    alignas(kVectorBytes) T staging[How == Store::staged ? 16 * kPassColumns : 1];
    const StoreEpilogue<T, How> store{call, epilogue.bias, staging};
    float* buffer = scratch + at.staging;
    const int64_t channels = cell.channels, outputs = all.end;
    Tile tile = get_tile(call.geometry, first);
    for (int64_t i = 0; i < count; i++, advance_tile(call.geometry, tile)) {
        const int rows = static_cast<int>(min_of(4, call.geometry.Ho - tile.y));
        const int columns = static_cast<int>(min_of(4, call.geometry.Wo - tile.x));
        const float* m = scratch + at.m + i * at.m_row;
        for (int64_t column = 0; column < outputs; column += kL, m += kL) {
            const int lanes = static_cast<int>(min_of(kL, outputs - column));
            V y[4][4];
            finish_vector(m, at.m_plane, y);
            store.complete(tile, rows, columns, column, lanes, y);
            if (call.sinks.view[0].data != nullptr) store.store(tile, rows, columns, column, lanes, y);
            buffer_vector(y, column, lanes, channels, buffer);
        }
        if (call.sinks.view[0].data != nullptr) store.end(tile, rows, columns);
        const int step = cell.dense ? columns : 1;
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c += step)
                cell.row(cell.context, tile.b, tile.y + r, tile.x + c, step * channels, buffer + (r * 4 + c) * channels,
                         16 * channels);
    }
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
