// SPDX-License-Identifier: Apache-2.0
// Winograd transform of the gradients of 4x4 outputs into 36 planes. The weight gradient is the product of these planes with
// those of the inputs.
#pragma once
#include "conv3x3/tiles.h"

namespace fastds {
namespace FASTDS_ISA {
namespace {

// Computes A g A^T for the channels of one view of a tile in 36 planes, and the sum of the gradients in a 37th plane.
template <bool Inside, class T, bool Signed>
void transform_gradient_view(const Conv3x3View& view, const Tile& tile, const int64_t* row, const int64_t* column, float slope,
                             const T* zeros, float* out, int64_t plane) {
    Pixels<T, 4> data, sign;
    find_pixels<Inside>(data, view.data, view, tile.b, row, column, zeros);
    if (Signed) find_pixels<Inside>(sign, view.sign, view, tile.b, row, column, zeros);
    for (int64_t channel = 0; channel < view.channels; channel += kL) {
        const int count = static_cast<int>(min_of(kL, view.channels - channel));
        V sum = {};
        transform_planes<4>(
            [&](int c, V(&g)[4]) {
                load_column<Inside, Signed>(data, sign, c, channel, count, slope, g);
                sum += (g[0] + g[1]) + (g[2] + g[3]);
            },
            [](const V(&g)[4], V(&m)[6]) { transform_output_adjoint(g, m); }, out + channel, plane);
        store_vec<kL>(out + kPoints * plane + channel, sum);
    }
}

// Transforms all channels of one tile of `count` views to out[p * plane + channel], like transform_tile.
template <class T, bool Signed>
void transform_gradient_tile(const Conv3x3Geometry& g, const Conv3x3View* views, int count, const Tile& tile, float slope,
                             const T* zeros, float* out, int64_t plane) {
    int64_t row[4], column[4];
    for (int i = 0; i < 4; i++) {
        row[i] = tile.y + i < g.Ho ? tile.y + i : -1;
        column[i] = tile.x + i < g.Wo ? tile.x + i : -1;
    }
    for (int s = 0; s < count; s++) {
        const Conv3x3View& view = views[s];
        if (row[3] >= 0 && column[3] >= 0)
            transform_gradient_view<true, T, Signed>(view, tile, row, column, slope, zeros, out, plane);
        else
            transform_gradient_view<false, T, Signed>(view, tile, row, column, slope, zeros, out, plane);
        out += view.channels;
    }
}

// Returns the part of a view with the given vectors of channels.
template <class T>
Conv3x3View select_channels(Conv3x3View view, Range vectors) {
    view.channels = min_of(vectors.end * kL, view.channels) - vectors.begin * kL;
    view.data = static_cast<T*>(view.data) + vectors.begin * kL;
    if (view.sign != nullptr) view.sign = static_cast<const T*>(view.sign) + vectors.begin * kL;
    return view;
}

}  // namespace
}  // namespace FASTDS_ISA
}  // namespace fastds
